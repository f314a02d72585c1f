"""Closed forms and wrapped solvers: one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from ..compute.rng import Rng
from ..data.batch import CellBatch, SparseRows
from ..data.source import Source
from ..errors import DataError, counted
from ..module import Module
from ..nn.sparse import (
    centred_squares,
    centred_times,
    centred_transposed_times,
    powers,
    transposed_times,
)
from .phase import Phase, Session, Split, Trace

Batches = Callable[[], Iterator[CellBatch]]


@dataclass(frozen=True)
class FitBatches:
    """The training cells of a fit in minibatches, as often as it is called, and its validation cells."""

    source: Source
    split: Split
    device: str

    def __call__(self) -> Iterator[CellBatch]:
        """Return the training cells."""
        return self.source.batches(self.split.train, self.device)

    def held_out(self) -> Iterator[CellBatch]:
        """Return the validation cells, of which there may be none."""
        return self.source.batches(self.split.validation, self.device)


#: Features up to which their covariance is held: one pass over the cells, 72 MB.
FEATURES_SQUARED = 3000
#: Cells up to which their inner products are held, where there are more features than that.
CELLS_SQUARED = 2000
#: Cells that are dense at a time for these: their table is to fit in a cache.
DENSE_CELLS = 16
#: Passes over the cells at most where neither is held.
MAX_PASSES = 80
#: What an axis v of variance λ may leave there: ‖C v − λ v‖ <= TOLERANCE · λ.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exact:
    """Call ``module.solve(batches, rng)`` once; False from it means "still improving when it stopped"."""

    validates: ClassVar[bool] = False

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Solve in place."""
        start = time.perf_counter()
        target = phase.target(module)
        with torch.no_grad():
            converged = target.solve(FitBatches(source, split, run.device), run.rng)
        history = pd.DataFrame({"epoch": [0], "seconds": [time.perf_counter() - start]})
        return Trace(history, "still improving" if converged is False else "rested")


class Principal(NamedTuple):
    """Leading eigenvectors of the covariance (divided by n) of log-expression.

    Attributes
    ----------
    mean, variance
        Of each feature.
    values, axes
        The largest eigenvalues, falling, and their vectors; a vector's largest entry is positive.
    covariance
        All of it, if it was held.
    converged
        False where the passes ran out before `TOLERANCE` was met.
    """

    mean: Float[Tensor, " g"]
    variance: Float[Tensor, " g"]
    values: Float[Tensor, " k"]
    axes: Float[Tensor, "g k"]
    covariance: Float[Tensor, "g g"] | None = None
    converged: bool = True


