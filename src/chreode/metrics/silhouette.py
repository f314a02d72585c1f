"""Silhouettes by label and by batch, out of one pass over the distances between cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.sparse import csr_array

from ..config.arguments import checked
from ..errors import DataError
from .score import SHARE, Labels, Score, as_embedding, encode, mean_over_labels
from .threads import chunks, in_threads

TILE = 64, 1024
"""Cells by cells whose distances are held at a time: half a megabyte, within a core's own cache."""


class Widths(NamedTuple):
    """Silhouette widths of cells, in −1 … 1.

    Attributes
    ----------
    label
        Between the labels.
    batch
        Between the batches within the cell's own label.
    """

    label: Float64[np.ndarray, " b"]
    batch: Float64[np.ndarray, " b"]


@checked
def silhouette_widths(
    x: Float[np.ndarray, "b z"], labels: Labels, batches: Labels | None = None
) -> Widths:
    r"""Compare each cell's distance to its own group with that to the nearest other group.

    :math:`s_i = (b_i - a_i) / \max(a_i, b_i)`: :math:`a_i` is the mean Euclidean distance to the
    other cells of the group, :math:`b_i` the least mean distance to the cells of another group.
    A cell alone in its group, and a cell with no other group, have :math:`s_i = 0`.

    One chunked pass over all pairs serves labels and batches: distances are summed by (label,
    batch) and these sums are regrouped. Pass the result as `widths` to the scores of this module.

    Parameters
    ----------
    x
        Embedding.
    labels, batches
        One per cell; without `batches` all cells are of one.

    Raises
    ------
    DataError
        See `as_embedding` and `encode`.

    References
    ----------
    Rousseeuw, Silhouettes, J. Comput. Appl. Math. 20 (1987).
    """
    x = as_embedding(x)
    label = encode(labels, "label", len(x))
    batch = np.zeros_like(label) if batches is None else encode(batches, "batch", len(x))
    table = np.zeros((label.max() + 1, batch.max() + 1), dtype=np.int64)
    np.add.at(table, (label, batch), 1)
    label_of, batch_of = table.nonzero()  # the groups: pairs that occur, sorted by label
    starts = np.cumsum(table[label_of, batch_of]) - table[label_of, batch_of]
    label_starts = np.searchsorted(label_of, np.arange(len(table)))
    is_batch = np.eye(table.shape[1])[batch_of]
    order = np.lexsort((batch, label))  # contiguous groups, so that sums are over slices
    sums_over_groups = _summed_distances(x[order], starts)
    result = Widths(np.empty(len(x)), np.empty(len(x)))

    def compare(rows: slice) -> None:
        cells = order[rows]
        by_group = sums_over_groups(rows)
        by_label = np.add.reduceat(by_group, label_starts, axis=1)
        result.label[cells] = _widths(by_label, table.sum(axis=1)[None], label[cells])
        own_label = np.where(label_of == label[cells, None], by_group, 0)
        result.batch[cells] = _widths(own_label @ is_batch, table[label[cells]], batch[cells])

    in_threads(compare, chunks(len(x), TILE[0]))
    return result


