"""What EM and CAVI share: passes over all cells, an update after each, and an objective that never falls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import store
from ..compute.progress import bar
from ..errors import FitError, warn
from ..module import Module
from .phase import Phase, Session, Trace


@dataclass(frozen=True)
class Ascent:
    """Alternate a pass over all cells and an update, until the objective converges.

    Attributes
    ----------
    objective
        What it is called; the history has it as ``train_…``, per cell.
    max_epochs
        Passes over the data at most.
    tol
        Stop when the objective gains less than this share of its gain so far, twice running.
    slack
        Relative change that rounding may cause: such a fall is forgiven, and such a gain is none.
    advice
        What to do where it falls.
    """

    objective: str
    max_epochs: int
    tol: float
    slack: float
    advice: str

    def climb(
        self,
        one_pass: Callable[[], tuple[float, Mapping[str, Tensor]]],
        target: Module,
        phase: Phase,
        run: Session,
    ) -> Trace:
        """Return what happened; Ctrl-C keeps the last update.

        Parameters
        ----------
        one_pass
            Returns the objective per cell, and the sums of the statistics of all cells.
        target
            Sets its parameters from these sums (`Module.update`).

        Raises
        ------
        FitError
            If the objective falls or stops being finite.
        """
        column = f"train_{self.objective.replace('-', '_').lower()}"
        log: list[dict[str, float]] = []
        calm, notes = 0, []
        with torch.no_grad(), bar(self.max_epochs, phase.name, run.progress) as shown:
            for epoch in range(self.max_epochs):
                start, before = time.perf_counter(), store.clone_state(target)
                try:
                    value, sums = one_pass()
                    self._guard([row[column] for row in log], value)
                    target.update(sums)
                except KeyboardInterrupt:
                    if not log or not run.group.alone:
                        raise
                    target.load_state_dict(before)  # half an update is none
                    notes.append(f"interrupted in epoch {epoch}; the last update is kept")
                    warn(f"{phase.name}: {notes[-1]}.")
                    break
                seconds = time.perf_counter() - start
                log.append({"epoch": epoch, column: value, "seconds": seconds})
                gain = value - log[-2][column] if epoch else np.inf
                so_far = value - log[0][column]
                least = max(self.tol * so_far, self.slack * max(abs(value), 1.0))
                calm = calm + 1 if epoch and gain <= least else 0
                shown.set_postfix_str(f"{self.objective} {value:.2f}", refresh=False)
                shown.update()
                if calm == 2:
                    break
        return Trace(pd.DataFrame(log), "rested" if calm == 2 else "still improving", tuple(notes))

    def _guard(self, values: list[float], value: float) -> None:
        before = values[-1] if values else -np.inf
        if not np.isfinite(value):
            raise FitError(
                f"The {self.objective} became {value} in epoch {len(values)}; look for constant features."
            )
        if value < before - self.slack * max(abs(before), 1.0):
            raise FitError(
                f"The {self.objective} fell from {before:.8g} to {value:.8g} in epoch {len(values)}: "
                f"{self.advice}"
            )


def add_up(parts: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the sum of every statistic."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
