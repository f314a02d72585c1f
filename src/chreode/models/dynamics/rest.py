"""Learning in rounds, until another one changes little: what makes fits of other objectives comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from ...compute.convergence import State
from ...data.source import Source
from ...learn.phase import Learner, Phase, Session, Split, Trace
from ...module import Module

#: Share of its objective by which a converged fit changes in a round, at the most.
SHARE = 0.01


@dataclass(frozen=True)
class UntilConverged:
    """Repeat a run of `learner`, schedule and all, until its training objective changes by less than 1 %.

    A run whose rate falls to 0 always stops, wherever it is: only another run shows that it converged.

    Attributes
    ----------
    learner
        One round.
    rounds
        Most rounds; the fit is then still improving.
    """

    validates: ClassVar[bool] = True
    learner: Learner
    rounds: int = 8

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train ``phase.part`` in place, for two rounds at the least."""
        traces: list[Trace] = []
        state: State = "still improving"
        for number in range(self.rounds):
            trace = self.learner.learn(module, phase, source, split, run.for_phase(number))
            traces.append(trace)
            if trace.notes:  # interrupted, or blown up
                break
            ends = [t.history["train_objective"].iloc[-1] for t in traces[-2:]]
            if number and abs(ends[1] - ends[0]) < SHARE * abs(ends[0]):
                state = "rested"
                break
        history = [t.history.assign(round=number) for number, t in enumerate(traces)]
        notes = tuple(note for t in traces for note in t.notes)
        return Trace(pd.concat(history, ignore_index=True), state, notes)
