"""Scores of an integrated embedding: how much biology it keeps, how much of the batches it drops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ..config.arguments import checked
from ..errors import ConfigError, DataError, counted, near
from .clustering import (
    ari,
    kmeans_clusters,
    leiden_clusters,
    nmi,
    require_igraph,
)
from .mixing import (
    LISI_NEIGHBOURS,
    clisi,
    graph_connectivity,
    ilisi,
    kbet,
    pcr_comparison,
)
from .neighbours import Neighbours, exact_neighbours
from .score import Labels, Score, as_embedding, column, combined, encode, missing
from .silhouette import (
    Widths,
    bras,
    isolated_labels,
    silhouette_batch,
    silhouette_label,
    silhouette_widths,
)


@dataclass(frozen=True, eq=False)
class Cells:
    """An embedding with what is known of its cells, and what the metrics compute only once."""

    x: Float[np.ndarray, "b z"]
    labels: Shaped[np.ndarray, " b"]
    batches: Int[np.ndarray, " b"]
    pre: Float[np.ndarray, "b g"] | None
    seed: int

    @cached_property
    def neighbours(self) -> Neighbours:
        """The 90 nearest cells of each cell."""
        return exact_neighbours(self.x, LISI_NEIGHBOURS)

    @cached_property
    def widths(self) -> Widths:
        """Silhouettes by label and batch."""
        return silhouette_widths(self.x, self.labels, self.batches)

    @cached_property
    def kmeans(self) -> Int[np.ndarray, " b"]:
        """As many k-means clusters as labels."""
        return kmeans_clusters(self.x, self.labels, seed=self.seed)

    @cached_property
    def leiden(self) -> Int[np.ndarray, " b"]:
        """The Leiden clusters nearest to the labels."""
        return leiden_clusters(self.neighbours, self.labels, seed=self.seed)

    def before(self) -> Float[np.ndarray, "b g"]:
        """Give `pre`, or say that it is missing."""
        if self.pre is None:
            raise DataError("No matrix from before the integration was given: pass it as pre.")
        return self.pre

    def among(self, kept: Bool[np.ndarray, " b"]) -> Cells:
        """Look at the kept cells only, and so find their neighbours among themselves."""
        pre = None if self.pre is None else self.pre[kept]
        return Cells(self.x[kept], self.labels[kept], self.batches[kept], pre, self.seed)


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics; `METRICS` holds them all.

    Attributes
    ----------
    key
        Name in code, and key of the score.
    name
        Name for people.
    kind
        `"bio"`: keeps the labels apart; `"batch"`: mixes the batches.
    needs
        What it reads, of `"embedding"`, `"neighbours"`, `"label"`, `"batch"` and `"pre"`.
    description
        What it measures, in one line.
    compute
        The score of some cells.
    best
        The value of a perfect embedding.
    higher_is_better
        True for all metrics of integration.
    """

    key: str
    name: str
    kind: Literal["bio", "batch"]
    needs: tuple[str, ...]
    description: str
    compute: Callable[[Cells], Score] = field(repr=False)
    best: float = 1.0
    higher_is_better: bool = True


