"""Exact nearest neighbours of cells, computed once and shared by every metric that reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

from ..errors import DataError
from .score import as_embedding


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest cells of each cell, nearest first, the cell itself excluded.

    Attributes
    ----------
    indices
        Row numbers of the neighbours.
    distances
        Euclidean distances to them, ascending.

    Raises
    ------
    DataError
        Shapes that differ, indices out of range, a cell among its own neighbours, or distances
        that descend.
    """

    indices: Int[np.ndarray, "b k"]
    distances: Float32[np.ndarray, "b k"]

    def __post_init__(self) -> None:
        n_cells = len(self.indices)
        if self.indices.shape != self.distances.shape or self.indices.ndim != 2:
            raise DataError(
                f"indices have shape {self.indices.shape} and distances "
                f"{self.distances.shape}: expected (cells, neighbours) for both."
            )
        if self.indices.min() < 0 or self.indices.max() >= n_cells:
            raise DataError(f"Neighbour indices must lie in 0 … {n_cells - 1}.")
        if (self.indices == np.arange(n_cells)[:, None]).any():
            raise DataError("A cell is among its own neighbours: drop that column.")
        if (np.diff(self.distances, axis=1) < 0).any():
            raise DataError("Distances must ascend along each row: sort the neighbours.")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.indices.shape[0]

    @property
    def k(self) -> int:
        """Number of neighbours of each cell."""
        return self.indices.shape[1]

    def take(self, k: int) -> Neighbours:
        """Keep the `k` nearest, or all of them where there are fewer."""
        return Neighbours(self.indices[:, :k], self.distances[:, :k])

    def graph(self, weights: Float[np.ndarray, "b k"] | None = None) -> csr_array:
        """Lay the neighbours out as a directed graph, cells by cells, of the given weights or 1."""
        data = np.ones(self.indices.shape) if weights is None else weights
        pointers = np.arange(0, self.indices.size + 1, self.k)
        return csr_array(
            (data.ravel(), self.indices.ravel(), pointers), shape=(self.n_cells, self.n_cells)
        )


def exact_neighbours(x: Float[np.ndarray, "b z"], k: int = 90) -> Neighbours:
    """Find the `k` nearest other cells of each cell by brute force.

    Distances are computed in chunks by matrix products in float64, and once more, exactly, for
    the neighbours found: cells that coincide are at distance zero. Where more than `k` others
    coincide with a cell, `k` of them are drawn, so that neither the order of cells nor a few of
    them decide what all are near to.

    Parameters
    ----------
    x
        Embedding; Euclidean distances.
    k
        Number of neighbours, the cell itself not counted. With `k` cells or fewer it is lowered
        to all other cells, with a warning.

    Raises
    ------
    DataError
        See `as_embedding`.

    Examples
    --------
    >>> exact_neighbours(np.array([[0.0], [1.0], [3.0]]), k=1).indices.ravel().tolist()
    [1, 0, 1]
    """
    x = as_embedding(x)
    if len(x) <= k:
        warnings.warn(
            f"{len(x)} cells have {len(x) - 1} neighbours each, not {k}: using all of them. "
            "Scores of so few cells are rough.",
            UserWarning,
            stacklevel=2,
        )
        k = len(x) - 1
    x = x - x.mean(axis=0)  # keeps the products, and so their rounding, small
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x)
    indices = search.kneighbors(return_distance=False)
    _, spot, size = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    for crowded in np.flatnonzero(size > k + 1):
        # each cell takes the next ones of a random ring: all would take the same, for no reason
        ring = np.random.default_rng(0).permutation(np.flatnonzero(spot.ravel() == crowded))
        following = np.arange(len(ring))[:, None] + np.arange(1, k + 1)
        indices[ring] = ring[following % len(ring)]
    distances = np.empty(indices.shape, dtype=np.float32)
    step = max(1, 2**22 // (k * x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distances[rows] = np.linalg.norm(x[indices[rows]] - x[rows, None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )


def connectivities(neighbours: Neighbours) -> csr_array:
    r"""Weigh the neighbour graph as UMAP does: a symmetric fuzzy union of local kernels.

    With :math:`\rho_i` the least distance above zero and :math:`\sigma_i` such that the weights
    of a cell sum to :math:`\log_2(k + 1)`, the weight of :math:`i \to j` is
    :math:`w_{ij} = \exp(-\max(0, d_{ij} - \rho_i) / \sigma_i)`, and the edge weighs
    :math:`w_{ij} + w_{ji} - w_{ij} w_{ji}`. The one added to `k` is the cell itself, which UMAP
    counts.

    References
    ----------
    McInnes, Healy & Melville, UMAP, arXiv 1802.03426 (2018), section 3.1 and algorithm 3.
    """
    distances = neighbours.distances.astype(np.float64)
    positive = np.where(distances > 0, distances, np.inf).min(axis=1, keepdims=True)
    beyond = np.maximum(distances - np.where(np.isinf(positive), 0, positive), 0)
    width = distances.sum(axis=1, keepdims=True) / (neighbours.k + 1)  # the cell itself, at zero
    width[width == 0] = 1  # all neighbours coincide with the cell: any width gives them weight 1
    bandwidth = _solve(
        lambda h: np.exp(-beyond / h).sum(axis=1),
        np.log2(neighbours.k + 1),
        low=1e-3 * width,  # UMAP's floor
        high=1e3 * width,
    )
    directed = neighbours.graph(np.exp(-beyond / bandwidth))
    return (directed + directed.T - directed * directed.T).tocsr()


def perplexity_weights(neighbours: Neighbours, perplexity: float) -> Float64[np.ndarray, "b k"]:
    r"""Weigh the neighbours of each cell by a kernel of distance with the given perplexity.

    :math:`p_{ij} \propto \exp(-d_{ij} / h_i)`, with the bandwidth :math:`h_i` such that
    :math:`-\sum_j p_{ij} \log p_{ij} = \log(\text{perplexity})`, as far as the neighbours allow.
    Distances are not squared, as in the reference implementation of LISI.
    """
    distances = neighbours.distances.astype(np.float64)
    beyond = distances - distances[:, :1]  # p does not change, and the nearest cannot underflow

    def entropy(h: Float64[np.ndarray, "b 1"]) -> Float64[np.ndarray, " b"]:
        weights = np.exp(-beyond / h)
        total = weights.sum(axis=1)
        return np.log(total) + (weights * beyond).sum(axis=1) / (total * h[:, 0])

    width = beyond.mean(axis=1, keepdims=True)
    width[width == 0] = 1  # equidistant neighbours: any width gives equal weights
    bandwidth = _solve(entropy, np.log(perplexity), low=1e-6 * width, high=1e6 * width)
    weights = np.exp(-beyond / bandwidth)
    return weights / weights.sum(axis=1, keepdims=True)


def _solve(
    rising: Callable[[Float64[np.ndarray, "b 1"]], Float64[np.ndarray, " b"]],
    target: float,
    low: Float64[np.ndarray, "b 1"],
    high: Float64[np.ndarray, "b 1"],
) -> Float64[np.ndarray, "b 1"]:
    """Bisect the logarithm of each row's bandwidth; the nearer end where the target lies outside."""
    low, high = np.log(low), np.log(high)
    for _ in range(32):  # leaves less than 1e-8 of the widest bracket
        middle = (low + high) / 2
        below = rising(np.exp(middle))[:, None] < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp((low + high) / 2)
