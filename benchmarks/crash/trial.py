"""One trial: a job is killed a few times, each time anew from where it was, then left to end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from chreode import StoreError

from ..common import Row
from .fuse import WHEN, Fuse, limit_files
from .jobs import JOBS, Job

Work = Callable[[], None]
#: How a child ends: well, with a `StoreError`, or with anything else.
ENDED, REFUSED, FAILED = 0, 3, 1


@dataclass(frozen=True)
class Clean:
    """An undisturbed run: what it makes, how long it takes, which calls it makes, its largest file."""

    result: str
    seconds: float
    calls: list[str]
    bytes: int


@dataclass(frozen=True)
class Disturbance:
    """What is done to a run: in words, in the child, and when it is killed from outside."""

    how: str
    work: Work
    after: float | None = None

    @property
    def expected(self) -> int:
        """How the child ends: a full disk is refused, all else is a kill."""
        return REFUSED if self.how.startswith("full disk") else -signal.SIGKILL


class Child:
    """A forked process that does some work; a pipe holds what it says, as its disk may be full."""

    def __init__(self, work: Work) -> None:
        self._mouth, mouth = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(mouth, 1)
            os.dup2(mouth, 2)
            _end(work)
        os.close(mouth)

    def ended(self) -> int:
        """Wait for it and return its exit code, or minus the signal."""
        with os.fdopen(self._mouth, errors="replace") as said:
            self.said = said.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def killed(self, after: float) -> int:
        """Kill it after some seconds, unless it ended before, and return how it ended."""
        until = time.perf_counter() + after
        while time.perf_counter() < until:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return self.ended()
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()


def _end(work: Work) -> NoReturn:
    """Work, and end at once: the parent's buffers and handlers are not the child's to close."""
    code = FAILED
    try:
        try:
            work()
            code = ENDED
        except StoreError as error:
            print(error)
            code = REFUSED
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def must_end(work: Work) -> None:
    """Run `work` in a child that has to succeed."""
    child = Child(work)
    if child.ended() != ENDED:
        raise RuntimeError(child.said)


def clean(job: Job, base: Path, place: Path) -> Clean:
    """Return what a job does when nobody disturbs it; twice, as that must be the same."""
    results = set()
    for number in range(2):
        folder = place / f"clean{number}"
        folder.mkdir(parents=True)
        job.prepare(base, folder)

        def work(folder: Path = folder) -> None:
            fuse = Fuse()
            fuse.arm()
            job.run(base, folder)
            calls = json.dumps(fuse.calls)
            (place / "calls").write_text(calls)

        begun = time.perf_counter()
        must_end(work)
        seconds = time.perf_counter() - begun
        results.add(job.read(folder / job.target))
        largest = max(file.stat().st_size for file in folder.rglob("*"))
    if len(results) > 1:
        raise RuntimeError("two undisturbed runs differ")
    return Clean(results.pop(), seconds, json.loads((place / "calls").read_text()), largest)


def trial(number: int, name: str, undisturbed: Clean, base: Path, folder: Path, seed: int) -> Row:
    """Disturb one job a few times, let it end, and return the row."""
    job, rng = JOBS[name], np.random.default_rng([seed, number])
    folder.mkdir()
    job.prepare(base, folder)
    row: Row = {"trial": number, "seed": seed, "job": name, "cuts": [], "lost": []}
    for _ in range(rng.integers(1, 5)):
        cut = _drawn(rng, job, undisturbed, base, folder)
        child = Child(cut.work)
        code = child.ended() if cut.after is None else child.killed(cut.after)
        if code == ENDED:  # before it could be killed
            break
        found = _found(job, base, folder, undisturbed)
        row["cuts"].append({"how": cut.how, "found": found})
        if found.startswith("torn"):
            row["lost"].append(found)
        if code != cut.expected:
            row["lost"].append(f"{cut.how}: exit code {code}: {child.said[-2000:]}")
    child = Child(lambda: job.run(base, folder))
    result = child.said[-2000:] if child.ended() != ENDED else job.read(folder / job.target)
    row["equal"] = result == undisturbed.result
    if not row["equal"]:
        row["lost"].append(f"in the end: {result}")
    row["left"] = [str(f.relative_to(folder)) for f in folder.rglob(".*.writing-*")]
    return row


def _found(job: Job, base: Path, folder: Path, undisturbed: Clean) -> str:
    try:
        return job.found(base, folder, undisturbed.result)
    except Exception as error:  # noqa: BLE001 (whatever cannot be read is a loss)
        return f"torn: {error!r}"


def _drawn(
    rng: np.random.Generator, job: Job, undisturbed: Clean, base: Path, folder: Path
) -> Disturbance:
    kind = rng.choice(["time", "call", "full disk"], p=[0.45, 0.45, 0.1])
    if kind == "time":
        seconds = float(rng.uniform(0, undisturbed.seconds))
        return Disturbance(f"after {seconds:.3f} s", lambda: job.run(base, folder), seconds)
    if kind == "call":
        at, when = int(rng.integers(len(undisturbed.calls))), str(rng.choice(WHEN))

        def burn() -> None:
            Fuse(at, when).arm()
            job.run(base, folder)

        return Disturbance(f"{when} call {at}, {undisturbed.calls[at]}", burn)
    size = int(rng.integers(undisturbed.bytes))

    def fill() -> None:
        limit_files(size)
        job.run(base, folder)

    return Disturbance(f"full disk from {size} bytes on", fill)
