"""Exact nearest neighbours of cells, computed once and shared by every metric that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.sparse import csr_array, get_index_dtype

from ..config.arguments import checked
from ..errors import DataError, counted, warn
from .score import as_embedding
from .threads import chunks, in_threads


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

    @checked
    def graph(self, weights: Float[np.ndarray, "b k"] | None = None) -> csr_array:
        """Lay the neighbours out as a directed graph, cells by cells, of the given weights or 1."""
        data = np.ones(self.indices.shape) if weights is None else np.asarray(weights)
        if data.shape != self.indices.shape:
            raise DataError(f"weights has shape {data.shape}; expected {self.indices.shape}.")
        whole = get_index_dtype(maxval=self.indices.size)  # half the memory to go through
        pointers = np.arange(0, self.indices.size + 1, self.k, dtype=whole)
        columns = self.indices.ravel().astype(whole)
        return csr_array((data.ravel(), columns, pointers), shape=(self.n_cells, self.n_cells))


@checked
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
        warn(
            f"Each of {counted(len(x), 'cell')} has fewer than {counted(k, 'neighbour')}: all others "
            "are used. "
            "Scores of so few cells are rough.",
        )
        k = len(x) - 1
    indices = np.empty((len(x), k), dtype=np.int64)
    distances = np.zeros((len(x), k), dtype=np.float32)
    searching, sought = np.ones((2, len(x)), dtype=bool)
    for cells in _coinciding(x, k):
        # each cell takes the next ones of a random ring: all would take the same, for no reason
        ring = np.random.default_rng(0).permutation(cells)
        following = np.arange(len(ring))[:, None] + np.arange(1, k + 1)
        indices[ring] = ring[following % len(ring)]
        searching[ring] = False
        sought[ring[k:]] = False  # no cell has more than k neighbours on one spot
    rows, columns = np.flatnonzero(searching), np.flatnonzero(sought)
    nearest = _search(x, columns, k)

    def search(chunk: slice) -> None:
        indices[rows[chunk]], distances[rows[chunk]] = nearest(rows[chunk])

    in_threads(search, chunks(len(rows), max(16, 2**20 // len(columns))))  # 8 MB of distances
    return Neighbours(indices, distances)


@checked
def neighbours_by_group(
    x: Float[np.ndarray, "b z"], group: Int[np.ndarray, " b"], k: int
) -> Int[np.ndarray, "b groups k"]:
    """Find the `k` nearest other cells of each cell in every group, by brute force.

    Parameters
    ----------
    x
        Embedding; Euclidean distances.
    group
        Group of each cell, from 0.
    k
        Number of neighbours in each group.

    Returns
    -------
    Row numbers of the neighbours, nearest first; -1 where a group has no more cells.

    Raises
    ------
    DataError
        See `as_embedding`.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [3.0]])
    >>> neighbours_by_group(x, np.array([0, 1, 1]), k=2).tolist()
    [[[-1, -1], [1, 2]], [[0, -1], [2, -1]], [[0, -1], [1, -1]]]
    """
    x = as_embedding(x)
    indices = np.full((len(x), int(group.max()) + 1, k), -1)
    for number in range(indices.shape[1]):
        mine = group == number
        among = np.flatnonzero(mine)
        for cells, n in ((among, len(among) - 1), (np.flatnonzero(~mine), len(among))):
            if n > 0:
                _fill(indices[:, number, : min(k, n)], x, cells, among)
    return indices


@checked
def mutual_neighbours(
    near: Int[np.ndarray, "b groups k"], group: Int[np.ndarray, " b"]
) -> Int[np.ndarray, "b groups k"]:
    """Keep the neighbours in other groups that have the cell among their own: -1 stands for all others.

    Parameters
    ----------
    near
        Row numbers of the nearest cells in each group (see `neighbours_by_group`).
    group
        Group of each cell, from 0.

    References
    ----------
    Haghverdi et al. (2018), Batch effects in single-cell RNA-sequencing data are corrected by matching
    mutual nearest neighbors, Nature Biotechnology 36:421.

    Examples
    --------
    >>> group = np.array([0, 0, 1, 1])
    >>> near = neighbours_by_group(np.array([[0.0], [1.0], [0.1], [5.0]]), group, k=1)
    >>> mutual_neighbours(near, group)[:, :, 0].tolist()
    [[-1, 2], [-1, -1], [0, -1], [-1, -1]]
    """
    found, cell = np.full_like(near, -1), np.arange(len(near))[:, None]
    for other, place in np.ndindex(near.shape[1:]):  # all at once, memory would grow with k²
        there = near[:, other, place]
        back = near[there, group]  # of -1 too, which is taken out again
        mutual = (back == cell).any(1) & (there >= 0) & (group != other)
        found[mutual, other, place] = there[mutual]
    return found


def _fill(
    indices: Int[np.ndarray, "b k"],
    x: Float64[np.ndarray, "b z"],
    cells: Int[np.ndarray, " r"],
    among: Int[np.ndarray, " m"],
) -> None:
    """Write the nearest others of some cells `among` all into their rows."""
    nearest = _search(x, among, indices.shape[1])

    def search(chunk: slice) -> None:
        indices[cells[chunk]] = nearest(cells[chunk])[0]

    in_threads(search, chunks(len(cells), max(16, 2**20 // len(among))))  # 8 MB of distances


def _search(
    x: Float64[np.ndarray, "b z"], among: Int[np.ndarray, " m"], k: int
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Give a function from some cells to the `k` nearest others `among` all, and the distances."""
    # in random order, so that `_least` is quick whatever the order of cells
    among = np.random.default_rng(0).permutation(among)
    column = np.full(len(x), -1)
    column[among] = np.arange(len(among))
    x = x - x.mean(axis=0)  # keeps the products, and so their rounding, small
    left = np.column_stack([x, np.ones(len(x))])
    right = np.vstack([-2 * x[among].T, np.square(x[among]).sum(axis=1)])

    def nearest(
        cells: Int[np.ndarray, " r"],
    ) -> tuple[Int[np.ndarray, "r k"], Float64[np.ndarray, "r k"]]:
        squares = left[cells] @ right  # less the cell's squared norm, which changes no order
        own = column[cells]
        squares[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
        found = among[_least(squares, k)]
        distances = np.linalg.norm(x[found] - x[cells, None], axis=2)
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(
            distances, order, axis=1
        )

    return nearest


def _coinciding(x: Float64[np.ndarray, "b z"], k: int) -> Iterator[Int[np.ndarray, " m"]]:
    """Find the spots where cells coincide with more than `k` others, and give the cells on each."""
    _, at, size = np.unique(x[:, 0], return_inverse=True, return_counts=True)
    shared = np.flatnonzero(size[at] > k + 1)  # few, if any; and to sort whole rows takes long
    _, spot, size = np.unique(x[shared], axis=0, return_inverse=True, return_counts=True)
    return (shared[spot.ravel() == group] for group in np.flatnonzero(size > k + 1))


def _least(values: Float64[np.ndarray, "r n"], k: int) -> Int[np.ndarray, "r k"]:
    """Find the columns of the `k` least values of each row, in no order.

    Columns are divided into groups. The `k`-th least of the groups' minima bounds the `k`-th least
    value from above, and hardly more than `k` values are within the bound: few are left to sort.
    """
    n_rows, n_columns = values.shape
    n_groups = min(n_columns, 4 * k)
    grouped = values[:, : n_columns // n_groups * n_groups].reshape(n_rows, -1, n_groups)
    bound = np.partition(grouped.min(axis=1), k - 1, axis=1)[:, k - 1 : k]
    row, column = np.divmod(np.flatnonzero(values <= bound), n_columns)
    starts = np.searchsorted(row, np.arange(n_rows + 1))
    within = np.full((n_rows, np.diff(starts).max()), np.inf)
    within[row, np.arange(len(row)) - starts[row]] = values[row, column]
    least = np.argpartition(within, k - 1, axis=1)[:, :k]
    return column[starts[:-1, None] + least]


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
    weights = np.empty(neighbours.distances.shape)

    def weigh(rows: slice) -> None:
        distances = neighbours.distances[rows].astype(np.float64)
        positive = np.where(distances > 0, distances, np.inf).min(axis=1, keepdims=True)
        beyond = np.maximum(distances - np.where(np.isinf(positive), 0, positive), 0)
        width = distances.sum(axis=1) / (neighbours.k + 1)  # the cell itself, at zero
        # the lower end of the reach is UMAP's floor
        weights[rows] = _kernel(beyond, width, 1e3, _total, np.log2(neighbours.k + 1))

    in_threads(weigh, chunks(neighbours.n_cells, 1024))
    back = neighbours.graph(weights).T.tocsr()
    forth = back.T.tocsr()  # twice transposed it has sorted columns, which the rest makes use of
    return forth + back - forth * back


def perplexity_weights(neighbours: Neighbours, perplexity: float) -> Float64[np.ndarray, "b k"]:
    r"""Weigh the neighbours of each cell by a kernel of distance with the given perplexity.

    :math:`p_{ij} \propto \exp(-d_{ij} / h_i)`, with the bandwidth :math:`h_i` such that
    :math:`-\sum_j p_{ij} \log p_{ij} = \log(\text{perplexity})`, as far as the neighbours allow.
    Distances are not squared, as in the reference implementation of LISI.
    """
    weights = np.empty(neighbours.distances.shape)

    def weigh(rows: slice) -> None:
        distances = neighbours.distances[rows].astype(np.float64)
        beyond = distances - distances[:, :1]  # p does not change, and the nearest cannot underflow
        kernel = _kernel(beyond, beyond.mean(axis=1), 1e6, _entropy, np.log(perplexity))
        weights[rows] = kernel / kernel.sum(axis=1, keepdims=True)

    in_threads(weigh, chunks(neighbours.n_cells, 1024))
    return weights


Measure: TypeAlias = Callable[
    [Float64[np.ndarray, "r k"]], tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, " r"]]
]
"""What is asked of weights exp(-s), given s; and its slope over the logarithm of the bandwidth."""


