"""Medians, ratios and their intervals over laps; and how tables tell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common import QUIET, Row

DRAWS = 10_000


@dataclass(frozen=True)
class Ratio:
    """How many times as much the rival needs, with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def plain(self) -> str:
        """Return it without the interval."""
        return f"{_digits(self.value)} x"

    def __str__(self) -> str:
        told = self.plain()
        if self.low == self.high:  # one lap: no interval
            return told
        return f"{told} ({_digits(self.low)} to {_digits(self.high)})"


def ratio(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> Ratio:
    """Return the ratio of medians; laps that followed each other are drawn together.

    Raises
    ------
    ValueError
        If the sides have other numbers of laps.
    """
    a, b = np.asarray(theirs, float), np.asarray(ours, float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} laps against {len(b)}: these are not of one case.")
    drawn = np.random.default_rng(seed).integers(len(a), size=(DRAWS, len(a)))
    found = np.median(a[drawn], 1) / np.median(b[drawn], 1)
    low, high = np.quantile(found, [0.025, 0.975])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def laps(row: Row, label: str, name: str, key: str = "seconds") -> np.ndarray:
    """Return what the laps of a name say of `key`, of all repeats in order."""
    return np.array([lap[key] for run in row["runs"][label] for lap in run if lap["name"] == name])


def spread(values: np.ndarray) -> str:
    """Tell the median, lowest and highest."""
    low, middle, high = values.min(), np.median(values), values.max()
    if low == high:
        return _digits(middle)
    return f"{_digits(middle)} ({_digits(low)} to {_digits(high)})"


def median(values: np.ndarray) -> str:
    """Tell the median alone."""
    return _digits(float(np.median(values)))


def others(row: Row, names: Iterable[str]) -> float:
    """Return how many cores others kept busy, over the laps of these names of all sides."""
    wanted = set(names)
    timed = [
        (lap["seconds"], lap["foreign_cores"])
        for runs in row["runs"].values() for run in runs for lap in run if lap["name"] in wanted
    ]  # fmt: skip
    seconds, cores = np.array(timed).T
    return float(seconds @ cores / seconds.sum())


def mark(row: Row, *names: str) -> str:
    """Return a dagger if others kept more than a tenth of a core busy (or nobody knows)."""
    return "" if others(row, names) <= QUIET else " †"


def named(row: Row, label: str) -> str:
    """Return a side's name; with a warning where its kernel could not be had."""
    last = row["runs"][label][-1][-1]
    lacking = "kernel" in label and not last["kernel"]
    return f"{label} (no kernel here)" if lacking else label


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table: the first column left, the others right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _digits(value: float) -> str:
    """Write a number with three digits that matter, and thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.{2 if value < 10 else 1}f}"
