"""Mixing of batches and separation of labels, read from neighbour graphs and from variance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.sparse import csr_array, dia_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.stats import chi2

from ..config.arguments import checked
from ..errors import DataError, counted
from .clustering import GRAPH_NEIGHBOURS
from .neighbours import (
    Neighbours,
    connectivities,
    exact_neighbours,
    perplexity_weights,
)
from .score import SHARE, Labels, Score, as_embedding, encode, mean_over_labels
from .threads import in_threads

LISI_NEIGHBOURS = 90
"""Neighbours that LISI reads: three times its perplexity, the cell itself not counted."""

KBET_NEIGHBOURS = 49
"""Neighbours in kBET's "50-nearest-neighbour graph", which counts the cell itself."""


@checked
def clisi(neighbours: Neighbours, labels: Labels) -> Score:
    r"""Purity of neighbourhoods: the median number of labels around a cell, scaled.

    :math:`(L - c) / (L - 1)` with :math:`L` labels and :math:`c` the median over cells of the
    inverse Simpson index (see `lisi`). Range 0 … 1, best 1; 0 where all labels are equally
    frequent around every cell.

    Raises
    ------
    DataError
        Fewer than two labels; see also `encode`.

    References
    ----------
    Korsunsky et al., Harmony, Nature Methods 16 (2019); scaled as Luecken et al., Nature Methods
    19 (2022).
    """
    label = encode(labels, "label", neighbours.n_cells, at_least=2)
    n_labels = label.max() + 1
    return _median((n_labels - lisi(neighbours, label)) / (n_labels - 1))


@checked
def ilisi(neighbours: Neighbours, batches: Labels) -> Score:
    r"""Mixing in neighbourhoods: the median number of batches around a cell, scaled.

    :math:`(i - 1) / (B - 1)` with :math:`B` batches and :math:`i` the median over cells of the
    inverse Simpson index (see `lisi`). Range 0 … 1, best 1, which batches of unequal size cannot
    reach.

    Raises
    ------
    DataError
        Fewer than two batches; see also `encode`.

    References
    ----------
    Korsunsky et al., Harmony, Nature Methods 16 (2019); scaled as Luecken et al., Nature Methods
    19 (2022).
    """
    batch = encode(batches, "batch", neighbours.n_cells, at_least=2)
    return _median((lisi(neighbours, batch) - 1) / batch.max())


@checked
def lisi(neighbours: Neighbours, groups: Labels) -> Float64[np.ndarray, " b"]:
    r"""Local inverse Simpson index: the effective number of groups around each cell.

    :math:`1 / \sum_g (\sum_{j \in g} p_{ij})^2` over the 90 nearest cells, the cell itself
    excluded, weighed by a kernel of perplexity 30 (see `perplexity_weights`). With fewer
    neighbours the perplexity is a third of them. Between 1 and the number of groups.

    Raises
    ------
    DataError
        See `encode`.

    References
    ----------
    Korsunsky et al., Harmony, Nature Methods 16 (2019), online methods.
    """
    group = encode(groups, "group", neighbours.n_cells)
    near = neighbours.take(LISI_NEIGHBOURS)
    weights = perplexity_weights(near, near.k / 3)
    n_groups = group.max() + 1
    position = np.arange(near.n_cells)[:, None] * n_groups + group[near.indices]
    shares = np.bincount(position.ravel(), weights.ravel(), minlength=near.n_cells * n_groups)
    return 1 / np.square(shares.reshape(-1, n_groups)).sum(axis=1)


def _median(values: Float64[np.ndarray, " b"]) -> Score:
    order = np.argsort(values)
    return Score.of(
        lambda counts: float(np.median(np.repeat(values[order], counts[order]))),
        len(values),
        SHARE,
    )


