"""Rows become tensors: order, alignment, presence, bounded chunks."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from chreode.data import places
from chreode.data import source as source_module
from chreode.data.sampler import Balanced, Sampler, Shuffled
from chreode.data.source import Source
from chreode.schema import Place, Spec

DENSE = np.random.default_rng(0).poisson(0.4, (40, 12)).astype(np.float32)
SPEC = Spec(("counts",), {"counts": tuple(f"g{i}" for i in range(12))})
NAMES = np.array([f"c{i}" for i in range(40)])


@pytest.fixture(params=["csr_matrix", "csr_array", "float64", "int32", "dense"])
def matrix(request):
    if request.param.startswith("csr"):
        return getattr(sp, request.param)(DENSE)
    return DENSE if request.param == "dense" else sp.csr_matrix(DENSE.astype(request.param))


def test_rows_come_in_the_order_asked_for(matrix):
    rows = np.array([7, 3, 3, 39])
    batch = Source(SPEC, NAMES, {"counts": matrix}).batch(rows)
    assert batch["counts"].dtype == torch.float32
    np.testing.assert_array_equal(batch["counts"], DENSE[rows])
    assert batch.rows.tolist() == rows.tolist()


def test_features_are_put_in_order_and_missing_ones_marked(matrix):
    take = np.array([11, -1, 0, 5, -1, 3, 2, 1, 4, 6, 7, 8])
    source = Source(SPEC, NAMES, {"counts": matrix}, take={"counts": take})
    batch = source.batch(np.arange(40))
    expected = np.where(take >= 0, DENSE[:, take], 0)
    np.testing.assert_array_equal(batch["counts"], expected)
    np.testing.assert_array_equal(batch.observed["counts"], take >= 0)


def test_cells_without_the_modality_are_marked_and_zero(matrix):
    where = np.full(50, -1)
    where[5:45] = np.random.default_rng(1).permutation(40)
    source = Source(SPEC, np.arange(50).astype(str), {"counts": matrix}, where={"counts": where})
    rows = np.array([0, 5, 49, 20])
    batch = source.batch(rows)
    assert batch.present["counts"].tolist() == [False, True, False, True]
    np.testing.assert_array_equal(batch["counts"][[1, 3]], DENSE[where[[5, 20]]])
    assert float(batch["counts"][[0, 2]].abs().sum()) == 0
    assert source.measured("counts").sum() == 40


def test_nan_passes_through_dense_and_sparse():
    holed = DENSE.copy()
    holed[0, 0] = np.nan
    for matrix in (holed, sp.csr_matrix(holed)):
        out = Source(SPEC, NAMES, {"counts": matrix}).batch(np.arange(3))["counts"]
        assert torch.isnan(out[0, 0])
        assert int(torch.isnan(out).sum()) == 1


def test_chunks_are_bounded_whatever_the_size(monkeypatch, matrix):
    monkeypatch.setattr(source_module, "CHUNK_VALUES", 12 * 16)
    chunks = list(Source(SPEC, NAMES, {"counts": matrix}).batches())
    assert [len(b) for b in chunks] == [16, 16, 8]
    np.testing.assert_array_equal(torch.cat([b["counts"] for b in chunks]), DENSE)


def test_expression_is_log1p_of_counts_per_ten_thousand(matrix):
    batch = Source(SPEC, NAMES, {"counts": matrix}).batch(np.arange(40))
    expected = np.log1p(1e4 * DENSE / DENSE.sum(1, keepdims=True))
    np.testing.assert_allclose(batch.log_expression(), expected, rtol=1e-5)


@pytest.fixture
def labelled():
    codes = np.array([0] * 30 + [1] * 8 + [-1] * 2)
    return Source(SPEC, NAMES, {"counts": DENSE}, columns={"label": codes})


def test_shuffled_draws_every_row_once_in_nearly_equal_minibatches(labelled):
    rows = np.arange(5, 38)
    drawn = list(Shuffled(8).batches(labelled, rows, 0, np.random.default_rng(0)))
    assert sorted(np.concatenate(drawn)) == rows.tolist()
    assert {len(b) for b in drawn} <= {8, 9}
    assert len(drawn) == Shuffled(8).n_batches(labelled, rows)
    again = list(Shuffled(8).batches(labelled, rows, 0, np.random.default_rng(0)))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert isinstance(Shuffled(8), Sampler)


def test_no_minibatch_is_left_with_a_cell_or_two(labelled):
    for n in (10, 17, 33, 40):
        sizes = [
            len(b)
            for b in Shuffled(16).batches(labelled, np.arange(n), 0, np.random.default_rng(0))
        ]
        assert min(sizes) >= min(n, 9)


def test_balanced_draws_labels_equally_and_never_the_unlabelled(labelled):
    drawn = np.concatenate(
        [
            np.concatenate(
                list(Balanced(8).batches(labelled, np.arange(40), e, np.random.default_rng(e)))
            )
            for e in range(40)
        ]
    )
    codes = labelled.columns["label"][drawn]
    assert (codes >= 0).all()
    assert 0.45 < (codes == 1).mean() < 0.55


def test_indices_of_two_kinds_are_made_alike_without_a_copy_of_the_values():
    """SciPy would convert all indices for every minibatch; files that were appended to have such."""
    x = sp.random(50, 20, 0.2, format="csr", dtype=np.float32, random_state=0)
    mixed = x.copy()
    mixed.indptr = mixed.indptr.astype(np.int64)
    cells = ad.AnnData(x)
    cells.layers["mixed"] = mixed
    assert cells.layers["mixed"].indptr.dtype == np.int64  # AnnData left it so
    found, _ = places.matrix(cells, Place.parse("layers/mixed"), "counts")
    assert found.indptr.dtype == found.indices.dtype == np.int32
    assert np.shares_memory(found.data, cells.layers["mixed"].data)
    assert (found != x).nnz == 0
