"""Refits on resampled series, and on series in which nothing is true: what a confidence comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from ...compute.progress import bar
from ...data.source import Source
from ...errors import warn
from ...learn.ensemble import learn_member, record_of
from ...learn.phase import Phase, Session, Split, Trace
from .path import Path


@dataclass(frozen=True)
class Refits:
    """Learn anew, up to the strength that was chosen, on series drawn with replacement, `n` times.

    And as often where every gene has the path of another series, begun elsewhere: whatever edges that
    has are chance. The module offers ``fresh()`` (new weights for the same data), and
    ``keep_refits(refits, of_chance)``.

    Attributes
    ----------
    n
        Refits, and as many of chance.
    stages
        What is done to each.
    """

    validates: ClassVar[bool] = False
    n: int
    stages: tuple[Phase, ...]

    def learn(self, module: Any, phase: Phase, source: Source, split: Split, run: Session) -> Trace:
        """Leave the edges of every refit in the module; after Ctrl-C those of none."""
        found: dict[str, list[Any]] = {"resampled": [], "exchanged": []}
        try:
            records = self._refit(module, phase, source, split, run, found)
        except KeyboardInterrupt:
            if not run.group.alone:
                raise
            note = "interrupted in the refits; there is no confidence, and forecasts are of one fit"
            warn(f"{phase.name}: {note}.")
            module.drop_refits()
            return Trace(pd.DataFrame(), "still improving", (note,), ())
        module.keep_refits(found["resampled"], found["exchanged"])
        return Trace(pd.DataFrame(), "rested", (), tuple(records[: self.n]))

    def _refit(
        self,
        module: Any,
        phase: Phase,
        source: Source,
        split: Split,
        run: Session,
        found: dict[str, list[Any]],
    ) -> list[dict[str, Any]]:
        """Fill `found`; return what is to be known of each refit, in the same order."""
        records = []
        learned = replace(split, validation=split.validation[:0])
        quiet = replace(run, progress=False, checkpoint=None)
        stages = [_until(stage, module) for stage in self.stages]
        with bar(2 * self.n, phase.name, run.progress) as shown:
            for how, refits in found.items():
                for number in range(self.n):
                    session = replace(quiet, rng=run.rng.child(f"{how} {number}"))
                    drawn, runs = _drawn(how, session, learned), [session] * len(stages)
                    member, traces = learn_member(module.fresh, stages, source, split, runs, drawn)
                    refits.append(member)
                    records.append(record_of(learned, traces))
                    shown.update()
        return records


def _drawn(how: str, run: Session, rows: Split) -> Callable[[Any, Split], tuple[Any, Split]]:
    """Return what draws series anew, the same ones for every stage."""

    def drawn(seen: Any, _: Split) -> tuple[Any, Split]:
        return replace(seen, redrawn=how, generator=run.rng.seed, _made={}), rows

    return drawn


def _until(stage: Phase, module: Any) -> Phase:
    if not isinstance(stage.learner, Path):
        return stage
    return replace(stage, learner=stage.learner.until(float(module.strength), module))
