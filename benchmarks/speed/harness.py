"""Measure the sides of a case in processes of their own that take turns, one lap each.

A *side* is a function of a table's module that runs in one of two environments and calls ``lap`` at
the end of every unit of its work. There it waits, so that no two sides ever work at once, until all
the others have done a lap of theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import RIVALS, Row, machine, same_numbers

WORKER = Path(__file__).with_name("worker.py")
#: One interpreter for chreode, one for its rivals.
PYTHON = {False: Path(sys.executable), True: RIVALS}
Prepared = dict[str, Any]


@dataclass(frozen=True)
class Folders:
    """Where simulated cells are written, and where real ones are read."""

    scratch: Path
    data: Path


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    Attributes
    ----------
    label
        Its name in rows and tables.
    function
        Its function in the table's module: ``function(given, lap)``.
    rival
        Whether it runs in the rivals' environment.
    options
        What it is given beside the settings of the case.
    env
        Environment variables.
    """

    label: str
    function: str
    rival: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes
    ----------
    table
        Module of this package that holds the functions.
    name
        What is varied within the table.
    sides
        What is compared; the order is that of the turns.
    settings
        What all sides share: sizes, seeds, number of laps.
    repeats
        How often the sides are measured in new processes.
    alternate
        Whether sides take turns lap by lap; else one does all its laps before the next begins.
    cost
        About how many seconds it takes on one core.
    """

    table: str
    name: str
    sides: tuple[Side, ...]
    settings: Mapping[str, Any]
    cost: float
    repeats: int = 1
    alternate: bool = True

    def identity(self, threads: int) -> Row:
        """Return what a row must agree with to be the result of this case."""
        described = {
            "table": self.table, "case": self.name, "settings": dict(self.settings),
            "repeats": self.repeats, "threads": threads, "machine": machine(),
            "sides": [
                {"label": s.label, "options": dict(s.options), "env": dict(s.env)} for s in self.sides
            ],
        }  # fmt: skip
        return json.loads(json.dumps(described))


class SideError(Exception):
    """The process of a side failed."""


def missing(
    cases: list[Case], rows: list[Row], threads: int, *, any_code: bool = False
) -> list[Case]:
    """Return the cases that have no row yet with the same settings, machine and, unless `any_code`, code."""
    from chreode.version import code_hash  # not at the top: the rivals' environment has no chreode

    current = {code_hash(), *same_numbers()}

    def done(case: Case) -> bool:
        wanted = case.identity(threads)
        same = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
        return any(any_code or row.get("code") in current for row in same)

    return [case for case in cases if not done(case)]


class Worker:
    """A process that does the laps of one side; it starts with the first."""

    def __init__(self, case: Case, side: Side, given: Prepared, threads: int, log: Path) -> None:
        self.case, self.side, self.log = case, side, log
        self.job = {
            "table": case.table, "function": side.function, "threads": threads,
            "given": {**case.settings, **side.options, **given, "threads": threads},
        }  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def lap(self) -> Row | None:
        """Let it do one lap and return what it says of it, or None where it has ended.

        Raises
        ------
        SideError
            If the process failed.
        """
        self._send(self.job if self.process is None else "go")
        assert self.process is not None
        answer = self.process.stdout.readline()  # type: ignore[union-attr]  # a pipe was asked for
        if not answer:
            raise SideError(f"{self.side.label} failed; see {self.log}.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process: without its parent's word it goes no further."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def _send(self, message: Any) -> None:
        if self.process is None:
            # what is left behind by a killed parent holds its lock until it ends
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [PYTHON[self.side.rival], WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=log, text=True, close_fds=False, env={**os.environ, **self._env()},
                )  # fmt: skip
        self.process.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def _env(self) -> dict[str, str]:
        pools = ("OMP", "MKL", "OPENBLAS", "NUMBA")
        limits = {f"{pool}_NUM_THREADS": str(self.job["threads"]) for pool in pools}
        return {**limits, **self.side.env}


def measure(
    case: Case, given: Prepared, threads: int, log: Path, told: Callable[[str], None]
) -> Row:
    """Return the row of a case: its identity, data, versions, and every lap of every side.

    Parameters
    ----------
    given
        What the table's ``prepare`` returned; its ``sha256`` is kept.
    log
        What the workers write to stderr, and what libraries print.
    told
        Called with a line of progress after each lap.
    """
    runs: dict[str, list[list[Row]]] = {side.label: [] for side in case.sides}
    about: dict[str, Row] = {}
    for repeat in range(case.repeats):
        for group in [case.sides] if case.alternate else [(side,) for side in case.sides]:
            workers = [Worker(case, s, given, threads, log) for s in group]
            for worker in workers:
                runs[worker.side.label].append([])
            try:
                for worker, lap in _turns(workers):
                    label = worker.side.label
                    about.setdefault(label, lap.pop("about", {}))
                    runs[label][-1].append(lap)
                    told(
                        f"  {case.name}, {label}, {lap['name']}: {lap['seconds']:.2f} s"
                        + (f" (repeat {repeat + 1})" if case.repeats > 1 else "")
                    )
            finally:
                for worker in workers:
                    worker.close()
    return {
        **case.identity(threads),
        "sha256": given.get("sha256"),
        "about": about,
        "runs": runs,
    }


def _turns(workers: list[Worker]) -> Iterator[tuple[Worker, Row]]:
    """Yield the workers with a lap each, in turn, until all have ended."""
    active = list(workers)
    while active:
        for worker in list(active):
            lap = worker.lap()
            if lap is None:
                active.remove(worker)
            else:
                yield worker, lap
