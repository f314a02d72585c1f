"""A score with its bootstrap, and the checks on what scores are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Shaped
from pandas.api.extensions import ExtensionArray

from ..config.arguments import checked
from ..errors import ConfigError, DataError, counted

Labels: TypeAlias = Sequence[object] | np.ndarray | pd.Series | ExtensionArray
"""One value per cell; NaN, None, `""` and -1 mean that there is none."""

Statistic: TypeAlias = Callable[[Int[np.ndarray, " b"]], float]
"""A score as a function of how often each cell is counted."""


#: The span of most metrics.
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Score:
    """A number computed over cells, and the way to compute it again over a resample of them.

    The statistic sees only how often each cell is counted. Whatever is dear to compute
    (neighbours, clusterings, distances) is held fixed, so a bootstrap costs milliseconds and
    speaks of the cells sampled, not of the seed of the clustering.

    Attributes
    ----------
    value
        The score over all cells, each counted once; NaN where it is undefined.
    n_cells
        Number of cells that a resample draws from.
    statistic
        The score given how often each of the cells is counted.
    excluded
        How many of the cells never count, having no label.
    reason
        Why the value is NaN; empty where there is one.
    span
        The least and the greatest value that there can be.

    Examples
    --------
    >>> values = np.array([0.0, 1.0, 1.0, 1.0])
    >>> score = Score.of(lambda counts: float(np.average(values, weights=counts)), 4)
    >>> score.value, score.resampled(np.array([0, 0, 0, 1]))
    (0.75, 0.25)
    """

    value: float
    n_cells: int
    statistic: Statistic = field(repr=False, compare=False)
    excluded: int = 0
    reason: str = ""
    span: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    @checked
    def of(
        cls,
        statistic: Statistic,
        n_cells: int,
        span: tuple[float, float] = (-math.inf, math.inf),
    ) -> Score:
        """Evaluate `statistic` with every cell counted once."""
        return cls(statistic(np.ones(n_cells, dtype=np.int64)), n_cells, statistic, span=span)

    @classmethod
    @checked
    def undefined(cls, reason: str, n_cells: int) -> Score:
        """Hold a NaN and the reason for it."""
        return cls(float("nan"), n_cells, lambda _: float("nan"), reason=reason)

    @checked
    def resampled(self, rows: Int[np.ndarray, " r"]) -> float:
        """Compute the score over the cells `rows`, which may repeat; NaN where undefined there."""
        return self.statistic(np.bincount(rows, minlength=self.n_cells))

    @checked
    def within(self, kept: Bool[np.ndarray, " n"]) -> Score:
        """Turn a score of the `kept` cells into one that is resampled over all of them."""
        statistic = self.statistic
        return replace(
            self,
            n_cells=len(kept),
            statistic=lambda counts: statistic(counts[kept]),
            excluded=int((~kept).sum()),
        )

    @checked
    def draws(self, n: int = 200, seed: int = 0) -> Float[np.ndarray, " n"]:
        """Bootstrap over cells: the score of `n` resamples with replacement, centred on `value`.

        A resample holds cells twice, which lifts some scores (NMI, explained variance) whatever
        the embedding; the mean of the draws is therefore moved to the value. Near the end of the span
        some then lie beyond it.

        The same seed draws the same cells for every score of equally many cells, so that
        embeddings of the same cells can be compared draw by draw.

        Raises
        ------
        ConfigError
            `n` below 1.
        """
        if n < 1:
            raise ConfigError(f"n={n}: expected n >= 1.")
        if np.isnan(self.value):
            return np.full(n, np.nan)
        rng = np.random.default_rng(seed)
        found = [self.resampled(rng.integers(self.n_cells, size=self.n_cells)) for _ in range(n)]
        return np.array(found) - np.nanmean(found) + self.value

    @checked
    def interval(self, n: int = 200, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return the interval that holds the share `level` of the `draws`, cut at the ends of the span.

        Raises
        ------
        ConfigError
            `n` below 1, or `level` outside (0, 1).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level={level}: expected 0 < level < 1.")
        if np.isnan(self.value):
            return float("nan"), float("nan")
        return ends(self.draws(n, seed), self.span, level)


def ends(
    draws: Float[np.ndarray, " n"], span: tuple[float, float], level: float = 0.95
) -> tuple[float, float]:
    """Return the interval that holds the share `level` of the draws, cut at the ends of the span.

    And their mean, the value that they are centred on, beyond which of few cells hardly any may lie.

    Examples
    --------
    >>> ends(np.array([-0.25, 0.0, 0.25]), (0.0, 1.0), level=0.5)
    (0.0, 0.125)
    """
    tail, centre = (1 - level) / 2, np.nanmean(draws)
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    low, high = np.clip([min(low, centre), max(high, centre)], *span)
    return float(low), float(high)


def combined(parts: Sequence[tuple[float, Score]]) -> Score:
    """Weight scores of the same cells into one; undefined where any of them is.

    Examples
    --------
    >>> one, zero = (Score.of(lambda _, v=v: v, 3) for v in (1.0, 0.0))
    >>> combined([(0.6, one), (0.4, zero)]).value
    0.6
    """
    n_cells = parts[0][1].n_cells
    reasons = [score.reason for _, score in parts if score.reason]
    if reasons:
        return Score.undefined(" ".join(reasons), n_cells)
    span = spanned([(w, score.span) for w, score in parts])
    return Score.of(lambda counts: sum(w * s.statistic(counts) for w, s in parts), n_cells, span)


def spanned(parts: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, float]:
    """Return the least and the greatest value of a weighted sum."""
    return sum(w * low for w, (low, _) in parts), sum(w * high for w, (_, high) in parts)


def mean_over_labels(values: Float[np.ndarray, " b"], labels: Int[np.ndarray, " b"]) -> Score:
    """Average cells within labels, then labels; cells that are NaN do not count. Values are from 0 to 1.

    Every label weighs the same, however many cells it has; one without a counted cell is left
    out.

    Examples
    --------
    >>> mean_over_labels(np.array([1.0, 0.0, 0.0, np.nan]), np.array([0, 1, 1, 2])).value
    0.5
    """
    counted = ~np.isnan(values)
    cells, labels, values = np.flatnonzero(counted), labels[counted], values[counted]

    def statistic(counts: Int[np.ndarray, " b"]) -> float:
        weights = counts[cells]
        size = np.bincount(labels, weights)
        mean = np.bincount(labels, weights * values)[size > 0] / size[size > 0]
        return float(mean.mean()) if len(mean) else float("nan")

    return Score.of(statistic, len(counted), SHARE)


def column(values: Labels, role: str, n_cells: int) -> Shaped[np.ndarray, " b"]:
    """Check that there is one value per cell, and give them as an array of objects.

    Raises
    ------
    DataError
        Not one value per cell.
    """
    array = np.asarray(values, dtype=object)
    if array.shape != (n_cells,):
        raise DataError(
            f"{role} has shape {array.shape}, beside an array of {counted(n_cells, 'cell')}: "
            f"give one {role} per cell, in the same order."
        )
    return array


def missing(values: Shaped[np.ndarray, " b"]) -> Bool[np.ndarray, " b"]:
    """Tell which cells have no value: NaN, None, the empty string, or the code -1.

    Examples
    --------
    >>> missing(np.array(["B", None, "", float("nan"), -1], dtype=object)).tolist()
    [False, True, True, True, True]
    """
    series = pd.Series(values)
    return (series.isna() | series.isin(["", -1])).to_numpy(dtype=bool)


def encode(values: Labels, role: str, n_cells: int, *, at_least: int = 1) -> Int[np.ndarray, " b"]:
    """Number the distinct values 0, 1, … in order of appearance.

    Raises
    ------
    DataError
        Not one value per cell, a missing value, or fewer than `at_least` distinct ones.

    Examples
    --------
    >>> encode(["B", "T", "B"], "label", 3).tolist()
    [0, 1, 0]
    """
    array = column(values, role, n_cells)
    absent = int(missing(array).sum())
    if absent:
        raise DataError(
            f"There is no {role} for {absent:,} of {counted(n_cells, 'cell')}: leave such cells out of every "
            "argument, or call integration_scores, which does so for labels."
        )
    codes, distinct = pd.factorize(array)
    if len(distinct) < at_least:
        raise DataError(
            f"{role} has {len(distinct)} distinct value in the cells that are scored, and this score "
            f"compares at least {at_least}: it is undefined here."
        )
    return codes.astype(np.int64)


def as_embedding(
    x: Float[np.ndarray, "b z"], name: str = "embedding"
) -> Float64[np.ndarray, "b z"]:
    """Check that cells have finite coordinates, not all the same, and give them as float64.

    Raises
    ------
    DataError
        Not a table, fewer than two cells, values that are not finite, or a collapsed embedding
        (the same coordinates for every cell, to the precision of float32).
    """
    try:
        x = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds what is no number ({error}).") from error
    if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
        raise DataError(
            f"{name} has shape {x.shape}: expected (cells, dimensions), 2 cells or more."
        )
    broken = int((~np.isfinite(x)).any(axis=1).sum())
    if broken:
        raise DataError(
            f"{name} is NaN or infinite for {broken} of {counted(len(x), 'cell')}: "
            "the model that made it diverged, or these cells were never embedded."
        )
    if np.ptp(x, axis=0).max() <= 1e-6 * np.abs(x).max():
        raise DataError(
            f"{name} has collapsed: all cells share the same coordinates, so nothing "
            "is near or far. Train again, or choose another embedding."
        )
    return x
