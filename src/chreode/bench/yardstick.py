"""How real and generated cells are split and compared: by what neither side has shaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError, counted
from ..metrics import generation as measure
from ..metrics.markers import MIN_CLASS, STATISTICS, choose_markers, compare_markers
from ..metrics.space import Space
from .generators import Classes

#: Shares of the cells, as `Parts` has them.
SHARES = (0.5, 0.2, 0.2, 0.1)
TOO_FEW = (
    f"No class has {counted(MIN_CLASS, 'cell')} to compare, which are a fifth of all. Give more cells, or "
    "fewer categories."
)
#: Metrics that tell replayed cells from new ones; by all others they are real cells.
OF_MEMORY = ("memory", "membership")
#: Cells of a class, and of all classes together, that distances look at.
POOLED = 2000
METRICS = {
    "w2": ("W2", 0.0, "2-Wasserstein distance in 30 principal components, mean over classes"),
    "w2_pooled": ("W2, pooled", 0.0, "the same of all classes together"),
    "mmd": ("MMD²", 0.0, "unbiased squared maximum mean discrepancy, mean over classes"),
    "mmd_pooled": ("MMD², pooled", 0.0, "the same of all classes together"),
    "energy": ("energy", 0.0, "unbiased energy distance, mean over classes"),
    "auc": ("AUC", 0.5, "a random forest that tells real from fake, mean over classes"),
    "auc_pooled": ("AUC, pooled", 0.5, "the same of all classes together"),
    "precision": ("precision", 1.0, "fake cells near real ones"),
    "recall": ("recall", 1.0, "real cells near fake ones"),
    "density": ("density", 1.0, "real neighbourhoods that a fake cell lies in"),
    "coverage": ("coverage", 1.0, "real cells with a fake one in their neighbourhood"),
    "mean": ("feature means", 1.0, "concordance over features, mean over classes"),
    "variance": ("feature variances", 1.0, "concordance over features, mean over classes"),
    "zeros": ("zeros", 1.0, "concordance over features of the share of zeros, mean over classes"),
    "correlation": ("pairs", 1.0, "concordance of correlations of the 200 most variable features"),
    "fold_change": ("fold changes", 1.0, "concordance of log fold changes, class against the rest"),
    "depth": ("depth", 0.0, "Kolmogorov-Smirnov distance of totals, mean over classes"),
    "marker_share": ("markers", 0.0, "share of cells that express, worst type and marker"),
    "marker_median": (
        "markers, median",
        0.0,
        "median log-expression where most cells express, worst type and marker",
    ),
    "marker_high": ("markers, 90 %", 0.0, "its 90 % quantile, worst type and marker"),
    "memory": ("memory", 0.5, "how often a fake is nearer to a training cell than a held-out one"),
    "membership": ("membership", 0.5, "how often fakes give away that a cell was trained on"),
}


class Parts(NamedTuple):
    """Rows to learn from, to compare with, of real cells that take the place of fakes, and of the yardstick.

    All that distances are measured in (genes, components, widths, markers) is chosen by the last, and no row
    of a table is made of them or compared with them.
    """

    train: np.ndarray
    reference: np.ndarray
    spare: np.ndarray
    yardstick: np.ndarray


def split(classes: Classes, seed: int) -> Parts:
    """Return the rows of every part, shares of each class (see `SHARES`).

    A class of three cells or more is in all parts but the yardstick, which takes one of six.
    """
    return Parts(*stratified(classes, SHARES, np.random.default_rng([seed, 7])))


def stratified(
    classes: Classes, shares: Sequence[float], rng: np.random.Generator
) -> list[np.ndarray]:
    """Return rows of parts that have these shares of every class, the first what rounding leaves."""
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for number in np.unique(classes[classes >= 0]):
        rows = rng.permutation(np.flatnonzero(classes == number))
        ends = np.cumsum([round(share * len(rows)) for share in shares[:0:-1]])
        for part, some in zip(parts, np.split(rows, ends)[::-1], strict=True):
            part.append(some)
    return [np.sort(np.concatenate(part)) for part in parts]


def scored(
    real: sp.csr_matrix,
    of_real: Classes,
    fake: sp.csr_matrix,
    of_fake: Classes,
    *,
    train: sp.csr_matrix,
    yardstick: sp.csr_matrix,
    of_yardstick: Classes,
    types: Classes | None = None,
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Return every metric of `METRICS`; those of single classes, classes x metrics; and the markers of types.

    The first are means over the classes of at least `MIN_CLASS` cells, which the second holds.

    Parameters
    ----------
    real, fake
        Raw counts, and the class of each cell.
    train
        Raw counts of what was learned from, which `OF_MEMORY` alone asks about.
    yardstick
        Raw counts of further real cells and the class of each, which choose genes, components, widths of
        kernels and markers.
    types
        Number of the type whose markers each class has (default: its own).

    Raises
    ------
    DataError
        If no class has enough cells.
    """
    sides = {
        int(number): (np.flatnonzero(of_real == number), np.flatnonzero(of_fake == number))
        for number in np.unique(of_real)
    }
    large = {number: ab for number, ab in sides.items() if min(map(len, ab)) >= MIN_CLASS}
    if not large:
        raise DataError(TOO_FEW)
    space = Space.of(yardstick)
    x, y, yard = space.place(real), space.place(fake), space.place(yardstick)
    parts = {}
    for number, (a, b) in large.items():
        own = yard[of_yardstick == number]
        widths = measure.median_widths(own if len(np.unique(own, axis=0)) > 1 else yard)
        parts[number] = _of_class(x[a], y[b], real[a], fake[b], widths, seed)
    few = _thinned(x, seed), _thinned(y, seed)
    by_variance = np.argsort(-measure.Moments.of(yardstick).variance, kind="stable")
    known = space.place(train)
    of = (of_yardstick, of_real, of_fake) if types is None else (
        types[of_yardstick], types[of_real], types[of_fake]
    )  # fmt: skip
    markers = compare_markers(real, of[1], fake, of[2], choose_markers(yardstick, of[0]))
    pooled = {
        "w2_pooled": measure.wasserstein2(*few, seed=seed),
        "mmd_pooled": measure.mmd2(*few, measure.median_widths(yard)),
        "auc_pooled": measure.real_or_fake(x, y, seed=seed),
        "correlation": measure.correlation_agreement(real, fake, by_variance[:200]),
        "fold_change": measure.fold_change_agreement(real, fake, of_real, of_fake),
        "memory": measure.memorisation(known, x, y),
        "membership": measure.membership(known, x, y),
        **{
            f"marker_{name}": markers[f"off {name}"].max() if len(markers) else np.nan
            for name in STATISTICS
        },
    }
    table = pd.DataFrame.from_dict(parts, orient="index")
    found = {**table.mean().to_dict(), **pooled}
    return {key: float(found[key]) for key in METRICS}, table, markers


