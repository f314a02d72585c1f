"""Rows of a bench, each judged under every seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from .. import config
from ..compute.convergence import DOUBTFUL, worst
from ..compute.progress import bar
from ..compute.threads import pinned
from ..model import Model
from ..run import Run
from ..trials.runner import require_one, require_seeds, running
from ..trials.trial import Outcome, Result, Trial
from .table import Bench

#: By method and seed.
Outcomes: TypeAlias = Mapping[str, Mapping[int, Outcome]]


@dataclass(frozen=True, eq=False)
class Contestant:
    """A row of a bench.

    Attributes
    ----------
    name, role
        As in `Bench.methods`.
    judge
        Returns, from a seed and what all are given, ``scores`` by metric, the ``state``
        of a fit and its ``seconds``, and maybe a ``note``; whatever else it returns is left to
        the bench.
    about
        What its results depend on, beside its name.
    """

    name: str
    role: str
    judge: Callable[[int, Any], Result]
    about: Mapping[str, Any] = field(default_factory=dict)


def contestants(
    models: Sequence[Model], judge: Callable[[Model], Callable[[int, Any], Result]]
) -> list[Contestant]:
    """Return a row for each model; models of one class are numbered."""
    found = []
    for model in models:
        name = type(model).__name__
        alike = [m for m in models if type(m) is type(model)]
        name = name if len(alike) == 1 else f"{name} ({alike.index(model) + 1})"
        about = {"model": model.key, "config": config.as_dict(model)}
        found.append(Contestant(name, "method", judge(model), about))
    return found


def contest(
    kind: str,
    rows: Sequence[Contestant],
    metrics: pd.DataFrame,
    given: Any,
    about: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    into: str | Path | None,
    run: Run,
) -> tuple[Bench, Outcomes]:
    """Judge every row under every seed; intervals are from the lowest to the highest seed.

    Parameters
    ----------
    kind, metrics, about
        As in `Bench`.
    given
        What every judge is given.
    into
        Folder that keeps every result as it comes, and from which the same call goes on.

    Raises
    ------
    DataError
        If every row failed; it says why.
    """
    seeds = require_seeds(seeds)
    trials = [
        Trial(
            f"{row.name}, seed {seed}", partial(row.judge, seed),
            {"row": row.name, **row.about, "seed": seed},
        )
        for row in rows
        for seed in seeds
    ]  # fmt: skip
    with (
        pinned(run.threads or torch.get_num_threads()),
        bar(len(trials), "judge", run.progress) as shown,
        running(given, about, into=into) as runner,
    ):
        found = runner.run(trials, shown)
    require_one(trials, found)
    done = iter(found)
    outcomes = {row.name: {seed: next(done) for seed in seeds} for row in rows}
    scores = [
        {"method": name, "seed": seed, "metric": metric, "value": value, "low": value,
         "high": value, "reason": ""}
        for name, of in outcomes.items()
        for seed, outcome in of.items()
        for metric, value in outcome.row.get("scores", {}).items()
    ]  # fmt: skip
    summaries = [_summary(row, list(outcomes[row.name].values())) for row in rows]
    methods = pd.DataFrame(summaries).set_index("method")
    return Bench(kind, pd.DataFrame(scores), methods, metrics, about), outcomes


def _summary(row: Contestant, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if not outcome.failed]
    notes = [*(o.note for o in outcomes), *(o.row.get("note") for o in done)]
    state = worst(outcome.row["state"] for outcome in done)
    return {
        "method": row.name, "role": row.role, "seeds": len(done), "state": state,
        "seconds": float(np.mean([outcome.row["seconds"] for outcome in done] or [np.nan])),
        "notes": [*dict.fromkeys(filter(None, [*notes, state if state in DOUBTFUL else ""]))],
    }  # fmt: skip
