"""Expectation maximisation: sums over all cells, then an update; the likelihood may never fall."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..compute.progress import bar
from ..data.source import Source
from ..errors import FitError, warn
from ..module import Module
from .phase import Phase, Session, Split, Trace


@dataclass(frozen=True)
class EM:
    """Alternate ``module.collect(batch)`` over all cells and ``module.update(sums)``.

    Attributes
    ----------
    max_epochs
        Passes over the data at most.
    tol
        Stop when the log-likelihood gains less than this share of its gain so far, twice running.
    slack
        Relative change of the log-likelihood that rounding may cause: such a fall is forgiven, and such
        a gain is none.
    """

    validates: ClassVar[bool] = False
    max_epochs: int
    tol: float
    slack: float = 1e-9

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train in place on all rows; Ctrl-C keeps the last update.

        Raises
        ------
        FitError
            If the log-likelihood falls or stops being finite.
        """
        target, rows, group = phase.target(module), split.train, run.group
        log: list[dict[str, float]] = []
        calm, notes = 0, []
        with torch.no_grad(), bar(self.max_epochs, phase.name, run.progress) as shown:
            for epoch in range(self.max_epochs):
                start = time.perf_counter()
                try:
                    mine = source.batches(group.share(rows), run.device)
                    sums = add_up(target.collect(b) for b in mine)
                    group.add(list(sums.values()))
                    ll = float(sums["log_likelihood"]) / len(rows)
                    self._guard(log, ll)
                    target.update(sums)
                except KeyboardInterrupt:
                    if not log or not group.alone:
                        raise
                    notes.append(f"interrupted in epoch {epoch}; the last update is kept")
                    warn(f"{phase.name}: {notes[-1]}.")
                    break
                log.append(
                    {
                        "epoch": epoch,
                        "train_log_likelihood": ll,
                        "seconds": time.perf_counter() - start,
                    }
                )
                gain = ll - log[-2]["train_log_likelihood"] if epoch else np.inf
                so_far = ll - log[0]["train_log_likelihood"]
                least = max(self.tol * so_far, self.slack * max(abs(ll), 1.0))
                calm = calm + 1 if epoch and gain <= least else 0
                shown.set_postfix_str(f"log-likelihood {ll:.2f}", refresh=False)
                shown.update()
                if calm == 2:
                    break
        return Trace(pd.DataFrame(log), "rested" if calm == 2 else "still improving", tuple(notes))

    def _guard(self, log: list[dict[str, float]], ll: float) -> None:
        before = log[-1]["train_log_likelihood"] if log else -np.inf
        if not np.isfinite(ll):
            raise FitError(
                f"The log-likelihood became {ll} in epoch {len(log)}; look for constant features."
            )
        if ll < before - self.slack * max(abs(before), 1.0):
            raise FitError(
                f"The log-likelihood fell from {before:.8g} to {ll:.8g} in epoch {len(log)}: EM never does "
                "that, so the numbers are ill-conditioned. Try fewer factors or drop near-constant features."
            )


def add_up(parts: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the sum of every statistic."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
