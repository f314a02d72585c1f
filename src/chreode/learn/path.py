"""A regularisation path: fits under growing penalties, each begun where the last one ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from .. import store
from ..data.source import Source
from ..module import Module
from .phase import Phase, Run, Split, Trace

#: Sums of paths that count as none.
_NONE = 1e-5


@dataclass(frozen=True)
class Path:
    """Learn under each strength in turn, and keep the sparsest fit that is as good as the best.

    As good: its mean error on the held-out series is within one standard error of the smallest one
    (Breiman et al. 1984), or within 1 % where there are fewer than five series.

    The module offers ``strengthen(value)``, ``errors(batch)`` (the error of each series), and
    ``path_matrix()`` (0 where an input does not reach an output), whose share of zeros the history tells.

    Attributes
    ----------
    stage
        How to learn at each strength.
    strengths
        Rising.
    """

    validates: ClassVar[bool] = True
    stage: Phase
    strengths: tuple[float, ...]

    def until(self, strength: float) -> Path:
        """Return the way to one strength."""
        # a module keeps it in single precision
        return replace(
            self, strengths=tuple(s for s in self.strengths if s <= strength * (1 + 1e-6))
        )

    def learn(self, module: Module, phase: Phase, source: Source, split: Split, run: Run) -> Trace:
        """Train ``phase.part`` in place; held-out series are judged as the phase sees them."""
        target, traces, states, errors = phase.target(module), [], [], []
        rested = []
        seen = self.stage.view(module, source, split, run) if self.stage.view else source
        for number, strength in enumerate(self.strengths):
            target.strengthen(strength)
            own = run.for_phase(number)
            trace = self.stage.learner.learn(module, self.stage, seen, split, own)
            traces.append(trace.history.assign(strength=strength))
            rested.append(trace.state)
            errors.append(_held_out(target, source, split, run))
            zeros = float((target.path_matrix() <= _NONE).float().mean())
            held_out = np.mean(errors[-1]) if errors[-1] else np.nan
            traces[-1].loc[traces[-1].index[-1], ["held_out", "none"]] = held_out, zeros
            states.append(store.clone_state(target))
        chosen = choose(np.array(errors)) if len(split.validation) else len(self.strengths) - 1
        target.load_state_dict(states[chosen])
        note = f"{phase.name}: strength {self.strengths[chosen]:g} of {len(self.strengths)}"
        return Trace(pd.concat(traces, ignore_index=True), rested[chosen], (note,))


def choose(errors: np.ndarray) -> int:
    """Return the last row of fits x series whose mean error is as good as the smallest."""
    means = np.nanmean(errors, 1)
    best = int(np.nanargmin(means))
    if errors.shape[1] < 5:
        slack = 0.01 * means[best]
    else:  # the series are the same: what counts is by how much they differ between fits
        with np.errstate(invalid="ignore"):  # of infinite errors
            apart = errors - errors[best]
            spread = apart.std(1, ddof=1)
        # where every fit blows up there is nothing to choose by: the sparsest
        slack = np.nan_to_num(spread / errors.shape[1] ** 0.5, nan=0.0)
    return int(np.flatnonzero(means <= means[best] + slack)[-1])


def _held_out(target: Any, source: Source, split: Split, run: Run) -> list[float]:
    target.eval()
    with torch.no_grad():
        return [
            float(e)
            for batch in source.minibatches(source.pieces(split.validation), run.device)
            for e in target.errors(batch)
        ]
