"""Feature selection: the genes whose counts vary more than a gene without biology would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer
from scipy import sparse

from ..compute.progress import bar
from ..config.arguments import checked
from ..errors import ConfigError, DataError, SchemaError, counted, warn
from ..schema import Schema
from .cells import Cells
from .check import findings, require
from .read import Data


@checked
def select_genes(
    data: Data | str | Path, schema: Schema, n: int = 2000, *, rows: Any = None
) -> pd.Index:
    """Return the names of the `n` most variable genes, in the data's order.

    Use it as ``data = data[:, ch.pp.select_genes(data, schema)]``.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Genes are judged by their `counts`; where those are not named, by the variance of their
        `expression`, and those with NaN come last. Within each `batch`, where that is named.
    rows
        Cells to look at: the training cells, where some are held out (default: all).

    Raises
    ------
    SchemaError, DataError
        If neither is named, or the values are not what they are named as.
    """
    if schema.counts is None and schema.expression is None:
        raise SchemaError(
            "select_genes needs counts or expression: Schema(counts='layers/counts')."
        )
    role = "expression" if schema.counts is None else "counts"
    cells = Cells.of(data, schema)
    values, names = cells.matrix(role)
    at = cells.rows(role)
    rows = cells.positions(rows)
    rows = rows if at is None else rows[at[rows] >= 0]
    require(findings(cells.narrowed([role, "batch"]), rows))
    if n > len(names):
        warn(
            f"The data has {counted(len(names), 'gene')}, fewer than the {n:,} asked for: all are kept."
        )
    codes = np.zeros(len(rows), int)
    if schema.batch is not None:
        codes = pd.factorize(cells.column("batch").iloc[rows])[0]
    counts = sparse.csr_matrix(values[rows if at is None else at[rows]])
    judge = _variance if role == "expression" else _residual_variance
    with bar(len(rows), "choose genes", None) as shown:
        return names[np.sort(_rank(counts, codes, n, partial(judge, done=shown.update)))]


def _variance(x: sparse.csr_matrix, done: Callable[[int], object]) -> Float[np.ndarray, " g"]:
    done(x.shape[0])
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    return np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2


# Entries of one dense block of cells: 4 MiB of float64, so that the few blocks alive at once stay
# in cache whatever the size of the data.
_BLOCK = 2**19


@checked
def pearson_residual_variance(
    counts: sparse.csr_matrix | sparse.csr_array, *, theta: float = 100.0
) -> Float[np.ndarray, " g"]:
    """Variance over cells of every gene's analytic Pearson residuals.

    Under the null model a gene takes the same share of every cell's counts, mu_cg = n_c p_g, with
    negative binomial noise. Its residuals (x - mu) / sqrt(mu + mu²/theta), clipped at the square
    root of the number of cells, then have a variance near 1; biology raises it.

    Parameters
    ----------
    counts
        Raw counts of the cells of one batch, shape (cells, genes). Dense blocks of a few MiB are
        made of it, never the whole.
    theta
        Inverse dispersion of the null model, shared by all genes.

    Returns
    -------
    The population variance per gene; 0 for a gene that no cell expresses.

    Raises
    ------
    ConfigError
        If `theta` is not positive.
    DataError
        If there are no features, or the matrix is damaged.

    References
    ----------
    Lause, Berens & Kobak, Analytic Pearson residuals for normalization of single-cell RNA-seq UMI
    data, Genome Biology 22:258, 2021: the NB offset model, its residuals and their clipping.

    Examples
    --------
    >>> marker_and_two_flat = sparse.csr_matrix([[9, 5, 3], [8, 4, 4], [0, 5, 4], [0, 4, 3.0]])
    >>> pearson_residual_variance(marker_and_two_flat).round(1)
    array([1.9, 0.6, 0.5])
    """
    if counts.shape[1] == 0:
        raise DataError("counts has no features.")
    if not theta > 0:
        raise ConfigError(f"theta is {theta}; it must be positive. 100 suits UMI counts.")
    return _residual_variance(counts, theta)


def _residual_variance(
    counts: sparse.csr_matrix | sparse.csr_array,
    theta: float = 100.0,
    done: Callable[[int], object] = int,
) -> Float[np.ndarray, " g"]:
    """Return what `pearson_residual_variance` does; `done` is told of every so many cells."""
    n_cells, n_genes = counts.shape
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    gene_total = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    share = gene_total / max(depth.sum(), 1.0)
    clip = np.sqrt(n_cells)
    step = max(1, _BLOCK // n_genes)
    total, total_of_squares = np.zeros((2, n_genes))
    for start in range(0, n_cells, step):
        rows = slice(start, start + step)
        mu = np.outer(depth[rows], share)
        scale = np.sqrt(mu + mu**2 / theta)
        # mu is 0 where the gene or the cell has no counts at all: nothing to explain there.
        residual = np.divide(
            counts[rows].toarray() - mu, scale, out=np.zeros_like(mu), where=scale > 0
        )
        np.clip(residual, -clip, clip, out=residual)
        total += residual.sum(axis=0)
        total_of_squares += np.square(residual, out=residual).sum(axis=0)
        done(len(residual))
    n = max(n_cells, 1)
    # Residuals have a mean near 0, so the difference of the two moments loses no digits.
    return np.maximum(total_of_squares / n - (total / n) ** 2, 0.0)


@checked
def rank_genes(
    counts: sparse.csr_matrix | sparse.csr_array, batch: Integer[np.ndarray, " b"], n: int
) -> Integer[np.ndarray, " n"]:
    """Positions of the `n` most variable genes, best first, judged within batches.

    Genes are ranked by `pearson_residual_variance` in every batch on its own. A gene comes before
    another if more batches have it among their first `n`; then, if the median of its ranks in
    those batches is lower. What differs only between batches is flat within each and stays behind.

    Parameters
    ----------
    counts
        Raw counts, shape (cells, genes).
    batch
        Code of the batch of every cell; all equal where there is one batch.
    n
        How many genes to return; all of them are returned if there are fewer.

    Returns
    -------
    Column positions, shape (n,). Ties keep the order of the columns.

    Raises
    ------
    ConfigError
        If `n` is below 1.
    DataError
        If there are no cells or no features, or the matrix is damaged.

    References
    ----------
    Lause, Berens & Kobak, Genome Biology 22:258, 2021. The rule for batches is that of
    `scanpy.experimental.pp.highly_variable_genes`, save that residuals are clipped by the size of
    their own batch, where scanpy 1.11 clips those of every batch by the size of the first, and
    that a gene without variance in a batch is never among the first there.

    Examples
    --------
    >>> marker_and_two_flat = sparse.csr_matrix([[9, 5, 3], [8, 4, 4], [0, 5, 4], [0, 4, 3.0]])
    >>> rank_genes(marker_and_two_flat, np.zeros(4, dtype=int), n=1)
    array([0])
    """
    return _rank(counts, batch, n, pearson_residual_variance)


def _rank(
    x: sparse.csr_matrix | sparse.csr_array,
    batch: Integer[np.ndarray, " b"],
    n: int,
    judge: Callable[[Any], Float[np.ndarray, " g"]],
) -> Integer[np.ndarray, " n"]:
    if 0 in x.shape:
        raise DataError(
            f"counts has {counted(x.shape[0], 'cell')} and {counted(x.shape[1], 'feature')}: none to rank."
        )
    if n < 1:
        raise ConfigError(f"n is {n}; at least one gene must be asked for. 2,000 is common.")
    if np.shape(batch) != x.shape[:1]:
        raise ConfigError(
            f"batch has shape {np.shape(batch)}: give one value for each of {counted(x.shape[0], 'cell')}."
        )
    variance = np.stack([judge(x[batch == b]) for b in np.unique(batch)])
    rank = np.argsort(np.argsort(-variance, axis=1, kind="stable"), axis=1)
    first = (rank < n) & (variance > 0)
    n_batches = first.sum(axis=0)
    median_rank = np.full(x.shape[1], np.inf)
    named = n_batches > 0
    median_rank[named] = np.nanmedian(np.where(first, rank, np.nan)[:, named], axis=0)
    return np.lexsort((median_rank, -n_batches))[:n]
