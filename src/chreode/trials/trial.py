"""One piece of work, such as a method under a seed, and what becomes of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ..compute.threads import pinned
from ..errors import ChreodeError
from .digest import digest

#: What a trial returns: values that JSON can hold, and arrays.
Result: TypeAlias = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Trial:
    """One piece of work.

    Attributes
    ----------
    name
        What it is called, once among the trials that run together.
    call
        What to do with what all trials share. Ray pickles it, so it should hold no data of any size.
    about
        What its result depends on beside what all trials share, JSON-able.
    """

    name: str
    call: Callable[[Any], Result]
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name of its result on disk: the same work has the same, whatever it is called."""
        return digest(dict(self.about))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a trial.

    Attributes
    ----------
    row, arrays
        What it returned; empty if it failed.
    failed
        Why it failed, or "".
    seconds
        How long it took.
    attempts
        How often it was begun: a worker that dies is replaced.
    unforeseen
        Whether it failed of something else than an error of `chreode.errors`.
    """

    row: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    failed: str = ""
    seconds: float = 0.0
    attempts: int = 1
    unforeseen: bool = False

    @property
    def note(self) -> str:
        """What a table says of a failure; "" without one."""
        return f"failed: {self.failed.removesuffix('.')}" if self.failed else ""


#: Runs trials and yields what became of each as it finishes.
Execute: TypeAlias = Callable[[Sequence[Trial]], Generator[tuple[Trial, Outcome], None, None]]


def attempt(trial: Trial, shared: Any, threads: int | None = None) -> Outcome:
    """Run a trial in this process; a failure is part of what is returned."""
    start = time.perf_counter()
    try:
        with pinned(threads or torch.get_num_threads()):
            row, arrays = trial.call(shared)
    except ChreodeError as error:
        return Outcome(failed=str(error), seconds=time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001 (of another library, or a bug: the other trials go on)
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (
            f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        )
        return Outcome(failed=reason, seconds=time.perf_counter() - start, unforeseen=True)
    return Outcome(row, arrays, seconds=time.perf_counter() - start)
