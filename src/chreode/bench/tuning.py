"""Search for better options of a model, and say whether they beat its own by more than chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.check import findings, require
from ..data.holdout import hold_out, named_cells
from ..data.read import Data
from ..errors import CapabilityError, ConfigError, counted
from ..fitted import Fitted
from ..model import Model
from ..run import Run
from ..schema import Schema
from ..trials.cluster import portable
from ..trials.digest import digest, provenance
from ..trials.runner import Runner, run_of_trials, running
from .candidate import Given, Objective, columns, trial_of
from .identity import identity
from .study import Space, Study
from .tuned import REFITS, Tuned

#: Options searched by default, and how far from the model's own value in both directions.
_FACTORS = {
    "n_latent": 4, "n_factors": 4, "n_hidden": 4, "batch_size": 4, "lr": 10, "weight_decay": 100,
}  # fmt: skip
#: Options searched by default in a range of their own.
_RANGES: dict[str, tuple[float, float]] = {"n_layers": (1, 3), "dropout": (0.0, 0.5)}
#: Share of the cells by which trials are compared, and of those for the refits, by default.
HELD_OUT = 0.1


@checked
def tune(
    model: Model,
    data: Data | str | Path,
    schema: Schema,
    *,
    trials: int = 20,
    seed: int = 0,
    space: Space | None = None,
    objective: Objective | None = None,
    rows: Any = None,
    validation: Any = HELD_OUT,
    test: Any = HELD_OUT,
    into: str | Path | None = None,
    ray: bool | int = False,
    run: Run = Run(),
    **settings: Any,
) -> Tuned:
    """Search for better options of a model by fits judged on held-out cells (TPE).

    Trial 0 is the model as given. The best options and those given are then fitted again, under three
    further seeds, and judged on test cells that nothing has seen.

    Parameters
    ----------
    model
        Where the search begins. Its options outside of `space` stay as they are.
    data
        AnnData, MuData or a path.
    schema
        Where each role lives.
    trials
        How many, with trial 0.
    seed
        Of the split, of the search, and of every fit in it.
    space
        Option -> (lowest, highest), or a list of values (default: see `default_space`). A range of
        whole numbers stays whole; one that spans a factor of 10 is searched on a log scale.
    objective
        Of a fitted model and cells that it has not learned from; the lowest is the best (default: minus
        the mean `score` in nats per cell, for models that have one).
    rows
        Cells to use: a condition on obs, a mask, positions or names (default: all).
    validation
        Share of them by which trials are compared, or these rows themselves.
    test
        Share of them for the refits at the end, or these rows themselves. A share is drawn from rows that
        are not named for the other.
    into
        Folder that keeps the result of every trial as it comes. The same call goes on where it was
        cut off, and more `trials` go on from there too.
    ray
        Run trials side by side on Ray, with so many threads each (True: one). Options are then
        suggested for all workers at once, so that the trials depend on the number of workers.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Raises
    ------
    SchemaError, DataError
        If a role is absent or its values are wrong.
    ConfigError
        If `space` names an option that is not there, or one that changes what the score is of, or leaves
        the model's own value out.
    FitError
        If the model as given cannot be fitted or judged.
    CapabilityError
        If the model has no `score` and no `objective` is given; or if optuna, or Ray where it is asked for,
        is not installed.
    StoreError
        If `into` holds results of other data, settings or versions.
    KeyboardInterrupt
        At Ctrl-C, which ends everything at once; it says what is kept.

    References
    ----------
    Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization, NeurIPS 24.
    """
    space = default_space(model) if space is None else space
    study = Study(model, space, seed)
    if trials < 1:
        raise ConfigError(f"trials={trials}: expected at least 1.")
    sent = portable(data) if ray else None
    run, cells = run_of_trials(run, settings), Cells.of(data, schema)
    positions = cells.positions(rows)
    require(findings(cells, positions, progress=run.progress))
    train, between, last = three_parts(cells, positions, validation, test, seed)
    if objective is None and (other := sorted(set(space) & set(model.rescores))):
        raise ConfigError(
            f"{model.key} with another {other[0]} scores something else, so trials cannot be compared by "
            f"their score. Leave {other[0]} out of the space, or give an objective."
        )
    if objective is None and "score" not in model.verbs(cells, train):
        raise CapabilityError(
            f"{model.key} has no score by which trials could be compared. Give an objective: a function of a "
            "fitted model and of cells that it has not learned from, whose lowest value is the best."
        )
    objective = objective or nats_per_cell
    with pinned(int(ray) or run.threads or torch.get_num_threads()):
        about = {
            **provenance(cells), "model": model.key, "rows": digest(train, between, last),
            "objective": _identified(objective, kept=into is not None),
        }  # fmt: skip
        given = Given(
            cells.data if sent is None else sent, schema, train, between, last, objective, run
        )
        with (
            bar(trials + 2 * REFITS, "tune", run.progress) as shown,
            running(given, about, into=into, ray=ray) as runner,
        ):
            table, tried = study.search(runner, trials, shown)
            best = tried[table["objective"].idxmin()]
            compared = {"given": model} | ({} if best == model else {"best": best})
            refits = _refits(runner, compared, range(seed + 1, seed + 1 + REFITS), shown)
    return Tuned(best, table, refits, about)


def default_space(model: Model) -> dict[str, tuple[float, float]]:
    """Return the ranges that `tune` searches: sizes, rates and regularisation about the model's own.

    Options that change the likelihood are left out, because objectives are then not comparable; so
    are those in which `model` differs from its class, because they were chosen.

    Examples
    --------
    >>> import chreode as ch
    >>> default_space(ch.PPCA())
    {'n_latent': (2, 40)}
    >>> default_space(ch.PPCA(n_latent=20))
    {}
    """
    space: dict[str, tuple[float, float]] = {}
    for option in dataclasses.fields(model):  # type: ignore[arg-type]  # `config` makes it one
        name, value, limits = option.name, getattr(model, option.name), option.metadata
        if value != option.default or not (name in _RANGES or (name in _FACTORS and value)):
            continue
        if name in _RANGES:
            low, high = min(_RANGES[name][0], value), max(_RANGES[name][1], value)
        else:
            low, high = value / _FACTORS[name], value * _FACTORS[name]
        low = low if limits["low"] is None else max(low, limits["low"])
        high = high if limits["high"] is None else min(high, limits["high"])
        space[name] = (int(low), int(high)) if isinstance(value, int) else (low, high)
    return space


def nats_per_cell(fitted: Fitted, cells: Data) -> float:
    """Return minus the mean of `Fitted.score`: of the evidence lower bound, or of the likelihood itself.

    Cells that lack the modality are left out.

    Raises
    ------
    CapabilityError
        If the model has no score.
    """
    return -float(np.nanmean(fitted.score(cells, progress=False)))


def _identified(objective: Objective, *, kept: bool) -> str:
    """Return the name of an objective and, where results are kept, its identity (see `identity`)."""
    name = getattr(objective, "__qualname__", type(objective).__qualname__)
    name = f"{getattr(objective, '__module__', '')}.{name}"
    if not kept:
        return name
    try:
        return f"{name} {identity(objective)}"
    except ConfigError as error:
        raise ConfigError(
            f"The objective {name} refers to {error}, and nothing shows whether it is the same in the "
            "next call, so results of several objectives could be mixed in one folder (into). Give it plain "
            "values, as in functools.partial(objective, weight=0.5), or leave out into."
        ) from error


def three_parts(
    cells: Cells, rows: np.ndarray, validation: Any, test: Any, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows to learn from, to compare trials by, and to judge at the end: no two share any."""
    between = named_cells(cells, rows, validation, "validation")
    last = named_cells(cells, rows, test, "test")
    both = [what for what in (between, last) if not isinstance(what, float)]
    if len(both) == 2 and (shared := len(np.intersect1d(*both))):
        raise ConfigError(
            f"validation and test share {counted(shared, 'cell')}: name each cell for one of them."
        )
    named = np.concatenate([np.zeros(0, int), *both])
    parts, rest = {}, np.setdiff1d(rows, named)
    for name, what, given in (("test", last, test), ("validation", between, validation)):
        parts[name] = what
        if isinstance(what, float):
            rest, parts[name] = hold_out(rest, what, Rng(seed).numpy(f"tune {name}"))
        if not len(parts[name]):
            raise ConfigError(
                f"{name}={given}: expected a share above 0 that comes to a cell at least, or rows."
            )
    return rest, parts["validation"], parts["test"]


def _refits(runner: Runner, models: Mapping[str, Model], seeds: range, shown: Any) -> pd.DataFrame:
    """Return a row per refit, judged on the test cells."""
    pairs = [(name, seed) for name in models for seed in seeds]
    todo = [trial_of(f"{name}, seed {seed}", models[name], seed, "test") for name, seed in pairs]
    outcomes = runner.run(todo, shown)
    return pd.DataFrame(
        [
            {"options": name, "seed": seed, **columns(outcome)}
            for (name, seed), outcome in zip(pairs, outcomes, strict=True)
        ]
    )
