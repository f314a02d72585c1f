"""Numbers by which fits are judged: each a plain function, with its formula, range and source."""

from .clustering import ari, kmeans_clusters, leiden_clusters, nmi
from .integration import METRICS, Metric, integration_scores, summary
from .mixing import clisi, graph_connectivity, ilisi, kbet, lisi, pcr_comparison
from .neighbours import Neighbours, exact_neighbours
from .score import Score
from .silhouette import (
    bras,
    isolated_labels,
    silhouette_batch,
    silhouette_label,
    silhouette_widths,
)

__all__ = [
    "METRICS",
    "Metric",
    "Neighbours",
    "Score",
    "ari",
    "bras",
    "clisi",
    "exact_neighbours",
    "graph_connectivity",
    "ilisi",
    "integration_scores",
    "isolated_labels",
    "kbet",
    "kmeans_clusters",
    "leiden_clusters",
    "lisi",
    "nmi",
    "pcr_comparison",
    "silhouette_batch",
    "silhouette_label",
    "silhouette_widths",
    "summary",
]
