"""Pictures: each function takes data and, if you like, `ax`, and returns the axes or the figure.

Figures are made without pyplot, so nothing needs a display and nothing is left open: show one with
``ax.figure`` in a notebook, write one with ``ax.figure.savefig("picture.svg")``.
"""

from .counts import mean_variance
from .coverage import coverage_bars, coverage_matrix
from .curves import history
from .dots import dot_plot
from .dynamics import edge_matrix, paths, phase_portrait, sparsity_curve
from .generation import marker_shares, real_and_generated, zero_fractions
from .recovery import recovery_dots, recovery_over_ratio, rescaled_losses, spheres
from .scatter import embedding, umap_coordinates
from .scores import score_table
from .typing import calibration_curve, confusion_matrix, depth_curve

__all__ = [
    "calibration_curve",
    "confusion_matrix",
    "coverage_bars",
    "coverage_matrix",
    "depth_curve",
    "dot_plot",
    "edge_matrix",
    "embedding",
    "history",
    "marker_shares",
    "mean_variance",
    "paths",
    "phase_portrait",
    "real_and_generated",
    "recovery_dots",
    "recovery_over_ratio",
    "rescaled_losses",
    "score_table",
    "sparsity_curve",
    "spheres",
    "umap_coordinates",
    "zero_fractions",
]