@checked
def graph_connectivity(neighbours: Neighbours, labels: Labels) -> Score:
    """Share of each label in its largest connected piece of the neighbour graph, averaged.

    The directed graph of the 14 nearest neighbours (15 with the cell itself) is cut down to the
    cells of a label; the piece is strongly connected. Averaged over labels. Range 0 … 1, best 1.

    Raises
    ------
    DataError
        See `encode`.

    References
    ----------
    Luecken et al., Nature Methods 19 (2022).
    """
    label = encode(labels, "label", neighbours.n_cells)
    graph = neighbours.take(GRAPH_NEIGHBOURS).graph().tocoo()
    source, target = graph.coords
    same = label[source] == label[target]
    within = csr_array((graph.data[same], (source[same], target[same])), shape=graph.shape)
    n_pieces, piece = connected_components(within, connection="strong")
    label_of = np.empty(n_pieces, dtype=np.int64)
    label_of[piece] = label

    def statistic(counts: Int[np.ndarray, " b"]) -> float:
        largest = np.zeros(label.max() + 1)
        np.maximum.at(largest, label_of, np.bincount(piece, counts, minlength=n_pieces))
        size = np.bincount(label, counts)
        return float((largest[size > 0] / size[size > 0]).mean())

    return Score.of(statistic, len(label), SHARE)


@checked
def kbet(neighbours: Neighbours, labels: Labels, batches: Labels, *, alpha: float = 0.05) -> Score:
    r"""Share of cells whose neighbourhood holds the batches as their label does, over labels.

    Within each label, the UMAP-weighted graph of the 49 nearest neighbours (50 with the cell
    itself) is embedded by a diffusion map of up to 100 components. A cell with its
    :math:`k_0` neighbours there passes where Pearson's :math:`\chi^2` of its batch counts against
    the batch shares of the label is not significant at `alpha`. :math:`k_0` is a quarter of the
    mean batch size, within 10 … 70. The pass rates are averaged over labels. Range 0 … 1, best 1;
    1 − `alpha` is what perfect mixing is expected to give.

    Labels of one batch or of fewer than 10 cells do not count. Pieces of a label's graph with
    fewer than :math:`3 k_0` cells are left out; if they hold more than a quarter of the label, it
    scores 0.

    Parameters
    ----------
    neighbours
        Nearest neighbours in the embedding.
    labels, batches
        One label and one batch per cell.
    alpha
        Level of the test.

    Raises
    ------
    DataError
        Fewer than two batches, or no label that counts; see also `encode`.

    References
    ----------
    Büttner et al., A test metric for assessing single-cell RNA-seq batch correction, Nature
    Methods 16 (2019); per label as Luecken et al., Nature Methods 19 (2022), with diffusion maps
    after Coifman & Lafon (2006) as in scib-metrics.
    """
    label = encode(labels, "label", neighbours.n_cells)
    batch = encode(batches, "batch", neighbours.n_cells, at_least=2)
    graph = connectivities(neighbours.take(KBET_NEIGHBOURS))
    accepted = np.full(len(label), np.nan)

    def test(number: int) -> None:
        cells = np.flatnonzero(label == number)
        if len(cells) >= 10 and len(np.unique(batch[cells])) > 1:
            accepted[cells] = _accepted(graph[cells][:, cells], batch[cells], alpha)

    in_threads(test, range(label.max() + 1))
    if np.isnan(accepted).all():
        raise DataError("No label has 10 cells of two batches or more, so kBET is undefined.")
    return mean_over_labels(accepted, label)