def principal(batches: Batches, k: int, rng: Rng) -> Principal:
    """Return the k leading principal axes of log-expression, in float64.

    By the small side: the covariance of up to `FEATURES_SQUARED` features, else the inner products of
    up to `CELLS_SQUARED` cells, both exact; else by block Lanczos to `TOLERANCE`. Cells are streamed,
    several times but for few features, and centred without being made dense. The same seed gives the
    same bits.

    Raises
    ------
    DataError
        If there are fewer than k + 1 cells or k features.

    References
    ----------
    Golub & Underwood (1977), The block Lanczos method for computing eigenvalues, Mathematical Software
    III:361, with all blocks made orthogonal to each other; from a random start as Musco & Musco (2015),
    Randomized block Krylov methods, NeurIPS 28.
    """
    first = next(batches())
    g, device = _width(first.stored_expression()), first.rows.device
    if g <= FEATURES_SQUARED:
        n, mean, covariance = moments(batches)
        _refuse_few(k, n, g)
        return Principal(mean, covariance.diagonal(), *top_eigen(covariance, k), covariance)
    n, mean, variance = _sums(batches, torch.zeros(2, g, dtype=torch.float64, device=device))
    _refuse_few(k, n, g)
    if n <= CELLS_SQUARED:
        return Principal(mean, variance, *_by_cells(batches, n, mean, k))
    start = rng.numpy("lanczos").standard_normal((g, min(max(k // 2, 8), g)))
    block = torch.linalg.qr(torch.from_numpy(start).to(device)).Q
    values, axes, converged = _lanczos(_covariance_times(batches, n, mean), block, k)
    return Principal(mean, variance, values, axes, converged=converged)


def _refuse_few(k: int, n: int, g: int) -> None:
    if k > min(n - 1, g):
        raise DataError(
            f"A fit with n_latent={k} needs {counted(k + 1, 'cell')} and {counted(k, 'feature')}; got "
            f"{n} x {g}. "
            f"Ask for {max(min(n - 1, g), 1)} or fewer."
        )


def _width(x: Tensor | SparseRows) -> int:
    return x.n_features if isinstance(x, SparseRows) else x.shape[1]


def _sums(
    batches: Batches, total: Float[Tensor, "2 g"]
) -> tuple[int, Float[Tensor, " g"], Float[Tensor, " g"]]:
    """Return the number of cells, and each feature's mean and variance; `total` is zeros to add to."""
    n = 0
    for batch in batches():
        ones = total.new_ones(len(batch), 1)
        total[0] += transposed_times(batch.stored_expression(), ones)[:, 0]
        n += len(batch)
    mean = total[0] / n
    for batch in batches():
        total[1] += centred_squares(batch.stored_expression(), mean)
    return n, mean, total[1] / n


def _by_cells(
    batches: Batches, n: int, mean: Float[Tensor, " g"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "g k"]]:
    """Solve by inner products of cells, a chunk of cells against a few that are dense."""
    products = mean.new_zeros(n, n)
    end = 0
    for batch in batches():
        start, end, other = end, end + len(batch), 0
        left = powers(batch.stored_expression(), 1)
        for against in batches():
            if other >= end:
                break
            for few in against.split([len(part) for part in against.rows.split(DENSE_CELLS)]):
                right = few.log_expression().double() - mean
                inner = centred_times(left, mean, right.T)
                products[start:end, other : other + len(few)] = inner
                other += len(few)
    products = products.tril() + products.tril(-1).T
    values, cells = top_eigen(products / n, k)
    axes, start = mean.new_zeros(len(mean), k), 0
    for batch in batches():
        part = cells[start : start + len(batch)]
        axes += centred_transposed_times(batch.stored_expression(), mean, part)
        start += len(batch)
    # the columns are orthogonal as they are; this gives them length 1, those of variance 0 too
    return values.clamp_min(0), _positive(torch.linalg.qr(axes).Q)


def _covariance_times(
    batches: Batches, n: int, mean: Float[Tensor, " g"]
) -> Callable[[Float[Tensor, "g k"]], Float[Tensor, "g k"]]:
    """Return what multiplies a table by the covariance, in one pass over the cells."""

    def product(table: Float[Tensor, "g k"]) -> Float[Tensor, "g k"]:
        total = torch.zeros_like(table)
        for batch in batches():
            x = batch.stored_expression()
            total += centred_transposed_times(x, mean, centred_times(x, mean, table))
        return total / n

    return product


def _lanczos(
    product: Callable[[Tensor], Tensor], block: Float[Tensor, "g b"], k: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "g k"], bool]:
    """Return the k largest eigenvalues of a symmetric product, their vectors, and whether they are good.

    Each pass multiplies the newest block of the basis, and what is new of the outcome is the next
    block. The residual of every pair is known from the last rows alone.
    """
    g, width = block.shape
    basis, small = block, block.new_zeros(0, 0)
    for _ in range(MAX_PASSES):
        found, old = product(block), len(small)
        shares = basis.T @ found
        small = torch.nn.functional.pad(small, (0, width, 0, width))
        small[:, old:], small[old:, :] = shares, shares.T
        block, rest = torch.linalg.qr(found - basis @ shares)
        # rounding leaves something of the basis behind, and all of it where nothing is new
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        values, turn = torch.linalg.eigh(small)
        values, turn = values[-k:].flip(0), turn[:, -k:].flip(1)
        left = (rest @ turn[-width:]).norm(dim=0)
        converged = len(small) >= k and bool((left <= TOLERANCE * values + 1e-9 * values[0]).all())
        if converged or basis.shape[1] + width > g:
            break
        basis = torch.cat([basis, block], 1)
    return values.clamp_min(0), _positive(basis[:, : len(turn)] @ turn), converged


def moments(
    batches: Batches,
) -> tuple[int, Float[torch.Tensor, " g"], Float[torch.Tensor, "g g"]]:
    """Return the number of cells, the mean and the covariance (divided by n) of log-expression.

    One pass in float64; memory is features squared, whatever the number of cells.
    """
    # products of nearly centred values lose no digits, hence the shift by the first chunk's mean
    shift = next(batches()).log_expression().double().mean(0)
    n, total, products = 0, torch.zeros_like(shift), torch.zeros_like(torch.outer(shift, shift))
    for batch in batches():
        x = batch.log_expression().double() - shift
        n += len(x)
        total += x.sum(0)
        products.addmm_(x.T, x)
    mean = total / n
    return n, mean + shift, products / n - torch.outer(mean, mean)


def top_eigen(
    symmetric: Float[torch.Tensor, "g g"], k: int
) -> tuple[Float[torch.Tensor, " k"], Float[torch.Tensor, "g k"]]:
    """Return the k largest eigenvalues, falling, and their vectors; their largest entries are positive."""
    matrix = symmetric.cpu().numpy()
    g = len(matrix)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[g - k, g - 1])
    device = symmetric.device
    vectors = torch.from_numpy(vectors[:, ::-1].copy()).to(device)
    return torch.from_numpy(values[::-1].copy()).to(device), _positive(vectors)


def _positive(vectors: Float[Tensor, "g k"]) -> Float[Tensor, "g k"]:
    """Turn each vector so that its largest entry is positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)