def _of_class(
    x: np.ndarray,
    y: np.ndarray,
    real: sp.csr_matrix,
    fake: sp.csr_matrix,
    widths: np.ndarray,
    seed: int,
) -> dict[str, float]:
    x, y = _thinned(x, seed), _thinned(y, seed)
    shape = measure.manifold(x, y)
    return {
        "w2": measure.wasserstein2(x, y, seed=seed),
        "mmd": measure.mmd2(x, y, widths),
        "energy": measure.energy_distance(x, y),
        "auc": measure.real_or_fake(x, y, seed=seed),
        "precision": shape.precision, "recall": shape.recall,
        "density": shape.density, "coverage": shape.coverage,
        **measure.gene_agreement(real, fake),
        "depth": measure.depth_distance(*(np.asarray(c.sum(1)).ravel() for c in (real, fake))),
    }  # fmt: skip


def _thinned(x: np.ndarray, seed: int) -> np.ndarray:
    return x[np.random.default_rng(seed).permutation(len(x))[:POOLED]]


def worst_marker(markers: pd.DataFrame, method: str) -> str:
    """Say which marker of which type is off the most, by the share of cells that express it; "" if none is.

    Examples
    --------
    >>> row = {"method": "VAE", "class": "B", "gene": "CD79A", "real share": 1.0, "fake share": 0.25}
    >>> worst_marker(pd.DataFrame([{**row, "cells": 40, "off share": 0.5}]), "VAE")
    'worst marker: CD79A, which 25 % of B express (of 40 real ones 100 %)'
    """
    if not len(markers) or method not in set(markers["method"]):
        return ""
    means = markers[markers["method"] == method].groupby(["class", "gene"]).mean(numeric_only=True)
    worst = means.loc[means["off share"].idxmax()]
    if worst["off share"] == 0:
        return ""
    (kind, gene), fake, real = worst.name, worst["fake share"], worst["real share"]
    return (
        f"worst marker: {gene}, which {100 * fake:.0f} % of {kind} express "
        f"(of {counted(int(worst['cells']), 'real one')} {100 * real:.0f} %)"
    )
