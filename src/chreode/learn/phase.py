"""A fit is a list of phases on one split; each hands a part of the module to a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch

from .. import store
from ..compute.convergence import State
from ..compute.processes import Group
from ..compute.rng import Rng
from ..data.sampler import Sampler
from ..data.source import Source
from ..errors import warn
from ..module import Module


@dataclass(frozen=True)
class Split:
    """Row numbers to learn from and to validate on.

    Attributes
    ----------
    train, validation
        Row numbers, sorted.
    named
        Whether the user named the rows to validate on, which are then never learned from.
    """

    train: np.ndarray
    validation: np.ndarray
    named: bool = False

    def whole(self) -> Split:
        """Return all rows to learn from, if those held out were drawn, and have done their work."""
        if self.named:
            return self
        rows = np.sort(np.concatenate([self.train, self.validation]))
        return Split(rows, self.validation[:0])


@dataclass(frozen=True)
class Session:
    """How a fit is run: nothing here changes what is learned, except precision.

    Attributes
    ----------
    rng
        Source of named random streams.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        ``"fp32"``, or ``"bf16"`` for autocast.
    compile
        Use `torch.compile` on the loss.
    progress
        Show bars (None: on a terminal).
    checkpoint
        File to resume from and to write after every epoch, or None.
    fingerprint
        What a checkpoint must agree with, by part (see `learn.fingerprint`).
    group
        The processes that share the fit.
    mapping
        Whether only parameters of categories that are new to an older fit learn. All else stays as it was
        fitted, dropout and batch norm included.
    """

    rng: Rng
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    progress: bool | None = None
    checkpoint: Path | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    group: Group = field(default_factory=Group)
    mapping: bool = False

    def for_phase(self, number: int) -> Session:
        """Return the run of one phase: a stream and a checkpoint of its own."""
        file = _state(self.checkpoint, number) if self.checkpoint else None
        return replace(self, rng=self.rng.child(f"phase{number}"), checkpoint=file)


@dataclass(frozen=True)
class Trace:
    """What a learner reports.

    Attributes
    ----------
    history
        A row per epoch.
    state
        How it stood when it stopped.
    notes
        For the reader.
    members
        Of each member that was learned, in order: ``cells``, ``validation_cells``, ``state`` and ``notes``.
        None where the learner keeps no members.
    """

    history: pd.DataFrame
    state: State
    notes: tuple[str, ...] = ()
    members: tuple[Mapping[str, Any], ...] | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return was_interrupted(self.notes)


def was_interrupted(notes: Iterable[str]) -> bool:
    """Return whether the notes of a fit say that Ctrl-C ended a part of it."""
    return any(note.startswith("interrupted") for note in notes)


@runtime_checkable
class Learner(Protocol):
    """Moves the parameters of a part; knows steps and when to rest, no biology."""

    @property
    def validates(self) -> bool:
        """Whether rows should be held out for it."""
        ...

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train ``phase.part`` of `module` in place."""
        ...


@dataclass(frozen=True)
class Phase:
    """One stage of a fit.

    Attributes
    ----------
    learner
        How parameters are moved.
    part
        Dotted name of the submodule that learns; the rest stays as it is. Empty: all of it.
    data
        How minibatches are drawn (None where the learner reads everything in order).
    name
        What its rows of the history are called.
    view
        What the part sees in place of source and split, such as what an earlier phase has made of the
        cells: (module, source, split, run) → a source, of cells or of series, and a split.
    lasts
        Option of the model that says how long it lasts, if one does.
    """

    learner: Learner
    part: str = ""
    data: Sampler | None = None
    name: str = field(default="fit")
    view: Callable[[Any, Source, Split, Session], tuple[Any, Split]] | None = None
    lasts: str = ""

    def target(self, module: Module) -> Any:
        """Return the submodule that learns."""
        return module.get_submodule(self.part)

    def seen(self, module: Module, source: Source, split: Split, run: Session) -> tuple[Any, Split]:
        """Return what the part sees."""
        return self.view(module, source, split, run) if self.view else (source, split)


def run_phases(
    module: Module, phases: Sequence[Phase], source: Source, split: Split, run: Session
) -> list[Trace]:
    """Prepare and learn each phase in turn, in place."""
    traces: list[Trace] = []
    for number, phase in enumerate(phases):
        seen, some = phase.seen(module, source, split, run)
        module.to("cpu")  # where cells are, and in double precision too
        with run.rng.scope("prepare", number), torch.no_grad():
            phase.target(module).prepare(seen, some.train, run.rng)
        module.to(run.device)
        traces.append(phase.learner.learn(module, phase, seen, some, run.for_phase(number)))
        if traces[-1].interrupted:
            # what follows begins from less than the whole: it keeps no state
            run = replace(run, checkpoint=None)
            for following in phases[number + 1 : number + 2]:
                warn(f"{following.name}, the next stage, begins; Ctrl-C ends that one too.")
    return traces


def unfinished(phases: Sequence[Phase], traces: Sequence[Trace], options: Any) -> list[str]:
    """Return a note on every stage that was still improving: which option to raise, and what it is now."""
    found = []
    for phase, trace in zip(phases, traces, strict=True):
        cut_short = any(note.endswith(" kept") for note in trace.notes)
        if phase.lasts and trace.state == "still improving" and not cut_short:
            now = getattr(options, phase.lasts)
            now = len(trace.history) if now is None else now
            found.append(
                f"the stage {phase.name} was still improving: raise {phase.lasts} (now {now})"
            )
    return found


def forget(checkpoint: Path, phases: Sequence[Phase]) -> None:
    """Remove the states that a fit of these phases has kept, and their folder if nothing else is in it."""
    for number, phase in enumerate(phases):
        if phase.learner.validates:  # the others keep none
            _remove(_state(checkpoint, number))
            _remove_if_empty(checkpoint)


def _state(folder: Path, number: int) -> Path:
    return folder / f"phase{number}.safetensors"


def _remove(state: Path) -> None:
    """Remove the state of a phase: a file, or a folder of its steps' states, which may be such folders."""
    if not state.is_dir():
        store.remove(state)
        return
    number = 0
    while (step := _state(state, number)).exists():
        _remove(step)
        number += 1
    _remove_if_empty(state)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def join_histories(traces: Sequence[Trace], names: Sequence[str]) -> pd.DataFrame:
    """Return one table with a column `phase`."""
    tables = [t.history.assign(phase=n) for t, n in zip(traces, names, strict=True)]
    return pd.concat(tables, ignore_index=True)


def member_records(traces: Iterable[Trace]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the entry of a provenance on the members of a fit; none, where no learner keeps members."""
    kept = [trace.members for trace in traces if trace.members is not None]
    return {"members": [record for records in kept for record in records]} if kept else {}
