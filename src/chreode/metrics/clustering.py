"""Clusterings of an embedding, and how well they agree with the labels."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.sparse import triu
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ..config.arguments import checked
from ..errors import CapabilityError
from .neighbours import Neighbours, connectivities
from .score import SHARE, Labels, Score, as_embedding, encode

RESOLUTIONS = tuple(0.2 * step for step in range(1, 11))
"""The resolutions among which `leiden_clusters` chooses."""

GRAPH_NEIGHBOURS = 14
"""Neighbours in the field's "15-nearest-neighbour graph", which counts the cell itself."""


@checked
def kmeans_clusters(
    x: Float[np.ndarray, "b z"], labels: Labels, *, seed: int = 0
) -> Int[np.ndarray, " b"]:
    """Find as many k-means clusters as there are labels: the tightest of ten k-means++ starts.

    Raises
    ------
    DataError
        See `as_embedding` and `encode`.
    """
    x = as_embedding(x)
    n_clusters = encode(labels, "label", len(x)).max() + 1
    with warnings.catch_warnings():
        # fewer distinct cells than labels: the agreement with the labels will tell
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(n_clusters, n_init=10, random_state=seed).fit(x)
    return means.labels_.astype(np.int64)


@checked
def leiden_clusters(
    neighbours: Neighbours, labels: Labels, *, seed: int = 0
) -> Int[np.ndarray, " b"]:
    """Find communities by modularity at ten resolutions, and keep those nearest to the labels.

    Leiden on the UMAP-weighted graph of the 14 nearest neighbours (15 with the cell itself), at
    resolutions 0.2, 0.4 … 2; the one of greatest NMI with the labels is kept. That is a choice by
    the answer: the score says how well the labels *could* be found in the graph.

    Raises
    ------
    CapabilityError
        The optional package igraph is not installed.
    DataError
        See `encode`.

    References
    ----------
    Traag, Waltman & van Eck, From Louvain to Leiden, Scientific Reports 9 (2019).
    """
    igraph = require_igraph()
    label = encode(labels, "label", neighbours.n_cells)
    edges = triu(connectivities(neighbours.take(GRAPH_NEIGHBOURS)), format="coo")
    graph = igraph.Graph(
        neighbours.n_cells, np.column_stack(edges.coords), edge_attrs={"weight": edges.data}
    )

    def communities(resolution: float) -> Int[np.ndarray, " b"]:
        igraph.set_random_number_generator(random.Random(seed))
        found = graph.community_leiden("modularity", weights="weight", resolution=resolution)
        return np.array(found.membership)

    try:
        return max(map(communities, RESOLUTIONS), key=lambda found: nmi(label, found).value)
    finally:
        igraph.set_random_number_generator(random)  # igraph's own default


def require_igraph() -> ModuleType:
    """Import igraph, or say how to get it.

    Raises
    ------
    CapabilityError
        It is not installed.
    """
    try:
        import igraph
    except ImportError as error:
        raise CapabilityError(
            "Leiden clustering needs igraph, which is not installed: "
            "pip install 'chreode[bench]', or choose metrics without nmi_leiden and ari_leiden."
        ) from error
    return igraph


@checked
def nmi(labels: Labels, clusters: Labels) -> Score:
    r"""Normalised mutual information of labels and clusters.

    :math:`I(U; V) / \tfrac12 (H(U) + H(V))`. Range 0 … 1, best 1. Not adjusted for chance: many
    small clusters raise it.

    Raises
    ------
    DataError
        Fewer than two labels; see also `encode`.

    References
    ----------
    Vinh, Epps & Bailey, Information theoretic measures for clusterings comparison, JMLR 11 (2010).

    Examples
    --------
    >>> nmi(["B", "B", "T", "T"], [1, 1, 0, 0]).value
    1.0
    """
    return _agreement(labels, clusters, _nmi)


@checked
def ari(labels: Labels, clusters: Labels) -> Score:
    r"""Rand index of labels and clusters, adjusted for chance.

    With pairs of cells counted as joint, :math:`(n_{11} - E) / (\tfrac12 (n_{1\cdot} +
    n_{\cdot 1}) - E)`, where :math:`E` is the number expected of random clusters of the same
    sizes. Range −0.5 … 1, best 1, 0 by chance.

    Raises
    ------
    DataError
        Fewer than two labels; see also `encode`.

    References
    ----------
    Hubert & Arabie, Comparing partitions, Journal of Classification 2 (1985).

    Examples
    --------
    >>> round(ari(["B", "B", "T", "T"], [1, 0, 1, 0]).value, 3)
    -0.5
    """
    return _agreement(labels, clusters, _ari, span=(-0.5, 1.0))


def _agreement(
    labels: Labels,
    clusters: Labels,
    index: Callable[[Float64[np.ndarray, "l k"]], float],
    span: tuple[float, float] = SHARE,
) -> Score:
    n_cells = len(labels)
    label = encode(labels, "label", n_cells, at_least=2)
    cluster = encode(clusters, "cluster", n_cells)
    shape = label.max() + 1, cluster.max() + 1
    cell = label * shape[1] + cluster

    def statistic(counts: Int[np.ndarray, " b"]) -> float:
        return index(np.bincount(cell, counts, minlength=shape[0] * shape[1]).reshape(shape))

    return Score.of(statistic, n_cells, span)


def _nmi(table: Float64[np.ndarray, "l k"]) -> float:
    joint = table / table.sum()
    of_labels, of_clusters = _entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0))
    if of_labels + of_clusters == 0:
        return 1.0  # one label and one cluster
    mutual = of_labels + of_clusters - _entropy(joint)
    return max(0.0, 2 * mutual / (of_labels + of_clusters))


def _ari(table: Float64[np.ndarray, "l k"]) -> float:
    joint, of_labels, of_clusters = _pairs(table), _pairs(table.sum(1)), _pairs(table.sum(0))
    expected = of_labels * of_clusters / _pairs(table.sum(keepdims=True))
    most = (of_labels + of_clusters) / 2
    return 1.0 if most == expected else (joint - expected) / (most - expected)


def _entropy(p: Float64[np.ndarray, " ..."]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _pairs(n: Float64[np.ndarray, " ..."]) -> float:
    return float((n * (n - 1)).sum() / 2)