METRICS: tuple[Metric, ...] = (
    Metric(
        "isolated_labels",
        "Isolated labels",
        "bio",
        ("embedding", "label", "batch"),
        "silhouette of the labels found in the fewest batches",
        lambda c: isolated_labels(c.x, c.labels, c.batches, widths=c.widths),
    ),
    Metric(
        "nmi_kmeans",
        "NMI, k-means",
        "bio",
        ("embedding", "label"),
        "information shared by labels and as many k-means clusters",
        lambda c: nmi(c.labels, c.kmeans),
    ),
    Metric(
        "ari_kmeans",
        "ARI, k-means",
        "bio",
        ("embedding", "label"),
        "pairs of cells on which labels and as many k-means clusters agree, beyond chance",
        lambda c: ari(c.labels, c.kmeans),
    ),
    Metric(
        "nmi_leiden",
        "NMI, Leiden",
        "bio",
        ("neighbours", "label"),
        "information shared by labels and the best of ten Leiden clusterings",
        lambda c: nmi(c.labels, c.leiden),
    ),
    Metric(
        "ari_leiden",
        "ARI, Leiden",
        "bio",
        ("neighbours", "label"),
        "pairs of cells on which labels and the Leiden clustering of best NMI agree",
        lambda c: ari(c.labels, c.leiden),
    ),
    Metric(
        "silhouette_label",
        "Silhouette, label",
        "bio",
        ("embedding", "label"),
        "distance to the own label against that to the nearest other",
        lambda c: silhouette_label(c.x, c.labels, widths=c.widths),
    ),
    Metric(
        "clisi",
        "cLISI",
        "bio",
        ("neighbours", "label"),
        "purity of neighbourhoods in labels",
        lambda c: clisi(c.neighbours, c.labels),
    ),
    Metric(
        "silhouette_batch",
        "Silhouette, batch",
        "batch",
        ("embedding", "label", "batch"),
        "overlap of each batch with the nearest other, within labels",
        lambda c: silhouette_batch(c.x, c.labels, c.batches, widths=c.widths),
    ),
    Metric(
        "bras",
        "BRAS",
        "batch",
        ("embedding", "label", "batch"),
        "overlap of each batch with all others, within labels",
        lambda c: bras(c.x, c.labels, c.batches),
    ),
    Metric(
        "ilisi",
        "iLISI",
        "batch",
        ("neighbours", "batch"),
        "mixing of batches in neighbourhoods",
        lambda c: ilisi(c.neighbours, c.batches),
    ),
    Metric(
        "kbet",
        "kBET",
        "batch",
        ("neighbours", "label", "batch"),
        "neighbourhoods that hold the batches as their label does",
        lambda c: kbet(c.neighbours, c.labels, c.batches),
    ),
    Metric(
        "graph_connectivity",
        "Graph connectivity",
        "batch",
        ("neighbours", "label"),
        "share of each label in one connected piece",
        lambda c: graph_connectivity(c.neighbours, c.labels),
    ),
    Metric(
        "pcr_comparison",
        "PCR comparison",
        "batch",
        ("embedding", "batch", "pre"),
        "share of the batch variance that the integration removed",
        lambda c: pcr_comparison(c.before(), c.x, c.batches),
    ),
)
"""The metrics of integration, in the order of the tables."""


@checked
def integration_scores(
    embedding: Float[np.ndarray, "b z"],
    labels: Labels,
    batches: Labels,
    *,
    pre: Float[np.ndarray, "_ g"] | None = None,
    seed: int = 0,
    metrics: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Score]:
    """Compute the metrics of integration; neighbours, distances and clusterings only once.

    Cells without a label are left out of every metric that reads labels, which then sees the
    labelled cells alone, neighbours among themselves; `Score.excluded` counts the rest. The other
    metrics (iLISI, PCR comparison) see all cells. All scores are resampled over all cells.

    A metric that is undefined for these data (one batch, one label, no `pre`) is a NaN with its
    `reason`. Scores are raw: nothing is rescaled by the other rows of a table. With 90 cells or
    fewer all cells are neighbours, with a warning.

    Parameters
    ----------
    embedding
        One row per cell.
    labels
        One per cell; NaN, None, the empty string or the code -1 where unknown.
    batches
        One per cell, none missing.
    pre
        The same cells before integration, for PCR comparison.
    seed
        Of the clusterings.
    metrics
        Keys of `METRICS`; all of them by default.
    progress
        Called with the key of each metric before it is computed.

    Returns
    -------
    dict
        Scores by key, in the order of `METRICS`.

    Raises
    ------
    ConfigError
        An unknown metric.
    CapabilityError
        A metric of Leiden clusters was chosen, and igraph is not installed.
    DataError
        Lengths that differ, cells without a batch, an embedding that is not finite or has
        collapsed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["B", "T"], 100)
    >>> x = rng.normal(size=(200, 3)) + 9 * (labels == "T")[:, None]
    >>> scores = integration_scores(x, labels, np.tile(["p1", "p2"], 100), metrics=["clisi"])
    >>> scores["clisi"].value
    1.0
    """
    wanted = chosen(metrics)
    if any(metric.key.endswith("leiden") for metric in wanted):
        require_igraph()
    x = as_embedding(embedding)
    label = column(labels, "label", len(x))
    if pre is not None and len(pre) != len(x):
        raise DataError(f"pre has {counted(len(pre), 'cell')}, but the embedding has {len(x)}.")
    known = ~missing(label)
    all_cells = Cells(
        x,
        label,
        encode(batches, "batch", len(x)),
        pre,
        seed,
    )
    labelled = all_cells if known.all() else all_cells.among(known)

    def score(metric: Metric) -> Score:
        reads_labels = "label" in metric.needs
        if progress is not None:
            progress(metric.key)
        try:
            found = metric.compute(labelled if reads_labels else all_cells)
        except DataError as error:
            seen = "" if known.all() or not reads_labels else " It sees the labelled cells alone."
            found = Score.undefined(f"{error}{seen}", len(x))
        return found.within(known) if reads_labels else found

    return {metric.key: score(metric) for metric in wanted}