def _summed_distances(
    x: Float64[np.ndarray, "b z"], starts: Int[np.ndarray, " k"]
) -> Callable[[slice], Float64[np.ndarray, "r k"]]:
    """Give a function from rows of `x` to their distances, summed over the groups from `starts`.

    A product of matrices gives the squares of a tile of distances. More than its rounding error
    is taken off them, so that cells that coincide are at distance zero.
    """
    x = x - x.mean(axis=0)  # keeps the products, and so their rounding, small
    norms, ones = np.square(x).sum(axis=1), np.ones(len(x))
    rounding = 4 * (x.shape[1] + 2) * np.finfo(np.float64).eps * norms.max()
    left = np.column_stack([x, norms - rounding, ones])
    right = np.vstack([-2 * x.T, ones, norms])
    tiles = []
    for columns in chunks(len(x), TILE[1]):
        groups = slice(
            np.searchsorted(starts, columns.start, side="right") - 1,
            np.searchsorted(starts, columns.stop),
        )
        begins = np.maximum(starts[groups] - columns.start, 0)
        tiles.append((np.ascontiguousarray(right[:, columns]), groups, begins))
    zeros = np.zeros(TILE[1])  # as a bound it is twice as fast as a scalar

    def sums(rows: slice) -> Float64[np.ndarray, "r k"]:
        total = np.zeros((len(left[rows]), len(starts)))
        for columns, groups, begins in tiles:
            distances = left[rows] @ columns  # squared, until the root is taken
            np.maximum(distances, zeros[: columns.shape[1]], out=distances)
            np.sqrt(distances, out=distances)
            total[:, groups] += np.add.reduceat(distances, begins, axis=1)
        return total

    return sums


def _widths(
    sums: Float64[np.ndarray, "r k"], sizes: Int[np.ndarray, "_ k"], own: Int[np.ndarray, " r"]
) -> Float64[np.ndarray, " r"]:
    """Silhouette widths from the summed distances of cells to groups of the given sizes."""
    sizes = np.broadcast_to(sizes, sums.shape)
    index = np.arange(len(own)), own
    with np.errstate(divide="ignore", invalid="ignore"):
        within = sums[index] / (sizes[index] - 1)
        means = sums / sizes  # NaN for groups without cells
        means[index] = np.nan
        between = np.fmin.reduce(means, axis=1)
        return np.nan_to_num((between - within) / np.maximum(within, between))


@checked
def silhouette_label(
    x: Float[np.ndarray, "b z"], labels: Labels, *, widths: Widths | None = None
) -> Score:
    """Average silhouette width of the labels: `(mean(s) + 1) / 2` over all cells.

    Range 0 … 1, best 1; 0.5 where labels overlap entirely. Rewards labels that are round and far
    apart, which real cell types need not be.

    Parameters
    ----------
    x, labels
        Embedding, and one label per cell.
    widths
        What `silhouette_widths` gave for them; computed where absent.

    Raises
    ------
    DataError
        Fewer than two labels; see also `as_embedding` and `encode`.

    References
    ----------
    Luecken et al., Benchmarking atlas-level data integration, Nature Methods 19 (2022).

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> round(silhouette_label(x, ["B", "B", "T", "T"]).value, 3)
    0.95
    """
    encode(labels, "label", len(x), at_least=2)
    values = ((widths or silhouette_widths(x, labels)).label + 1) / 2
    return Score.of(lambda counts: float(np.average(values, weights=counts)), len(x), SHARE)


@checked
def isolated_labels(
    x: Float[np.ndarray, "b z"],
    labels: Labels,
    batches: Labels,
    *,
    widths: Widths | None = None,
) -> Score:
    """Average silhouette width of the labels found in the fewest batches.

    `(s + 1) / 2`, averaged within each such label and then over them. Range 0 … 1, best 1. Where
    every label is in every batch, all labels are as isolated and all are averaged.

    Parameters
    ----------
    x, labels, batches
        Embedding, and one label and one batch per cell.
    widths
        What `silhouette_widths` gave for them; computed where absent.

    Raises
    ------
    DataError
        Fewer than two labels; see also `as_embedding` and `encode`.

    References
    ----------
    Luecken et al., Nature Methods 19 (2022); the silhouette in place of their F1 score.
    """
    label = encode(labels, "label", len(x), at_least=2)
    spread = _batches_per_label(label, encode(batches, "batch", len(x)))
    values = ((widths or silhouette_widths(x, labels)).label + 1) / 2
    isolated = (spread == spread.min())[label]
    return mean_over_labels(np.where(isolated, values, np.nan), label)


