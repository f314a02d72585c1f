"""Which genes differ between groups of cells: every group against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float
from scipy import stats

from ..config.arguments import Sparse, checked
from ..errors import ConfigError, DataError, counted
from .score import Labels, column, encode, missing
from .threads import chunks

#: Values of a block of genes that is made dense to be ranked.
_DENSE = 2**24


@checked
def differential_expression(
    x: Sparse | Float[np.ndarray, "b g"],
    labels: Labels,
    *,
    method: Literal["t", "wilcoxon"] = "t",
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Test each group against all other cells, gene by gene.

    Parameters
    ----------
    x
        log1p of counts per 10,000, cells x genes.
    labels
        Group of each cell; cells without one are left out.
    method
        ``"t"``: Welch's test with overestimated variance: the rest counts for no more cells than the
        group has, so that a small group is not certain of everything. ``"wilcoxon"``: rank sums by the
        normal approximation, corrected for ties (zeros are one).
    genes
        Names (default: positions).

    Returns
    -------
    One row per group and gene, the most significant first within a group: ``group``, ``gene``,
    ``score`` (t or z), ``log2_fold_change`` (of mean counts per 10,000), ``p``, and ``p_adjusted``
    (Benjamini and Hochberg 1995, within the group).

    Raises
    ------
    DataError
        If there are fewer than two groups, a group has fewer than two cells, there is not one label for each
        cell and, where they are named, one name for each gene, or x is not finite.

    Examples
    --------
    >>> x = np.array([[2.0, 0.0], [1.9, 0.1], [0.1, 0.0], [0.0, 0.1]])
    >>> differential_expression(x, list("aabb"), genes=["up", "same"])["gene"].tolist()[:2]
    ['up', 'same']
    """
    if method not in ("t", "wilcoxon"):
        raise ConfigError(f"method={method!r}: expected 't' or 'wilcoxon'.")
    whole = column(labels, "label", x.shape[0])
    kept = ~missing(whole)
    x = sp.csr_matrix(x)[np.flatnonzero(kept)].astype(np.float64)
    if not np.isfinite(x.data).all():
        raise DataError("x is NaN or infinite somewhere: give log1p of counts per 10,000.")
    if genes is not None and len(genes) != x.shape[1]:
        raise DataError(
            f"genes has {counted(len(genes), 'name')} for {counted(x.shape[1], 'column')}: give one for each."
        )
    named = whole[kept]
    codes = encode(named, "label", len(named), at_least=2)
    groups = pd.unique(named)
    member = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    n = np.bincount(codes)
    if n.min() < 2:  # and so has its rest two
        raise DataError(f"Group {groups[n.argmin()]!r} has fewer than two cells: leave it out.")
    score, p = (_t if method == "t" else _wilcoxon)(x, member, n)
    change = _fold_changes(x, member, n)
    names = np.arange(x.shape[1]) if genes is None else np.asarray(genes)
    tables = []
    for i, group in enumerate(groups):
        adjusted = stats.false_discovery_control(np.nan_to_num(p[i], nan=1.0))
        table = pd.DataFrame(
            {"group": group, "gene": names, "score": score[i], "log2_fold_change": change[i],
             "p": p[i], "p_adjusted": adjusted}
        )  # fmt: skip
        order = np.lexsort((-np.abs(np.nan_to_num(score[i])), np.nan_to_num(p[i], nan=1.0)))
        tables.append(table.iloc[order])
    return pd.concat(tables, ignore_index=True)


def _moments(x: sp.csr_matrix, member: sp.csr_matrix, n: np.ndarray) -> tuple[Any, ...]:
    """Return mean and variance of each group and of its rest."""
    sums, squares = (member @ x).toarray(), (member @ x.multiply(x)).toarray()
    found = []
    for count, total, square in (
        (n[:, None], sums, squares),
        (n.sum() - n[:, None], sums.sum(0) - sums, squares.sum(0) - squares),
    ):
        mean = total / count
        found += [mean, np.maximum(square / count - mean**2, 0) * count / (count - 1)]
    return tuple(found)


def _t(x: sp.csr_matrix, member: sp.csr_matrix, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, variance, of_rest, variance_of_rest = _moments(x, member, n)
    size = n[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):  # a gene that never varies
        return stats.ttest_ind_from_stats(
            mean, np.sqrt(variance), size, of_rest, np.sqrt(variance_of_rest),
            np.minimum(size, n.sum() - size), equal_var=False,
        )  # fmt: skip


def _wilcoxon(
    x: sp.csr_matrix, member: sp.csr_matrix, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    cells, genes = x.shape
    by_gene, z = x.tocsc(), np.empty((len(n), genes))
    size = n[:, None].astype(np.float64)
    rest = cells - size
    for part in chunks(genes, max(1, _DENSE // cells)):
        ranks = stats.rankdata(by_gene[:, part].toarray(), axis=0)
        # Σ (r − mean)² is what ties leave of the variance of ranks
        spread = ((ranks - (cells + 1) / 2) ** 2).sum(0)
        excess = member @ ranks - size * (cells + 1) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            z[:, part] = excess / np.sqrt(size * rest * spread / (cells * (cells - 1)))
    return z, 2 * stats.norm.sf(np.abs(z))


def _fold_changes(x: sp.csr_matrix, member: sp.csr_matrix, n: np.ndarray) -> np.ndarray:
    level = x.copy()
    level.data = np.expm1(level.data)
    mean, _, rest, _ = _moments(level, member, n)
    return np.log2((mean + 1e-9) / (rest + 1e-9))
