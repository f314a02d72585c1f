"""Products of sparse rows and small dense matrices, without the dense block."""

from __future__ import annotations

from typing import Any

import scipy.sparse
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..data.batch import SparseRows

# The share of stored values above which a dense product is quicker, measured at 128 and 512 rows.
_DENSE_FROM = 0.35


def sparse_linear(
    x: SparseRows, weight: Float[Tensor, "h g"], bias: Float[Tensor, " h"] | None = None
) -> Float[Tensor, "b h"]:
    """Return x @ weight.T + bias; gradients go to weight and bias.

    A weight whose transpose is contiguous spares a copy of it, and one of its gradient.

    Examples
    --------
    >>> import torch
    >>> x = SparseRows.of(torch.tensor([[0.0, 2.0]]))
    >>> sparse_linear(x, torch.tensor([[1.0, 10.0], [3.0, 0.5]]))
    tensor([[20.,  1.]])
    """
    stored = len(x.values) / max(1, len(x) * x.n_features)
    if weight.device.type != "cpu" or stored > _DENSE_FROM or torch.compiler.is_compiling():
        return F.linear(x.dense().to(weight.dtype), weight, bias)
    out = _Product.apply(x, weight)  # type: ignore[no-untyped-call]  # torch's own
    return out if bias is None else out + bias


def times(
    x: SparseRows | Float[Tensor, "b g"], table: Float[Tensor, "g k"]
) -> Float[Tensor, "b k"]:
    """Return x @ table in the table's precision, without gradients.

    Examples
    --------
    >>> x = SparseRows.of(torch.tensor([[0.0, 2.0]]))
    >>> times(x, torch.tensor([[1.0], [3.0]]))
    tensor([[6.]])
    """
    if isinstance(x, SparseRows) and table.device.type == "cpu":
        return torch.from_numpy(_csr(x, table) @ table.numpy())
    return _block(x).to(table.dtype) @ table


def transposed_times(
    x: SparseRows | Float[Tensor, "b g"], table: Float[Tensor, "b k"]
) -> Float[Tensor, "g k"]:
    """Return xᵀ @ table in the table's precision, without gradients.

    Examples
    --------
    >>> x = SparseRows.of(torch.tensor([[0.0, 2.0]]))
    >>> transposed_times(x, torch.tensor([[3.0]]))
    tensor([[0.],
            [6.]])
    """
    if isinstance(x, SparseRows) and table.device.type == "cpu":
        return torch.from_numpy(_csr(x, table).T @ table.numpy())
    return _block(x).to(table.dtype).T @ table


def centred_times(
    x: SparseRows | Float[Tensor, "b g"], mean: Float[Tensor, " g"], table: Float[Tensor, "g k"]
) -> Float[Tensor, "b k"]:
    """Return (x − mean) @ table."""
    return times(x, table) - mean @ table


def centred_transposed_times(
    x: SparseRows | Float[Tensor, "b g"], mean: Float[Tensor, " g"], table: Float[Tensor, "b k"]
) -> Float[Tensor, "g k"]:
    """Return (x − mean)ᵀ @ table."""
    return transposed_times(x, table) - mean.outer(table.sum(0))


def centred_squares(
    x: SparseRows | Float[Tensor, "b g"], mean: Float[Tensor, " g"]
) -> Float[Tensor, " g"]:
    """Return Σ (x − mean)² of each feature: of differences, so that a large mean costs no digits.

    Examples
    --------
    >>> x = SparseRows.of(torch.tensor([[0.0, 2.0], [1.0, 4.0]]))
    >>> centred_squares(x, torch.tensor([0.5, 3.0]))
    tensor([0.5000, 2.0000])
    """
    if isinstance(x, Tensor):
        return (x - mean).square().sum(0)
    one = mean.new_ones(len(x), 1)
    squares = x.map((x.values - mean[x.columns]).square()), x.map(torch.ones_like(x.values))
    of_stored, n_stored = (transposed_times(values, one)[:, 0] for values in squares)
    return of_stored + (len(x) - n_stored) * mean.square()


def add_at(total: Float[Tensor, "n g"], at: Int[Tensor, " b"], rows: Float[Tensor, "b g"]) -> None:
    """Add every row to the row `at` of the total, in place and always in the same order.

    A card adds by index in any order, so that the same seed would give other bits.

    Examples
    --------
    >>> total = torch.zeros(2, 1)
    >>> add_at(total, torch.tensor([1, 1]), torch.tensor([[2.0], [3.0]]))
    >>> total
    tensor([[0.],
            [5.]])
    """
    if total.device.type == "cpu":
        total.index_add_(0, at, rows)
    else:
        total.addmm_(F.one_hot(at, len(total)).T.to(rows.dtype), rows)


def powers(x: SparseRows | Float[Tensor, "b g"], power: int) -> SparseRows | Float[Tensor, "b g"]:
    """Return every value to a power above 0, in float64."""
    return x.map(x.values.double() ** power) if isinstance(x, SparseRows) else x.double() ** power


def _block(x: SparseRows | Float[Tensor, "b g"]) -> Float[Tensor, "b g"]:
    return x.dense() if isinstance(x, SparseRows) else x


def _csr(x: SparseRows, like: Tensor) -> scipy.sparse.csr_array:
    csr = (x.values.to(like.dtype).numpy(), x.columns.numpy(), x.indptr.numpy())
    return scipy.sparse.csr_array(csr, shape=(len(x), x.n_features))


class _Product(Function):
    """Both products are sums of rows picked from a table, at which torch is quick."""

    @staticmethod
    def forward(ctx: Any, x: SparseRows, weight: Float[Tensor, "h g"]) -> Float[Tensor, "b h"]:
        ctx.x, ctx.rowwise = x, weight.is_contiguous()
        return _sums(x.columns, x.indptr, x.values, weight.t().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "b h"]) -> tuple[None, Float[Tensor, "h g"]]:
        x = ctx.x
        by_gene = _csr(x, x.values).tocsc()
        rows, starts, weights = map(
            torch.from_numpy, (by_gene.indices, by_gene.indptr, by_gene.data)
        )
        out = _sums(rows, starts, weights, gradient.contiguous()).t()
        # torch's fused Adam goes wrong, silently, where a gradient's strides are not its parameter's
        return None, out.contiguous() if ctx.rowwise else out


def _sums(rows: Tensor, starts: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Return, for each stretch between two starts, the weighted sum of the table's rows named there."""
    weights = weights.to(table.dtype)
    return F.embedding_bag(
        rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
