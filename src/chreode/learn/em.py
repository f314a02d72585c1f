"""Expectation maximisation: sums over all cells, then an update; the likelihood may never fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..data.source import Source
from ..module import Module
from .ascent import Ascent, add_up
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

        def one_pass() -> tuple[float, dict[str, Tensor]]:
            batches = source.batches(group.share(rows), run.device)
            sums = add_up(target.collect(b) for b in batches)
            group.add(list(sums.values()))
            return float(sums["log_likelihood"]) / len(rows), sums

        advice = (
            "EM never does that, so the numbers are ill-conditioned. Try fewer factors or drop "
            "near-constant features."
        )
        ascent = Ascent("log-likelihood", self.max_epochs, self.tol, self.slack, advice)
        return ascent.climb(one_pass, target, phase, run)
