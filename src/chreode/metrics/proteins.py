"""Hidden proteins of cells: foretold by neighbours, and compared with what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int
from sklearn.neighbors import NearestNeighbors

from ..config.arguments import checked
from ..errors import DataError, counted
from .score import Score

#: Cells of the reference that foretell a protein, as in scSSL-Bench.
NEIGHBOURS = 5
#: Name, best value and meaning of every score.
METRICS: Mapping[str, tuple[str, float, str]] = {
    "cell_r": (
        "Pearson per cell", 1.0,
        "correlation over proteins within each cell, mean over cells (log1p); the mean profile does well"
    ),
    "protein_r": (
        "Pearson per protein", 1.0, "correlation over cells of each protein, mean over proteins (log1p)"
    ),
    "worst_protein": ("worst protein", 1.0, "the least of these correlations"),
}  # fmt: skip
#: A variance that is a smaller share of the mean square is rounding.
_CONSTANT = 1e-10
_RANGE = (-1.0, 1.0)


@checked
def by_neighbours(
    reference: Float[np.ndarray, "n z"],
    query: Float[np.ndarray, "m z"],
    values: Float[np.ndarray, "n p"],
    k: int = NEIGHBOURS,
) -> Float64[np.ndarray, "m p"]:
    """Return for each query cell the mean values of its `k` nearest reference cells, by cosine distance.

    Raises
    ------
    DataError
        If there are fewer reference cells.

    Examples
    --------
    >>> x, near = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.1, 3.0]])
    >>> by_neighbours(x, near, np.array([[5.0], [7.0]]), k=1).tolist()
    [[7.0]]
    """
    if len(reference) < k:
        raise DataError(
            f"Proteins are foretold by {counted(k, 'cell')} of the reference, which has {len(reference)}."
        )
    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(reference)
    found = search.kneighbors(query, return_distance=False)
    out = np.zeros((len(query), values.shape[1]))
    for neighbour in found.T:  # k times the size at once would be k times the memory
        out += values[neighbour]
    return out / k


@checked
def protein_scores(
    measured: Float[np.ndarray, "n p"], foretold: Float[np.ndarray, "n p"]
) -> dict[str, Score]:
    """Correlate measured with foretold values, per cell and per protein; the keys are those of `METRICS`.

    Both are in the same units, such as log1p of counts. Cells and proteins whose measured values are constant
    are left out of the mean. Where it is the foretold values that are constant, nothing was foretold: they
    count as 0, so that all methods are averaged over the same cells and proteins.

    Returns
    -------
    Scores that are resampled over cells.

    Examples
    --------
    >>> measured = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 2.0, 4.0]])
    >>> scores = protein_scores(measured, measured + 1)
    >>> round(scores["cell_r"].value, 6), round(scores["protein_r"].value, 6)
    (1.0, 1.0)
    """
    n, x, y = len(measured), measured.astype(np.float64), foretold.astype(np.float64)
    of_cells = _correlation(x.T, y.T)
    known = ~np.isnan(of_cells)
    products = x, y, x * x, y * y, x * y

    def cells(counts: Int[np.ndarray, " n"]) -> float:
        total = counts[known].sum()
        return float(counts[known] @ of_cells[known] / total) if total else float("nan")

    def proteins(counts: Int[np.ndarray, " n"], *, worst: bool = False) -> float:
        found = _of_moments([counts @ part for part in products], int(counts.sum()))
        found = found[~np.isnan(found)]
        if not len(found):
            return float("nan")
        return float(found.min() if worst else found.mean())

    scores = {
        "cell_r": Score.of(cells, n, _RANGE),
        "protein_r": Score.of(proteins, n, _RANGE),
        "worst_protein": Score.of(lambda counts: proteins(counts, worst=True), n, _RANGE),
    }
    same = "what was measured is the same in every cell."
    flat = "what was measured is the same for every protein."
    return {
        key: Score.undefined(flat if key == "cell_r" else same, n)
        if np.isnan(score.value)
        else score
        for key, score in scores.items()
    }


@checked
def of_proteins(
    measured: Float[np.ndarray, "n p"], foretold: Float[np.ndarray, "n p"]
) -> Float64[np.ndarray, " p"]:
    """Return the correlation over cells of each protein: NaN where it was measured the same in all."""
    x, y = measured.astype(np.float64), foretold.astype(np.float64)
    return _correlation(x, y)


def _correlation(
    x: Float64[np.ndarray, "n p"], y: Float64[np.ndarray, "n p"]
) -> Float64[np.ndarray, " p"]:
    """Return Pearson's correlation of every column."""
    return _of_moments([part.sum(0) for part in (x, y, x * x, y * y, x * y)], len(x))


def _of_moments(sums: Sequence[Float64[np.ndarray, " p"]], n: int) -> Float64[np.ndarray, " p"]:
    """Return correlations from sums over n cells: NaN of a constant x, 0 of a constant y."""
    x, y, xx, yy, xy = (part / n for part in sums)
    spread = xx - x**2, yy - y**2
    measured, told = spread[0] > _CONSTANT * xx, spread[1] > _CONSTANT * yy
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (xy - x * y) / np.sqrt(spread[0] * spread[1])
    return np.where(measured, np.where(told, found, 0.0), np.nan)