def _accepted(
    graph: csr_array, batch: Int[np.ndarray, " b"], alpha: float
) -> Float64[np.ndarray, " b"]:
    """Test the neighbourhoods of one label's cells: 1 passes, 0 fails, NaN is left out."""
    k = int(np.clip(len(batch) / len(np.unique(batch)) // 4, 10, 70))
    n_pieces, piece = connected_components(graph, directed=False)
    large = np.bincount(piece) >= (3 * k if n_pieces > 1 else 0)
    used = np.flatnonzero(large[piece])
    if len(used) < 0.75 * len(batch):
        return np.zeros(len(batch))
    near = exact_neighbours(_diffusion_map(graph[used][:, used]), k=min(k, len(used) - 1))
    around = np.column_stack([np.arange(len(used)), near.indices])
    # where a single batch is left the critical value is NaN, and every cell fails
    critical = chi2.isf(alpha, len(np.unique(batch[used])) - 1)
    accepted = np.full(len(batch), np.nan)
    accepted[used] = chi_square(around, batch[used]) <= critical
    return accepted


def chi_square(
    around: Int[np.ndarray, "b k"], batch: Int[np.ndarray, " b"]
) -> Float64[np.ndarray, " b"]:
    """Pearson's statistic of the batch counts among `around`, against the shares of all cells."""
    _, batch, size = np.unique(batch, return_inverse=True, return_counts=True)
    expected = around.shape[1] * size / size.sum()
    position = np.arange(len(around))[:, None] * len(size) + batch[around]
    observed = np.bincount(position.ravel(), minlength=len(around) * len(size))
    return (np.square(observed.reshape(-1, len(size)) - expected) / expected).sum(axis=1)


def _diffusion_map(graph: csr_array, n_components: int = 100) -> Float64[np.ndarray, "b k"]:
    r"""Embed a graph so that distances sum up diffusion over all numbers of steps.

    Eigenvectors of the symmetric transition matrix, normalised for density, times
    :math:`\lambda / (1 - \lambda)`; those that do not decay, :math:`\lambda = 1`, times 1.
    """

    def scaled(matrix: csr_array, degree: Float64[np.ndarray, " b"]) -> csr_array:
        inverse = dia_array((1 / degree[None], [0]), shape=matrix.shape)
        return inverse @ matrix @ inverse

    kernel = scaled(graph, graph.sum(axis=0))
    transitions = scaled(kernel, np.sqrt(kernel.sum(axis=0)))
    n_cells = graph.shape[0]
    n_components = min(n_components, n_cells - 1)
    start = np.random.default_rng(0).standard_normal(n_cells)  # ARPACK's own is not seeded
    basis = min(n_components + 50, n_cells)  # and its own, twice the components, takes longer
    values, vectors = eigsh(transitions, n_components, v0=start, ncv=basis, tol=1e-12)
    decays = values < 1 - 1e-8
    return vectors * np.where(decays, values / np.where(decays, 1 - values, 1), 1)


@checked
def pcr_comparison(
    pre: Float[np.ndarray, "_ g"], x: Float[np.ndarray, "b z"], batches: Labels
) -> Score:
    r"""Share of the batch variance before integration that is gone after it.

    :math:`\max(0, (V_{pre} - V_x) / V_{pre})`, where :math:`V` is the share of variance that
    batches explain: the :math:`R^2` of regressing each principal component on batch, weighted by
    the variance of the component. Over all components that is the trace of the covariance
    between batches over the total trace, which needs no principal components. Range 0 … 1,
    best 1. Says nothing of what else was removed.

    Parameters
    ----------
    pre
        Cells before integration, such as the principal components of log-normalised counts.
    x
        Embedding of the same cells.
    batches
        One per cell.

    Raises
    ------
    DataError
        `pre` of other cells, fewer than two batches, or no batch variance to begin with; see also
        `as_embedding` and `encode`.

    References
    ----------
    Büttner et al., Nature Methods 16 (2019); compared as Luecken et al., Nature Methods 19 (2022).
    """
    batch = encode(batches, "batch", len(x), at_least=2)
    if len(pre) != len(x):
        raise DataError(
            f"pre has {counted(len(pre), 'cell')} and the embedding {len(x)}: give the same cells, in order."
        )
    before = _explained(as_embedding(pre, "pre"), batch)
    after = _explained(as_embedding(x), batch)

    def statistic(counts: Int[np.ndarray, " b"]) -> float:
        share, left = before(counts), after(counts)
        known = share > 1e-12 and not np.isnan(left)
        return max(0.0, 1 - left / share) if known else float("nan")

    score = Score.of(statistic, len(x), SHARE)
    if np.isnan(score.value):
        raise DataError("Batches explain no variance of pre: there is nothing to remove.")
    return score


def _explained(
    x: Float64[np.ndarray, "b z"], batch: Int[np.ndarray, " b"]
) -> Callable[[Int[np.ndarray, " b"]], float]:
    """Make the share of variance between batches a function of how often cells are counted."""
    x = x - x.mean(axis=0)
    squares = np.square(x).sum(axis=1)
    of_batch = [np.flatnonzero(batch == one) for one in range(batch.max() + 1)]
    parts = [x[cells] for cells in of_batch]

    def share(counts: Int[np.ndarray, " b"]) -> float:
        size = np.bincount(batch, counts)
        sums = np.stack([counts[cells] @ part for cells, part in zip(of_batch, parts, strict=True)])
        centre = np.square(sums.sum(axis=0)).sum() / counts.sum()
        between = (np.square(sums).sum(axis=1)[size > 0] / size[size > 0]).sum() - centre
        spread = squares @ counts - centre
        return float(between / spread) if spread > 0 else float("nan")  # one cell, drawn repeatedly

    return share
