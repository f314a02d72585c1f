"""Do cells have what defines their type? How many express its markers, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy import stats

from .space import log_cp10k

#: Markers of a type; cells that it must have on either side to be compared (of five, not even none against
#: all is beyond chance), and beyond a quantile.
MARKERS, FEWEST, BEYOND = 5, 6, 2
#: Held-out cells that a class must have to be scored by itself.
MIN_CLASS = 20
#: Standard errors that count as nothing: so far apart the worst of a hundred pairs of equal samples may be.
ERRORS = 3.0
#: Quantiles of expression that are compared, beside the share of cells that express at all.
QUANTILES = {"median": 0.5, "high": 0.9}
STATISTICS = ("share", *QUANTILES)


def choose_markers(
    counts: sp.csr_matrix, types: Int[np.ndarray, " n"], n: int = MARKERS
) -> dict[int, Int[np.ndarray, " k"]]:
    """Return, of each type, the genes that set it apart: most log-expression above the mean of all others.

    No test: where a type has three cells, by a test genes of the least variance win, which one cell more
    would undo. Choose them on cells that are compared with nothing: elsewhere, what was chosen looks
    less of a marker, by chance alone.

    Parameters
    ----------
    counts
        Raw counts, cells x genes.
    types
        Type of each cell, -1 where it has none. Types of fewer than two cells have no markers.
    """
    numbers, sizes = np.unique(types[types >= 0], return_counts=True)
    numbers, sizes = numbers[sizes > 1], sizes[sizes > 1]
    if len(numbers) < 2:
        return {}
    kept = np.flatnonzero(np.isin(types, numbers))
    x = log_cp10k(counts[kept])
    member = sp.csr_matrix(types[kept] == numbers[:, None], dtype=np.float64)
    sums, size = (member @ x).toarray(), sizes[:, None]
    more = sums / size - (sums.sum(0) - sums) / (size.sum() - size)
    return {
        int(number): order[row[order] > 0][:n]
        for number, row, order in zip(
            numbers, more, np.argsort(-more, axis=1, kind="stable"), strict=True
        )
    }


def compare_markers(
    real: sp.csr_matrix,
    of_real: Int[np.ndarray, " n"],
    fake: sp.csr_matrix,
    of_fake: Int[np.ndarray, " m"],
    markers: Mapping[int, Int[np.ndarray, " k"]],
) -> pd.DataFrame:
    """Compare the markers of each type that has `FEWEST` cells on either side.

    Parameters
    ----------
    real, fake
        Raw counts, cells x genes.
    of_real, of_fake
        Type of each cell.
    markers
        Positions of genes by type, as of `choose_markers`.

    Returns
    -------
    A row per type and marker: ``type``, ``gene`` (positions), ``cells`` and ``fake cells`` of the type, and
    of each of `STATISTICS` its value in ``real …`` and ``fake …`` cells (share of cells that express;
    quantiles of log1p counts per 10,000), and ``off …``: how far they are apart beyond `ERRORS` standard
    errors (0: no further than chance takes them; NaN for a quantile beyond which fewer than `BEYOND` cells
    lie, and as in `judged`).

    References
    ----------
    Shares: Agresti & Caffo (2000), The American Statistician 54:280. Quantiles: Harrell & Davis (1982),
    Biometrika 69:635, with the standard errors of Maritz & Jarrett (1978), JASA 73:194.
    """
    x, y = log_cp10k(real), log_cp10k(fake)
    tables = []
    for number, genes in markers.items():
        a, b = (
            c[np.flatnonzero(of == number)][:, genes].toarray()
            for c, of in ((x, of_real), (y, of_fake))
        )
        if min(len(a), len(b)) < FEWEST:
            continue
        sizes = {"cells": len(a), "fake cells": len(b)}
        columns: dict[str, object] = {"type": number, "gene": genes, **sizes}
        columns |= {"real share": (a > 0).mean(0), "fake share": (b > 0).mean(0)}
        for name, at in QUANTILES.items():
            columns |= {f"real {name}": np.quantile(a, at, axis=0)}
            columns |= {f"fake {name}": np.quantile(b, at, axis=0)}
            enough = (1 - at) * min(len(a), len(b)) >= BEYOND
            columns[f"off {name}"] = (
                _distance(_quantile(a, at), _quantile(b, at)) if enough else np.nan
            )
        tables.append(pd.DataFrame(columns))
    return judged(pd.concat(tables, ignore_index=True)) if tables else pd.DataFrame()


def judged(markers: pd.DataFrame) -> pd.DataFrame:
    """Return the table with how far shares are apart, and quantiles that are no matter of these alone.

    A quantile is compared where it is above 0 on both sides. Where about half of the cells express, the
    median is 0 in one sample and far from it in the next, and no standard error of few cells knows of it:
    whether cells express at all is what shares measure.
    """
    shares = (
        _share(markers["real share"], markers["cells"]),
        _share(markers["fake share"], markers["fake cells"]),
    )
    off = {"off share": _distance(*shares)}
    for name in QUANTILES:
        expressed = (markers[[f"real {name}", f"fake {name}"]] > 0).all(axis=1)
        off[f"off {name}"] = markers[f"off {name}"].where(expressed)
    return markers.assign(**off)[markers[["cells", "fake cells"]].min(axis=1) >= FEWEST]


def _distance(a: tuple[Any, Any], b: tuple[Any, Any]) -> Any:
    """Return how far estimates are apart beyond `ERRORS` of their standard errors, at least 0."""
    (u, du), (v, dv) = a, b
    return np.maximum(np.abs(u - v) - ERRORS * np.hypot(du, dv), 0)


def _share(share: pd.Series, cells: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the share, with z²/4 successes and failures added for z standard errors, and its standard error.

    Agresti & Caffo add one of each, for two standard errors. At three that is too few: none of six cells
    against five of six would count, as chance makes one in 160 pairs.
    """
    added = ERRORS**2 / 4
    n = cells + 2 * added
    p = ((share * cells).round() + added) / n
    return p, np.sqrt(p * (1 - p) / n)


def _quantile(x: Float[np.ndarray, "n k"], at: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a quantile, as a mean of ordered values weighed by where it may lie, and its standard error."""
    n = len(x)
    ends = stats.beta.cdf(np.arange(n + 1) / n, (n + 1) * at, (n + 1) * (1 - at))
    weight, ordered = np.diff(ends), np.sort(x, axis=0)
    mean = weight @ ordered
    return mean, np.sqrt(np.maximum(weight @ ordered**2 - mean**2, 0))
