"""Several fits of one form: restarts, refits on rows drawn anew, folds; the best, or all beside the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..compute.convergence import worst
from ..compute.progress import bar
from ..data.source import Source
from ..errors import FitError, warn
from ..module import Module
from .phase import Phase, Session, Split, Trace


@dataclass(frozen=True)
class Ensemble:
    """Learn `n` members, each from new weights and under a seed of its own.

    The module offers ``fresh()`` (new weights), and keeps the members in ``members``, a module list of as
    many; what the others of them tell, such as a confidence, it takes in ``keep_members(others)``. Where
    the best of them becomes the model, the first begins from the weights that the model has, which may be
    those of an earlier fit. Members keep no checkpoint.

    Attributes
    ----------
    n
        Members.
    stages
        What is done to each.
    rows
        What each learns from: all rows; as many drawn with replacement; or all folds but its own, which
        it is validated on.
    best
        (member, traces of its stages) → a number. The member for which it is largest becomes the model;
        it is ``criterion`` in the history; NaN is never the best. None: the model stays what earlier phases
        made of it.

    References
    ----------
    Bootstrap: Efron (1979), Annals of Statistics 7:1; folds: Stone (1974), JRSS B 36:111.
    """

    n: int
    stages: tuple[Phase, ...]
    rows: Literal["all", "bootstrap", "folds"] = "all"
    best: Callable[[Any, Sequence[Trace]], float] | None = None

    @property
    def validates(self) -> bool:
        """Whether rows should be held out for all members alike."""
        return self.rows != "folds" and any(stage.learner.validates for stage in self.stages)

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Fill ``phase.part`` and its members in place; Ctrl-C keeps the members that are whole.

        Raises
        ------
        FitError
            If the criterion is NaN for every member.
        """
        target = phase.target(module)
        found: list[tuple[Any, list[Trace]]] = []
        records: list[dict[str, Any]] = []
        notes: list[str] = []
        quiet = replace(run, progress=False, checkpoint=None)
        with bar(self.n, phase.name, run.progress) as shown:
            try:
                for number in range(self.n):
                    member_run = replace(quiet, rng=run.rng.child(f"member {number}"))
                    some = self._split(number, split, run, member_run)
                    stages = [member_run.for_phase(i) for i in range(len(self.stages))]
                    begun = partial(_begun, target) if self.best and not number else target.fresh
                    found.append(learn_member(begun, self.stages, source, some, stages))
                    records.append(record_of(some, found[-1][1]))
                    shown.update()
            except KeyboardInterrupt:
                if not found or not run.group.alone:
                    raise
                notes.append(f"interrupted in member {len(found)}; those before are kept")
                warn(f"{phase.name}: {notes[-1]}.")
        values = [self.best(*one) if self.best else np.nan for one in found]
        if self.best and np.isnan(values).all():
            raise FitError(
                f"{phase.name}: no member can be chosen, as the criterion of all is not a number."
            )
        chosen = int(np.nanargmax(values)) if self.best else 0
        self._keep(target, [member for member, _ in found], chosen)
        tables = []
        for number, ((_, traces), value) in enumerate(zip(found, values, strict=True)):
            table = pd.concat([t.history for t in traces], ignore_index=True).assign(member=number)
            if self.best:
                table.loc[table.index[-1], "criterion"] = value
            tables.append(table)
        kept = found[chosen : chosen + 1] if self.best else found
        if self.best:
            notes.append(f"{phase.name}: member {chosen} is the best of {len(found)}")
        kept_notes = dict.fromkeys(note for _, traces in kept for t in traces for note in t.notes)
        state = worst(t.state for _, traces in kept for t in traces)
        cut = len(found) < self.n
        table = pd.concat(tables, ignore_index=True)
        return Trace(
            table, "still improving" if cut else state, (*kept_notes, *notes), tuple(records)
        )

    def _split(self, number: int, split: Split, run: Session, member_run: Session) -> Split:
        """Return the rows of a member."""
        if self.rows == "bootstrap":
            drawn = member_run.rng.numpy("bootstrap").choice(split.train, len(split.train))
            return replace(split, train=np.sort(drawn))
        if self.rows == "folds":
            shuffled = run.rng.numpy("folds").permutation(split.train)
            fold = np.sort(np.array_split(shuffled, self.n)[number])
            return Split(np.setdiff1d(split.train, fold), fold, named=True)
        return split

    def _keep(self, target: Any, members: Sequence[Any], chosen: int) -> None:
        """Store the members, and let the best one be the model; slots that have none hold the best too."""
        state = members[chosen].state_dict()
        for number, slot in enumerate(target.members):
            slot.load_state_dict(members[number].state_dict() if number < len(members) else state)
        if self.best:
            target.load_state_dict({**target.state_dict(), **_own(state)})
        others = [m for number, m in enumerate(members) if number != chosen or not self.best]
        target.keep_members(others)


