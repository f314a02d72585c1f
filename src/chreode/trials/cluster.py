"""Trials on Ray: on the cores of this machine or of a cluster; a worker that dies is replaced."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from anndata import AnnData

from ..data import read
from ..data.files import OnDisk
from ..data.read import Data
from ..data.subset import is_in_memory
from ..errors import CapabilityError, ConfigError, counted
from .trial import Execute, Outcome, Trial, attempt

#: Further attempts at a trial whose worker died.
RETRIES = 2


@contextmanager
def on_ray(shared: Any, threads: int) -> Iterator[tuple[Execute, int]]:
    """Yield what runs trials on Ray, and how many of them run at once.

    It uses the Ray of this process if there is one, else joins the cluster of RAY_ADDRESS, else starts
    one on this machine, for as long as this is open. Every trial gets `threads` cores and, where the
    cluster has GPUs, one of them.

    Raises
    ------
    CapabilityError
        If Ray is not installed.
    ConfigError
        If no machine of the cluster has so many cores.
    """
    try:
        import ray
    except ImportError as error:
        raise CapabilityError("Ray is not installed: pip install 'chreode[tune]'.") from error
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers otherwise
        address = os.environ.get("RAY_ADDRESS", "local")
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        workers = sum(int(machine.get("CPU", 0)) // threads for machine in machines)
        if not workers:
            most = max(int(machine.get("CPU", 0)) for machine in machines)
            raise ConfigError(
                f"A trial of {counted(threads, 'thread')} does not fit: Ray's largest machine has {most}."
            )
        gpus = int(any(machine.get("GPU") for machine in machines))
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(attempt)
        given = ray.put(shared)
        yield lambda trials: _execute(trials, lambda t: task.remote(t, given, threads)), workers
    finally:
        if ours:
            ray.shutdown()


def _execute(trials: Sequence[Trial], begin: Any) -> Generator[tuple[Trial, Outcome], None, None]:
    """Run all trials, and those whose process dies again: Ray's own retries would not be counted."""
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    running = {begin(trial): (trial, 1) for trial in trials}
    try:
        while running:
            (done,), _ = ray.wait(list(running))
            trial, attempts = running.pop(done)
            try:
                outcome = ray.get(done)
            except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as death:
                if attempts <= RETRIES:
                    running[begin(trial)] = (trial, attempts + 1)
                    continue
                cause = type(death).__name__.removesuffix("Error")
                reason = f"its worker died {counted(attempts, 'time')} ({cause}): killed, or out of memory"
                outcome = Outcome(failed=reason)
            # copied, because what Ray gives is read-only and fills its store as long as it is held
            arrays = {name: array.copy() for name, array in outcome.arrays.items()}
            yield trial, replace(outcome, attempts=attempts, arrays=arrays)
    finally:
        for left in running:
            ray.cancel(left, force=True)


def portable(data: Data | str | Path) -> Data | Path:
    """Return what workers are given: an AnnData or some cells in memory, or a path that each opens.

    Raises
    ------
    ConfigError
        If it is something else: an open file or a MuData cannot be sent.
    """
    if isinstance(data, str | Path):
        return Path(data).resolve()
    if isinstance(data, OnDisk) and is_in_memory(data):
        return data
    if not isinstance(data, AnnData) or data.isbacked:
        raise ConfigError(
            "Ray sends an AnnData that is in memory, and no open file or MuData. Give the path of a "
            "file that every worker sees."
        )
    return data


def opened(data: Data | Path) -> Data:
    """Return the cells that `portable` made ready; a worker reads a file once."""
    return _read(data, data.stat().st_mtime_ns) if isinstance(data, Path) else data


@lru_cache(maxsize=1)
def _read(path: Path, written: int) -> Data:  # noqa: ARG001 (another time of writing: another file)
    return read.read(path)
