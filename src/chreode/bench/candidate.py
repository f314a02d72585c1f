"""How options are tried: a fit under them, judged on cells held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from .. import config
from ..data.read import Data
from ..data.subset import some_cells
from ..errors import FitError
from ..fitted import Fitted
from ..model import Model
from ..run import Run
from ..schema import Schema
from ..trials.cluster import opened
from ..trials.trial import Outcome, Result, Trial

#: A fitted model and cells that it has not learned from -> a number, the lower the better.
Objective: TypeAlias = Callable[[Fitted, Data], float]


@dataclass(frozen=True, eq=False)
class Given:
    """What every trial is given; rows are positions of cells."""

    data: Data | Path
    schema: Schema
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    objective: Objective
    run: Run


def trial_of(name: str, model: Model, seed: int, cells: Literal["validation", "test"]) -> Trial:
    """Return the trial that fits a model and judges it on these cells."""
    about = {"config": config.as_dict(model), "seed": seed, "judged on": cells}
    return Trial(name, partial(_fit_and_judge, model, seed, cells), about)


def _fit_and_judge(
    model: Model, seed: int, cells: Literal["validation", "test"], given: Given
) -> Result:
    data = opened(given.data)
    # what learns without validation would learn from the validation rows too
    validates = any(phase.learner.validates for phase in model.phases())
    rows = np.union1d(given.train, given.validation) if validates else given.train
    fitted = model.fit(
        data,
        given.schema,
        seed=seed,
        rows=rows,
        validation=given.validation if validates else 0,
        run=given.run,
    )
    value = float(given.objective(fitted, some_cells(data, getattr(given, cells))))
    if not np.isfinite(value):
        raise FitError(f"the objective is {value}")
    return {"objective": value, "state": fitted.provenance["state"]}, {}


def columns(outcome: Outcome) -> dict[str, Any]:
    """Return what a table says of a trial."""
    row = outcome.row or {"objective": np.nan, "state": ""}
    return {**row, "seconds": outcome.seconds, "note": outcome.note}