def learn_member(
    fresh: Callable[[], Any],
    stages: Sequence[Phase],
    source: Source,
    split: Split,
    runs: Sequence[Session],
    redrawn: Callable[[Any, Split], tuple[Any, Split]] | None = None,
) -> tuple[Any, list[Trace]]:
    """Return one member, learned, and the traces of its stages.

    Parameters
    ----------
    fresh
        Returns its new weights.
    runs
        How each stage is run.
    redrawn
        Returns what a stage sees in place of what it would see.

    Raises
    ------
    KeyboardInterrupt
        Where Ctrl-C ended a stage: half a member is none.
    """
    with runs[0].rng.scope("init"):
        member = fresh().to(runs[0].device)
    runs[0].group.copy_from_first(member.state_dict().values())
    traces: list[Trace] = []
    for number, (stage, run) in enumerate(zip(stages, runs, strict=True)):
        seen, some = stage.seen(member, source, split, run)
        seen, some = redrawn(seen, some) if redrawn else (seen, some)
        member.to("cpu")  # where cells are, and in double precision too
        with run.rng.scope("prepare", number), torch.no_grad():
            stage.target(member).prepare(seen, some.train, run.rng)
        member.to(run.device)
        traces.append(stage.learner.learn(member, stage, seen, some, run))
        if traces[-1].interrupted:
            raise KeyboardInterrupt
    return member.eval(), traces


def record_of(split: Split, traces: Sequence[Trace]) -> dict[str, Any]:
    """Return what is to be known of one member."""
    return {
        "cells": len(split.train), "validation_cells": len(split.validation),
        "state": worst(t.state for t in traces),
        "notes": [*dict.fromkeys(note for t in traces for note in t.notes)],
    }  # fmt: skip


def _begun(target: Any) -> Any:
    """Return a member that begins from the weights of the model."""
    member = target.fresh()
    member.load_state_dict({**member.state_dict(), **_own(target.state_dict())})
    return member


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a module without those of its members."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("members.")}


def found_again(
    factors: Float[Tensor, "g k"], others: Sequence[Float[Tensor, "g _"]]
) -> Float[Tensor, " k"]:
    """Return how well each factor is found again: its mean absolute correlation in other fits, 0 to 1.

    The factors of two fits are matched one to one, so that the sum over all is largest. A factor that is
    constant, as one that was switched off, is found nowhere.

    Parameters
    ----------
    factors
        Loadings of one fit, features x factors.
    others
        Those of the others, which may have other numbers of factors; NaN if there are none.

    References
    ----------
    Matching: Kuhn (1955), Naval Research Logistics Quarterly 2:83. As a measure of which factors are real:
    Kotliar et al. (2019), eLife 8:e43803.

    Examples
    --------
    >>> one = torch.eye(4)[:, :2]
    >>> found_again(one, [-one.flip(1)])
    tensor([1., 1.])
    """
    mine = _standard(factors)
    total = torch.zeros_like(mine[0])
    for other in others:
        correlation = (mine.T @ _standard(other)).abs()
        rows, columns = linear_sum_assignment(-correlation.cpu().numpy())
        total[rows] += correlation[rows, columns]
    return total / len(others)


def _standard(factors: Float[Tensor, "g k"]) -> Float[Tensor, "g k"]:
    centred = factors - factors.mean(0)
    return centred / centred.norm(dim=0).clamp_min(torch.finfo(centred.dtype).tiny)
