"""Grids of runs that answer one question each, with the paper's numbers beside ours."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .. import config
from ..compute.progress import bar
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..errors import ConfigError, counted
from ..run import Run
from ..trials.runner import require_one, require_seeds, run_of_trials, running
from ..trials.trial import Result, Trial
from ..version import __version__, code_hash
from .recovery import Setting, recover
from .study import Study, named

#: Those of the paper's table 1.
ALL = ("identity", "linear", "mlp", "patches", "spiral")
SEEDS = (0, 1, 2, 3, 4)
SAMPLERS = ("theorem", "published")


@settled()
@checked
def diversity(
    mixings: Sequence[str] = ALL,
    *,
    fixed: Sequence[int] = (1,),
    samplers: Sequence[str] = SAMPLERS,
    seeds: Sequence[int] = SEEDS,
    into: str | Path | None = None,
    ray: bool | int = False,
    base: Setting = Setting(),
    run: Run = Run(),
    **settings: Any,
) -> Study:
    """Ask whether latents are recovered if positives reach all of the space, and if they keep a part of it.

    Parameters
    ----------
    mixings
        How latents become data: identity, linear, mlp, patches, spiral, monomials.
    fixed
        Numbers of coordinates that positives keep, beside none. For each, negatives are drawn from
        everywhere (InfoNCE) and from the anchor's own support (the corrected loss). If all are kept,
        a positive is its anchor.
    samplers
        How what is not kept is drawn: "theorem", "published".
    seeds
        Of mixing, encoder and draws.
    into
        Folder that keeps the result of every run as it comes, and from which the same call goes on.
    ray
        Run on Ray, with so many threads per run (True: one).
    base
        What all runs share, such as ``Setting(n_latent=10, n_steps=500)``.
    run
        How to compute (see `Run`): threads and progress. Its fields may be given one by one.

    Examples
    --------
    >>> short = Setting(n_steps=50, hidden=(16,))
    >>> study = diversity(["identity"], samplers=["theorem"], seeds=[0], base=short)
    >>> len(study.table())
    3
    """
    hows: list[dict[str, Any]] = [{"n_fixed": 0, "ratio": 0.0}]
    hows += [
        {"n_fixed": n, "sampler": sampler, "ratio": ratio}
        for n, sampler, ratio in product(filter(None, fixed), samplers, (0.0, 1.0))
    ]
    _require_some(mixings=mixings, samplers=samplers)
    grid = [{"mixing": mixing, **how} for mixing, how in product(mixings, hows)]
    return _study(
        "diversity", [replace(base, **how) for how in grid], seeds, into, int(ray),
        run_of_trials(run, settings),
    )  # fmt: skip


@settled()
@checked
def ratio(
    mixings: Sequence[str] = ("identity", "patches"),
    *,
    ratios: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0),
    n_fixed: int = 1,
    samplers: Sequence[str] = SAMPLERS,
    seeds: Sequence[int] = SEEDS,
    into: str | Path | None = None,
    ray: bool | int = False,
    base: Setting = Setting(),
    run: Run = Run(),
    **settings: Any,
) -> Study:
    """Ask how large a share of the negatives must come from the anchor's own support.

    Parameters
    ----------
    ratios
        The shares ρ, from 0 (InfoNCE) to 1 (the corrected loss).
    n_fixed
        Number of coordinates that positives keep: of none or all, every ratio would be the same loss or
        teach nothing.
    mixings, samplers, seeds, into, ray, base, run
        As in `diversity`.
    """
    _require_some(mixings=mixings, ratios=ratios, samplers=samplers)
    if not 0 < n_fixed < base.n_latent:
        raise ConfigError(
            f"n_fixed={n_fixed} of {counted(base.n_latent, 'coordinate')}: expected 1 to "
            f"{base.n_latent - 1}, so that an anchor's own support is a part of all."
        )
    grid: list[dict[str, Any]] = [
        {"n_fixed": n_fixed, "mixing": mixing, "sampler": sampler, "ratio": share}
        for mixing, sampler, share in product(mixings, samplers, ratios)
    ]
    return _study(
        "ratio", [replace(base, **how) for how in grid], seeds, into, int(ray),
        run_of_trials(run, settings),
    )  # fmt: skip


@settled()
@checked
def encoders(
    mixings: Sequence[str] = ("identity", "linear", "patches", "spiral"),
    *,
    ratios: Sequence[float] = (0.0, 1.0),
    samplers: Sequence[str] = SAMPLERS,
    seeds: Sequence[int] = SEEDS,
    into: str | Path | None = None,
    ray: bool | int = False,
    base: Setting = Setting(),
    run: Run = Run(),
    **settings: Any,
) -> Study:
    """Ask whether an encoder that is made like the inverse of the mixing does what the loss alone does not.

    Parameters
    ----------
    mixings, ratios, samplers, seeds, into, ray, base, run
        As in `diversity` and `ratio`; the runs in which positives reach all of the space are added.
    """
    _require_some(mixings=mixings, ratios=ratios, samplers=samplers)
    hows: list[dict[str, Any]] = [{"n_fixed": 0, "ratio": 0.0}]
    hows += [
        {"n_fixed": 1, "sampler": sampler, "ratio": share}
        for sampler, share in product(samplers, ratios)
    ]
    grid = [
        {"mixing": mixing, "encoder": encoder, **how}
        for mixing, how, encoder in product(mixings, hows, ("mlp", "inverse"))
    ]
    return _study(
        "encoders", [replace(base, **how) for how in grid], seeds, into, int(ray),
        run_of_trials(run, settings),
    )  # fmt: skip


def _require_some(**named: Sequence[Any]) -> None:
    """Refuse an axis of the grid that has nothing on it."""
    for name, values in named.items():
        if not len(values):
            raise ConfigError(f"{name} is empty: name one at least.")


def _study(
    kind: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    into: str | Path | None,
    ray: int,
    run: Run,
) -> Study:
    # what is named twice, or is the same by two names, such as both samplers if nothing is fixed
    settings = list({named(setting): setting for setting in settings}.values())
    trials = [
        Trial(
            f"{named(setting)}, seed {seed}", partial(_run, setting, seed),
            {**config.as_dict(setting), "seed": seed},
        )
        for seed in dict.fromkeys(require_seeds(seeds))
        for setting in settings
    ]  # fmt: skip
    threads = ray or run.threads or torch.get_num_threads()  # on Ray each run has its own
    about = {
        "study": kind, "chreode": __version__, "code": code_hash(), "torch": torch.__version__,
        "machine": platform.machine(), "threads": threads,
    }  # fmt: skip
    with (
        pinned(threads),
        bar(len(trials), "run", run.progress) as shown,
        running(None, about, into=into, ray=ray) as runner,
    ):
        found = runner.run(trials, shown)
    require_one(trials, found)
    return Study.of(kind, trials, found, about)


def _run(setting: Setting, seed: int, _: object) -> Result:
    return recover(setting, seed)
