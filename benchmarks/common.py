"""What every benchmark shares: rows kept as JSON lines, a stopwatch, the machine, one run at a time.

Imported in the rivals' environment too, so it needs the standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
#: The interpreter of the rivals' environment.
RIVALS = ROOT / ".venv-rivals" / "bin" / "python"
#: Cores that others may keep busy during a timing that is called undisturbed.
QUIET = 0.1
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def append(row: Row, path: Path, same: Sequence[str] = ("case",)) -> None:
    """Add a row and the hash of the code that made it, by a rename: a run killed here loses no row.

    An older row that agrees with it in all of `same` gives way to it, if the new one has these keys.
    """
    from chreode.version import code_hash  # not at the top: the rivals' environment has no chreode

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    identified = all(key in row for key in same)
    kept = [r for r in read(path) if not identified or any(r.get(k) != row[k] for k in same)]
    lines = [json.dumps(r) for r in [*kept, {**row, "code": code_hash()}]]
    aside.write_text("\n".join(lines) + "\n")
    aside.replace(path)


def same_numbers() -> dict[str, str]:
    """Return hashes of older code that gives the numbers of today's, and what has changed since.

    A hand keeps them: a message that is mended does not make days of measuring stale. Who changes what
    a row depends on empties the file.
    """
    return json.loads((ROOT / "benchmarks" / "same_numbers.json").read_text())


def spread(values: Sequence[float]) -> str:
    """Return the mean of some seeds and, where they differ, the lowest and the highest; NaN is left out."""
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return "–"
    told = f"{fmean(finite):.3g}"
    low, high = min(finite), max(finite)
    return told if low == high else f"{told} ({low:.3g} to {high:.3g})"


def still_improving(row: Row) -> bool:
    """Return whether a fit was when it stopped; rows of before tell whether it was not."""
    return row["state"] == "still improving" if "state" in row else not row["converged"]


class Stopwatch:
    """Wall and processor seconds, and how many cores others kept busy meanwhile.

    The last tells a timing taken alone from one that is worth nothing; NaN where there is no
    /proc/stat.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._start = time.perf_counter(), time.process_time(), _busy_seconds()

    def stop(self) -> None:
        wall, own, busy = self._start
        self.seconds = time.perf_counter() - wall
        self.cpu_seconds = time.process_time() - own
        foreign = _busy_seconds() - busy - self.cpu_seconds
        self.foreign_cores = max(0.0, foreign / self.seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def own(self) -> float:
        """Return the share of a core that was its own: what others left of it."""
        return min(1.0, self.cpu_seconds / self.seconds)

    def times(self) -> dict[str, float]:
        names = ("seconds", "cpu_seconds", "foreign_cores")
        return {name: getattr(self, name) for name in names}


def _busy_seconds() -> float:
    try:
        ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Name the processor and count its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """Let no other benchmark of this checkout run meanwhile; children hold the lock as well."""
    path = ROOT / ".cache" / "benchmarks" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("Another run, or a job it left behind, is under way; two at once spoil both.")
        yield


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Return lines that a page shows on request; without the blank lines Markdown renders no table."""
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def write_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers of section `name`.

    Raises
    ------
    ValueError
        If the page has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{page} has no section between {begin} and {end}.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