@checked
def silhouette_batch(
    x: Float[np.ndarray, "b z"],
    labels: Labels,
    batches: Labels,
    *,
    widths: Widths | None = None,
) -> Score:
    """Mixing of batches within labels: `1 - |s|`, the silhouette by batch, averaged over labels.

    Range 0 … 1, best 1. Labels of one batch, and labels whose cells all differ in batch, do not
    count. Read it with care: a batch near any one other batch looks mixed, even if both are far
    from all the rest. `bras` corrects that.

    Parameters
    ----------
    x, labels, batches
        Embedding, and one label and one batch per cell.
    widths
        What `silhouette_widths` gave for them; computed where absent.

    Raises
    ------
    DataError
        Fewer than two batches, or none of the labels in two; see also `as_embedding`, `encode`.

    References
    ----------
    Luecken et al., Nature Methods 19 (2022).
    """
    label = encode(labels, "label", len(x))
    comparable = _comparable(label, encode(batches, "batch", len(x), at_least=2))
    values = 1 - np.abs((widths or silhouette_widths(x, labels, batches)).batch)
    return mean_over_labels(np.where(comparable, values, np.nan), label)


@checked
def bras(x: Float[np.ndarray, "b z"], labels: Labels, batches: Labels) -> Score:
    r"""Batch removal adapted silhouette: batches compared with *all* other cells of their label.

    As `silhouette_batch`, with cosine distances and :math:`b_i` the mean distance to all cells of
    the label in other batches. Range 0 … 1, best 1. Unlike the other scores it depends on where
    the origin is.

    Mean cosine distances need sums of unit vectors only, so that the time is linear in cells. A
    cell at the origin has no direction and is at distance 1 from every cell.

    Parameters
    ----------
    x, labels, batches
        Embedding, and one label and one batch per cell.

    Raises
    ------
    DataError
        Fewer than two batches, or none of the labels in two; see also `as_embedding`, `encode`.

    References
    ----------
    Rautenstrauch & Ohler, Metrics matter: why we need to stop using silhouette in single-cell
    benchmarking, bioRxiv 2025.01.21.634098 (2025).
    """
    x = as_embedding(x)
    label = encode(labels, "label", len(x))
    batch = encode(batches, "batch", len(x), at_least=2)
    comparable = _comparable(label, batch)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    units = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    _, group = np.unique(label * (batch.max() + 1) + batch, return_inverse=True)

    def summed(codes: Int[np.ndarray, " b"]) -> tuple[Float64[np.ndarray, "b z"], np.ndarray]:
        member = csr_array((np.ones(len(x)), (codes, np.arange(len(x)))))
        return (member @ units)[codes], np.bincount(codes)[codes]

    own, n_own = summed(group)
    all_, n_all = summed(label)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = 1 - (units * (own - units)).sum(axis=1) / (n_own - 1)
        between = 1 - (units * (all_ - own)).sum(axis=1) / (n_all - n_own)
        # of cells in the same direction only rounding is left
        within, between = np.round(within, 12), np.round(between, 12)
        widths = np.nan_to_num((between - within) / np.maximum(within, between))
    return mean_over_labels(np.where(comparable, 1 - np.abs(widths), np.nan), label)


def _batches_per_label(
    label: Int[np.ndarray, " b"], batch: Int[np.ndarray, " b"]
) -> Int[np.ndarray, " l"]:
    """Count the batches that each label is found in."""
    table = np.zeros((label.max() + 1, batch.max() + 1), dtype=bool)
    table[label, batch] = True
    return table.sum(axis=1)


def _comparable(label: Int[np.ndarray, " b"], batch: Int[np.ndarray, " b"]) -> np.ndarray:
    """Return which cells have a label of several batches, not all of one cell."""
    spread = _batches_per_label(label, batch)
    comparable = (spread > 1) & (spread < np.bincount(label))
    if not comparable.any():
        raise DataError("No label has cells of two batches, so mixing within labels is undefined.")
    return comparable[label]
