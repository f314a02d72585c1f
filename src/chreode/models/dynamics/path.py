"""A regularisation path: fits under growing penalties, each begun where the last one ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from ... import store
from ...data.source import Source
from ...learn.analogs import choose
from ...learn.phase import Phase, Session, Split, Trace
from ...module import Module

#: Sums of paths that count as none.
_NONE = 1e-5


#: Strengths that a grid grows by, at the most.
GROWN = 6


@dataclass(frozen=True)
class Path:
    """Learn under each strength in turn, and keep the sparsest fit that is as good as the best.

    As good: its mean error on the held-out series is within one standard error of the smallest one
    (Breiman et al. 1984), or within 1 % where there are fewer than five series. Where that is the
    strongest of several the grid goes on, and where the best is the weakest it goes back, by six strengths
    at the most: the end of a grid is no optimum.

    The module offers ``set_strength(value)``, ``next_strength(value, before)`` (the next one of a grid, or
    None), ``errors(batch)`` (the error of each series), and ``path_matrix()`` (0 where an input does not
    reach an output), whose share of zeros is in the history.

    Attributes
    ----------
    stage
        How to learn at each strength: until converged, else a fit would depend on the strengths before it.
    strengths
        Rising.
    """

    validates: ClassVar[bool] = True
    stage: Phase
    strengths: tuple[float, ...]

    def until(self, strength: float, module: Any) -> Path:
        """Return the way to one strength, which may lie beyond the grid."""
        # a module keeps it in single precision
        way = [s for s in self.strengths if s <= strength * (1 + 1e-6)] or [strength]
        while len(way) > 1 and strength > way[-1] * (1 + 1e-6):
            way.append(min(module.next_strength(way[-1], way[-2]), strength))
        return replace(self, strengths=tuple(way))

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train ``phase.part`` in place; held-out series are judged as the phase sees them."""
        target = phase.target(module)
        seen, _ = self.stage.seen(module, source, split, run)
        first = _Fit(0.0, store.clone_state(target), [], Trace(pd.DataFrame(), "rested"))
        fits: list[_Fit] = []

        def fit(strength: float, begun: _Fit) -> _Fit:
            target.load_state_dict(begun.state)
            target.set_strength(strength)
            session = run.for_phase(len(fits))
            trace = self.stage.learner.learn(module, self.stage, seen, split, session)
            errors = _held_out(target, source, split, run)
            table = trace.history.assign(strength=strength)
            zeros = float((target.path_matrix() <= _NONE).float().mean())
            held_out = np.mean(errors) if errors else np.nan
            table.loc[table.index[-1], ["held_out", "none"]] = held_out, zeros
            found = _Fit(strength, store.clone_state(target), errors, replace(trace, history=table))
            fits.append(found)
            return found

        last = first
        for strength in self.strengths:
            last = fit(strength, last)
            if last.trace.interrupted:  # the next would begin from less than the whole
                break
        chosen, more, cut = last, None, last.trace.interrupted
        if len(split.validation):
            while True:
                fits.sort(key=lambda f: f.strength)
                errors = np.array([f.errors for f in fits])
                chosen = fits[choose(errors)]
                more = _beyond(fits, errors, chosen, target)
                if cut or more is None or len(fits) >= len(self.strengths) + GROWN:
                    break
                last = fit(more, fits[-1] if more > fits[-1].strength else first)
                cut = last.trace.interrupted
        target.load_state_dict(chosen.state)
        fits.sort(key=lambda f: f.strength)
        end = " (the end of the grid)" if more is not None else ""
        note = f"{phase.name}: strength {chosen.strength:g} of {len(fits)}{end}"
        table = pd.concat([f.trace.history for f in fits], ignore_index=True)
        notes = dict.fromkeys((*chosen.trace.notes, *(last.trace.notes if cut else ())))
        return Trace(table, "still improving" if cut else chosen.trace.state, (*notes, note))


@dataclass(frozen=True)
class _Fit:
    """A fit under one strength."""

    strength: float
    state: dict[str, torch.Tensor]
    errors: list[float]
    trace: Trace


def _beyond(fits: list[_Fit], errors: np.ndarray, chosen: _Fit, target: Any) -> float | None:
    """Return the next strength at the end of the grid at which the best lies, if it does."""
    means = errors.mean(1)
    if len(fits) < 2 or not np.isfinite(means).any():
        return None
    found: float | None = None
    if chosen is fits[-1]:
        found = target.next_strength(fits[-1].strength, fits[-2].strength)
    elif int(np.nanargmin(means)) == 0:
        found = target.next_strength(fits[0].strength, fits[1].strength)
    return found


def _held_out(target: Any, source: Source, split: Split, run: Session) -> list[float]:
    target.eval()
    with torch.no_grad():
        return [
            float(e)
            for batch in source.minibatches(source.pieces(split.validation), run.device)
            for e in target.errors(batch)
        ]
