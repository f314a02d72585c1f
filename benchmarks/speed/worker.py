"""The process of one side: reads its job from stdin, does it, and tells of every lap on stdout."""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Stopwatch

PACKAGES = (
    "chreode", "scvi-tools", "scib-metrics", "scanpy", "torch", "anndata", "h5py", "numpy", "scipy",
    "lightning", "jax",
)  # fmt: skip


class Lap:
    """Called at the end of a unit of work: tells what it took, and waits for the next turn.

    Work between `stop` and the call is not counted.
    """

    def __init__(self, replies: TextIO) -> None:
        self.replies, self.watch = replies, Stopwatch()
        self.about: dict[str, Any] | None = {"versions": _versions()}
        self.stopped = False
        self.restart()

    def __call__(self, name: str, **facts: Any) -> None:
        """End the lap `name`; `facts` go into the row."""
        self.stop()
        told = {"name": name, **self.watch.times(), **self.memory, **facts}
        if self.about is not None:
            told, self.about = {**told, "about": self.about}, None
        self.reply(told)
        if not sys.stdin.readline():
            os._exit(0)  # the parent is gone: past any handler of the library under way
        self.restart()

    def stop(self) -> None:
        """Count no further until the next lap."""
        if not self.stopped:
            self.watch.stop()
            self.memory = _memory()
            self.stopped = True

    def reply(self, message: Any) -> None:
        self.replies.write(json.dumps(message) + "\n")
        self.replies.flush()

    def restart(self) -> None:
        """Forget what the lap took so far."""
        _forget_peak()
        self.stopped = False
        self.watch.start()


def _versions() -> dict[str, str]:
    found = {d.name: d.version for d in distributions()}
    return {name: found[name] for name in PACKAGES if name in found}


def _memory() -> dict[str, float]:
    """Return resident memory, and its highest since the last lap, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS")))
    kib = {key: int(value.split()[0]) for key, value in table.items()}
    return {"resident_mib": kib["VmRSS"] / 1024, "peak_mib": kib["VmHWM"] / 1024}


def _forget_peak() -> None:
    # where this is refused, peaks are those since the process began
    with suppress(PermissionError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    job = json.loads(sys.stdin.readline())
    # the environment's limits of threads do not bind JAX
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job["threads"] :])
    lap = Lap(replies)
    table = importlib.import_module(f"benchmarks.speed.{job['table']}")
    getattr(table, job["function"])(job["given"], lap)
    lap.reply(None)


if __name__ == "__main__":
    main()
