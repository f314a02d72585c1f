"""A layer on sparse rows equals the layer on the dense block."""

from __future__ import annotations

import pytest
import torch

from chreode.data.batch import SparseRows
from chreode.nn.blocks import Linear
from chreode.nn.sparse import sparse_linear


def block(density, b=9, g=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, g, generator=generator)
    x[torch.rand(b, g, generator=generator) > density] = 0
    x[2] = 0
    return x


@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_products_and_gradients_are_those_of_the_dense_block(density, bias, transposed):
    x = block(density)
    generator = torch.Generator().manual_seed(1)
    stored = torch.randn(
        *((60, 5) if transposed else (5, 60)), generator=generator
    ).requires_grad_()
    weight = stored.t() if transposed else stored
    offset = torch.randn(5, generator=generator).requires_grad_() if bias else None
    leaves = [stored] + [offset] * bias
    found = sparse_linear(SparseRows.of(x), weight, offset)
    expected = torch.nn.functional.linear(x, weight, offset)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    towards = torch.randn(9, 5, generator=generator)
    for mine, theirs, leaf in zip(
        torch.autograd.grad(found, leaves, towards),
        torch.autograd.grad(expected, leaves, towards),
        leaves,
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert mine.stride() == leaf.stride()  # fused Adam takes it for granted


def test_linear_takes_dense_and_sparse_rows():
    torch.manual_seed(0)
    layer, x = Linear(60, 5), block(0.1)
    torch.testing.assert_close(layer(SparseRows.of(x)), layer(x), rtol=1e-5, atol=1e-5)
    assert layer(x.expand(2, 9, 60)).shape == (2, 9, 5)
    assert layer.weight.is_contiguous()


def test_sparse_rows_round_trip_and_split():
    x = block(0.2)
    x[0, 0] = torch.nan
    rows = SparseRows.of(x)
    torch.testing.assert_close(rows.dense(), x, equal_nan=True)
    parts = rows.split([2, 3, 4])
    torch.testing.assert_close(torch.cat([p.dense() for p in parts]), x, equal_nan=True)
    torch.testing.assert_close(SparseRows.stacked(parts).dense(), x, equal_nan=True)
    torch.testing.assert_close(rows.map(rows.values * 2).dense(), 2 * x, equal_nan=True)
    torch.testing.assert_close(rows.sum(), x.sum(1), equal_nan=True)