def chosen(keys: Iterable[str] | None) -> tuple[Metric, ...]:
    """Return these of `METRICS`, in the order of the tables (default: all).

    Raises
    ------
    ConfigError
        An unknown metric, or none.
    """
    known = [metric.key for metric in METRICS]
    wanted = known if keys is None else list(keys)
    for key in wanted:
        if key not in known:
            raise ConfigError(f"There is no metric {key!r}.{near(key, known)}")
    if not wanted:
        raise ConfigError("Name a metric at least, or leave metrics out, which takes them all.")
    return tuple(metric for metric in METRICS if metric.key in wanted)


def weights(defined: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the weight of every defined metric in `"bio"`, `"batch"` and `"total"`.

    `"bio"` and `"batch"` are means, `"total"` is 0.6 bio + 0.4 batch; one without a defined metric
    is left out, and so is the total. Graph connectivity counts among the metrics of batches but reads
    none: by itself, as of a single batch, it makes no mean.

    References
    ----------
    Luecken et al., Nature Methods 19 (2022), for the weights; without their min-max scaling, under
    which the rank of an embedding depends on the others in the table.

    Examples
    --------
    >>> weights(["clisi", "nmi_kmeans", "ilisi"])["total"]
    {'nmi_kmeans': 0.3, 'clisi': 0.3, 'ilisi': 0.4}
    """
    keys = set(defined)
    out: dict[str, dict[str, float]] = {}
    for kind, reads in (("bio", "label"), ("batch", "batch")):
        members = [m for m in METRICS if m.kind == kind and m.key in keys]
        if any(reads in m.needs for m in members):
            out[kind] = {m.key: 1 / len(members) for m in members}
    if len(out) == 2:
        share = {"bio": 0.6, "batch": 0.4}
        out["total"] = {k: share[kind] * w for kind in share for k, w in out[kind].items()}
    return out


#: Why a mean of `weights` is not there.
UNDEFINED = {
    "bio": "no metric that compares labels is defined.",
    "batch": "no metric that compares batches is defined, as where there is one batch only.",
    "total": "it takes bio and batch, of which one is undefined.",
}


@checked
def summary(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Average raw scores by the `weights`.

    Undefined metrics are left out of the averages, so compare only embeddings for which the same
    ones are defined. The averages are scores themselves: their intervals resample the same cells
    for every metric.

    Parameters
    ----------
    scores
        What `integration_scores` gave.
    """
    n_cells = max(score.n_cells for score in scores.values())
    parts = weights(key for key, score in scores.items() if not score.reason)
    return {
        name: combined([(w, scores[key]) for key, w in parts[name].items()])
        if name in parts
        else Score.undefined(UNDEFINED[name], n_cells)
        for name in ("bio", "batch", "total")
    }
