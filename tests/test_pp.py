"""Pearson residual variance against scanpy and hand-made truth."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from chreode.data import pp
from chreode.data.pp import pearson_residual_variance, rank_genes
from chreode.errors import ConfigError, DataError
from chreode.schema import Schema

ORACLE = np.load(Path(__file__).parent / "fixtures" / "genes" / "oracle.npz")
COUNTS = sparse.csr_matrix(ORACLE["counts"], dtype=np.float32)
BATCH = ORACLE["batch"].astype(int)


@pytest.mark.parametrize("block", [pp._BLOCK, 150 * 7, 1])
def test_variance_is_scanpys_for_any_block_size(block, monkeypatch):
    monkeypatch.setattr(pp, "_BLOCK", block)
    ours = [pearson_residual_variance(COUNTS[b == BATCH]) for b in range(3)]
    ours += [pearson_residual_variance(COUNTS), pearson_residual_variance(COUNTS, theta=10.0)]
    np.testing.assert_allclose(ours, ORACLE["variance"], rtol=1e-9, atol=1e-12)


def test_order_within_batches_is_scanpys():
    order = ORACLE["order"]
    np.testing.assert_array_equal(rank_genes(COUNTS, BATCH, len(order)), order)


def test_sparse_arrays_are_taken_too():
    np.testing.assert_array_equal(
        pearson_residual_variance(sparse.csr_array(COUNTS)), pearson_residual_variance(COUNTS)
    )


def test_the_oracle_reaches_the_clip():
    x = COUNTS.toarray().astype(np.float64)[:, 3:]
    mu = np.outer(x.sum(axis=1), x.sum(axis=0)) / x.sum()
    residual = (x - mu) / np.sqrt(mu + mu**2 / 100)
    limit = np.sqrt(len(x))
    assert (np.abs(residual) > limit).any()
    np.testing.assert_allclose(
        pearson_residual_variance(sparse.csr_matrix(x)),
        np.clip(residual, -limit, limit).var(axis=0),
    )


def test_silent_genes_and_empty_cells_have_no_variance():
    counts = COUNTS.toarray()
    counts[7] = 0
    counts[:, 9] = 0
    counts = sparse.csr_matrix(counts)
    variance = pearson_residual_variance(counts)
    assert variance[9] == 0
    assert np.isfinite(variance).all()
    np.testing.assert_array_equal(variance[:2], pearson_residual_variance(counts)[:2])
    assert (pearson_residual_variance(sparse.csr_matrix((5, 4))) == 0).all()


def planted(rng, n_cells=800, n_genes=300):
    """Counts with type effects on genes 0 to 29 and a batch effect alone on 30 to 39."""
    types, batch = rng.integers(4, size=n_cells), rng.integers(2, size=n_cells)
    log_rate = np.tile(rng.normal(-1, 0.7, n_genes), (n_cells, 1))
    log_rate[:, :30] += rng.permuted(np.tile([-1.5, -0.5, 0.5, 1.5], (30, 1)), axis=1).T[types]
    log_rate[:, 30:40] += np.array([-2, 2])[batch][:, None]
    counts = rng.poisson(rng.lognormal(0, 0.3, (n_cells, 1)) * np.exp(log_rate))
    return sparse.csr_matrix(counts, dtype=np.float32), batch


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_genes_come_first_and_batch_genes_only_without_batches(seed):
    counts, batch = planted(np.random.default_rng(seed))
    aware = rank_genes(counts, batch, 40)
    assert np.isin(np.arange(30), aware[:33]).mean() >= 0.9
    assert np.isin(np.arange(30, 40), aware).mean() <= 0.3  # 4 % of the flat genes fit in anyway
    blind = rank_genes(counts, np.zeros_like(batch), 40)
    assert np.isin(np.arange(30, 40), blind).all()


def test_gene_flat_everywhere_has_variance_near_one():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(400, 2.0))
    counts = rng.poisson(np.outer(rng.lognormal(6, 0.5, 2000), share))
    variance = pearson_residual_variance(sparse.csr_matrix(counts, dtype=np.float32))
    # The null model expects Poisson noise and a little more: variances scatter just below 1.
    assert 0.95 < np.median(variance) < 1.01
    assert variance.max() < 1.25


def test_a_batch_that_lacks_a_gene_has_no_say_in_it():
    rng = np.random.default_rng(3)
    counts, batch = planted(rng)
    dense = counts.toarray()
    dense[batch == 1, :10] = 0
    order = rank_genes(sparse.csr_matrix(dense), batch, 40)
    assert np.isin(np.arange(10, 30), order[:25]).mean() >= 0.9  # chosen by both batches
    # A gene silent in batch 1 is chosen by batch 0 alone, even where few genes are left to choose.
    few = rank_genes(sparse.csr_matrix(dense[:, :12]), batch, 12)
    assert set(few[:2]) == {10, 11}


def test_one_cell_batches_and_n_above_the_number_of_genes():
    counts, batch = planted(np.random.default_rng(4), n_cells=60, n_genes=50)
    batch[0] = 2
    order = rank_genes(counts, batch, 500)
    assert sorted(order) == list(range(50))


@pytest.mark.parametrize("theta", [0.0, -1.0, np.nan])
def test_theta_must_be_positive(theta):
    with pytest.raises(ConfigError, match="theta"):
        pearson_residual_variance(COUNTS, theta=theta)


def test_n_must_be_positive():
    with pytest.raises(ConfigError, match="at least one gene"):
        rank_genes(COUNTS, BATCH, 0)


def test_select_genes_reads_the_schema_and_the_training_rows_alone(cells, schema):
    import chreode as ch

    genes = ch.pp.select_genes(cells, schema, 50)
    assert len(genes) == 50
    assert genes.equals(cells.var_names[cells.var_names.isin(genes)])  # the data's order
    rows = np.arange(0, 500, 2)
    poisoned = cells.copy()
    counts = poisoned.layers["counts"].toarray()
    counts[1::2, :50] += np.random.default_rng(0).poisson(50, (250, 50))
    poisoned.layers["counts"] = sparse.csr_matrix(counts)
    kept = ch.pp.select_genes(cells, schema, 50, rows=rows)
    assert ch.pp.select_genes(poisoned, schema, 50, rows=rows).equals(kept)
    assert not ch.pp.select_genes(poisoned, schema, 50).equals(kept)
    with pytest.raises(ch.SchemaError, match="needs counts or expression"):
        ch.pp.select_genes(cells, ch.Schema(batch="obs/batch"))
    with pytest.warns(UserWarning, match="fewer than the 1,000,000 asked for: all are kept"):
        assert len(ch.pp.select_genes(cells, ch.Schema(counts="layers/counts"), 10**6)) == 300
    cells.layers["counts"] = cells.layers["counts"] * 0.5
    with pytest.raises(ch.DataError, match="with decimals"):
        ch.pp.select_genes(cells, schema)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_without_counts_genes_are_chosen_by_how_expression_varies_within_batches(form):
    import anndata as ad

    import chreode as ch

    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 50)
    x = rng.normal(5, [0.1, 3.0, 0.2, 2.0, 0.1], (100, 5))
    x[:, 0] += 100 * batch  # varies between batches alone
    x[3, 4] = np.nan
    cells = ad.AnnData(form(x))
    cells.obs["batch"] = batch.astype(str)
    schema = ch.Schema(expression="X", batch="obs/batch")
    assert list(ch.pp.select_genes(cells, schema, 2)) == ["1", "3"]
    assert list(ch.pp.select_genes(cells, schema.with_(batch=None), 1)) == ["0"]


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize(
    ("part", "values"), [("indices", [0, 9, 1]), ("indices", [0, -1, 1]), ("indptr", [0, 2, 1, 3])]
)
def test_a_damaged_matrix_is_refused_before_compiled_code_reads_it(form, part, values):
    """An index beyond the features was read, and written, beyond the memory of the matrix."""
    odd = form(np.eye(3))
    setattr(odd, part, np.array(values, odd.indices.dtype))
    for ask in (pearson_residual_variance, lambda x: rank_genes(x, np.zeros(3, int), 1)):
        with pytest.raises(DataError, match="damaged"):
            ask(odd)


def test_a_matrix_of_nothing_is_refused():
    with pytest.raises(DataError, match="no features"):
        pearson_residual_variance(sparse.csr_matrix((5, 0)))
    for shape in ((5, 0), (0, 5)):
        with pytest.raises(DataError, match="none to rank"):
            rank_genes(sparse.csr_matrix(shape), np.zeros(shape[0], int), 1)


@pytest.mark.parametrize("role", ["counts", "expression"])
def test_a_bar_counts_the_cells_that_genes_are_chosen_by(monkeypatch, role):
    values = COUNTS if role == "counts" else COUNTS * 0.3
    cells = AnnData(values, obs={"batch": pd.Categorical(BATCH.astype(str))})
    shown = []

    @contextmanager
    def spy(total, what, progress):
        shown.append((total, []))
        yield SimpleNamespace(update=shown[-1][1].append)

    monkeypatch.setattr(pp, "bar", spy)
    monkeypatch.setattr(pp, "_BLOCK", 50 * COUNTS.shape[1])
    rows = np.arange(0, cells.n_obs, 2)
    pp.select_genes(cells, Schema(batch="obs/batch", **{role: "X"}), 5, rows=rows)
    assert [(total, sum(done)) for total, done in shown] == [(len(rows), len(rows))]