def _total(scaled: Float64[np.ndarray, "r k"]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.exp(-scaled)
    return weights.sum(axis=1), np.einsum("rk,rk->r", weights, scaled)


def _entropy(scaled: Float64[np.ndarray, "r k"]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.exp(-scaled)
    total = weights.sum(axis=1)
    mean = np.einsum("rk,rk->r", weights, scaled) / total
    variance = np.einsum("rk,rk,rk->r", weights, scaled, scaled) / total - mean**2
    return np.log(total) + mean, variance


def _kernel(
    beyond: Float64[np.ndarray, "r k"],
    width: Float64[np.ndarray, " r"],
    reach: float,
    measure: Measure,
    target: float,
) -> Float64[np.ndarray, "r k"]:
    """Weigh by exp(-beyond / h), with the bandwidth h of each row such that `measure` is `target`.

    Where no h from `width / reach` to `width * reach` will do, it is the nearer end. Newton's
    method on the logarithm of h, in a bracket that is halved where a step would leave it or is
    more than half as long as the last one: steps can otherwise go to and fro for ever.
    """
    middle = np.log(np.where(width > 0, width, 1))  # equidistant: any width gives equal weights
    low, high = middle - np.log(reach), middle + np.log(reach)
    at, rows = middle.copy(), np.arange(len(beyond))
    last = high - low
    while len(rows):
        here = at[rows]
        value, slope = measure(beyond[rows] / np.exp(here)[:, None])
        below = value < target
        low[rows[below]], high[rows[~below]] = here[below], here[~below]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            there = here + (target - value) / slope
        inside = (low[rows] <= there) & (there <= high[rows])
        good = inside & (np.abs(there - here) <= last[rows] / 2)
        at[rows] = np.where(good, there, (low[rows] + high[rows]) / 2)
        last[rows] = np.where(good, np.abs(there - here), (high[rows] - low[rows]) / 2)
        rows = rows[np.abs(at[rows] - here) > 1e-6]  # of the last step about the square is left
    return np.exp(-beyond / np.exp(at)[:, None])
