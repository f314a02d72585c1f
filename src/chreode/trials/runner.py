"""Pieces of work, such as a method under a seed: run here or on Ray, kept on disk, none lost."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, warn
from ..run import Run
from .cluster import on_ray
from .ledger import Ledger
from .trial import Execute, Outcome, Trial, attempt


@dataclass(frozen=True, eq=False)
class Runner:
    """Runs trials; `running` makes it.

    Attributes
    ----------
    execute
        Runs what is not on disk.
    workers
        How many trials run at once.
    ledger
        Keeps what is done.
    """

    execute: Execute
    workers: int
    ledger: Ledger

    def run(self, trials: Sequence[Trial], shown: Any) -> list[Outcome]:
        """Return what became of each trial, in the order given, whichever finished first.

        Those that are on disk are not run again, unless they had failed. The bar `shown` moves on
        with each.
        """
        done = {t.name: Outcome(**kept) for t in trials if (kept := self.ledger.find(t.key))}
        shown.update(len(done))
        todo = [trial for trial in trials if trial.name not in done]
        with closing(self.execute(todo)) as finished:
            for trial, outcome in finished:
                if outcome.unforeseen:
                    warn(f"{trial.name} failed: {outcome.failed}")
                # so that a result is the same now and when it is read again
                row = json.loads(json.dumps(outcome.row))
                done[trial.name] = replace(outcome, row=row)
                self.ledger.add(trial.key, trial.name, done[trial.name])
                shown.update()
        return [done[trial.name] for trial in trials]


def run_of_trials(run: Run, settings: Mapping[str, Any]) -> Run:
    """Return how to compute what many fits do, which cannot share one checkpoint: `into` keeps them."""
    return run.with_(**settings).with_(checkpoint=None)


def require_seeds(seeds: Iterable[Any]) -> tuple[int, ...]:
    """Return the seeds; none, by which nothing would be judged, and what is no seed are refused."""
    found = tuple(int(seed) for seed in seeds)  # an array or a column has other ways than a tuple
    if not found:
        raise ConfigError("There are no seeds: give one at least, as in seeds=(0,).")
    wrong = [seed for seed in found if not 0 <= seed < 2**32]
    if wrong:
        raise ConfigError(f"seeds: {wrong[0]}: expected whole numbers from 0 to 4294967295.")
    return found


def require_one(trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> None:
    """Refuse a bench of which every row failed, by what the first failed of."""
    if all(outcome.failed for outcome in outcomes):
        raise DataError(f"No row could be judged. {trials[0].name}: {outcomes[0].failed}")


@contextmanager
def running(
    shared: Any,
    about: Mapping[str, Any],
    *,
    into: str | Path | None = None,
    ray: bool | int = False,
) -> Iterator[Runner]:
    """Yield a `Runner`; while it is open, Ctrl-C ends everything at once and says what is kept.

    Parameters
    ----------
    shared
        What every trial is given. Workers get it once.
    about
        What all results depend on, JSON-able: data, settings, versions.
    into
        Folder that keeps every result as it comes; the same call goes on where it was cut off.
    ray
        Run on Ray, with so many threads per trial (True: one).

    Raises
    ------
    StoreError
        If the folder holds results of other data, settings or versions.
    CapabilityError, ConfigError
        If Ray is not installed, or no machine of the cluster has so many cores.
    """
    ledger = Ledger(into, about)
    with _naming_what_is_kept(ledger):
        if ray:
            with on_ray(shared, int(ray)) as (execute, workers):
                yield Runner(execute, workers, ledger)
        else:
            with _stopping():
                yield Runner(partial(_in_turn, shared), 1, ledger)


def _in_turn(shared: Any, trials: Sequence[Trial]) -> Generator[tuple[Trial, Outcome], None, None]:
    for trial in trials:
        yield trial, attempt(trial, shared)


class _Stopped(BaseException):
    """Ctrl-C by another name: at a KeyboardInterrupt a fit ends early and counts as done."""


@contextmanager
def _naming_what_is_kept(ledger: Ledger) -> Iterator[None]:
    """Say at Ctrl-C what is kept."""
    try:
        yield
    except (_Stopped, KeyboardInterrupt):
        raise KeyboardInterrupt(f"interrupted; {ledger.summary()}") from None


@contextmanager
def _stopping() -> Iterator[None]:
    """Let Ctrl-C end whatever runs in this process."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _Stopped

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
