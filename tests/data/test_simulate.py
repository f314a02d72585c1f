"""Simulated data agree with the truth that they carry."""

import mudata
import numpy as np
import pytest
from anndata import read_h5ad
from scipy import sparse

from chreode.data import draws
from chreode.data.simulate import (
    simulate_cells,
    simulate_citeseq,
    simulate_linear_gaussian,
    simulate_multiome,
)
from chreode.errors import ConfigError

ATTRIBUTES = {"condition": ["ctrl", "ifn", "lps"], "sex": ["F", "M"]}


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(
        1500, 300, n_batches=3, attributes=ATTRIBUTES, dropout=0.2, true_mean=True, seed=1
    )


def one_hot(column):
    return np.eye(len(column.cat.categories))[column.cat.codes]


def told_mean(data, columns):
    """Means by the story in the module's docstring, out of the slots that hold the truth."""
    log_rate = data.var["true_base"].to_numpy()
    log_rate = log_rate + data.obsm["true_latent"] @ data.varm["true_loadings"].T
    for column in columns:
        log_rate = log_rate + one_hot(data.obs[column]) @ data.varm[f"true_{column}_shift"].T
    rate = np.exp(log_rate)
    return data.obs["true_depth"].to_numpy()[:, None] * rate / rate.sum(axis=1, keepdims=True)


def assert_counts(data):
    assert isinstance(data.X, sparse.csr_matrix)
    assert data.X.dtype == np.float32
    assert (data.X.data == np.round(data.X.data)).all()
    assert data.X.data.min() >= 1
    assert (data.X.sum(axis=1) > 0).all()
    assert (data.layers["counts"] != data.X).nnz == 0
    assert not np.shares_memory(data.layers["counts"].data, data.X.data)
    assert data.obs_names.is_unique
    assert data.var_names.is_unique


@pytest.mark.parametrize("block", [draws.BLOCK, 300 * 70])
def test_the_stored_truth_gives_the_means(cells, block, monkeypatch):
    monkeypatch.setattr(draws, "BLOCK", block)
    again = simulate_cells(
        1500, 300, n_batches=3, attributes=ATTRIBUTES, dropout=0.2, true_mean=True, seed=1
    )
    told = told_mean(again, ["batch", *ATTRIBUTES])
    np.testing.assert_allclose(again.layers["true_mean"], told, rtol=1e-5)
    np.testing.assert_array_equal(again.layers["true_mean"], cells.layers["true_mean"])


@pytest.mark.parametrize("dispersion", [1e-6, 0.5, 2.0])
def test_counts_have_the_told_mean_and_variance(dispersion):
    data = simulate_cells(1000, 200, dispersion=dispersion, true_mean=True, seed=2)
    mean, theta = data.layers["true_mean"].astype(float), data.var["true_theta"].to_numpy()
    variance = mean + mean**2 / theta
    miss = data.X.toarray() - mean
    assert abs(miss.sum()) < 4 * np.sqrt(variance.sum())
    # Standardised squares average 1; the median gene scatters far less than the 10 % allowed.
    assert np.median((miss**2 / variance).mean(axis=0)) == pytest.approx(1, abs=0.1)
    assert np.median(1 / theta) == pytest.approx(dispersion, rel=0.1)


def test_counts_are_counts(cells):
    assert_counts(cells)
    for column, n in {"cell_type": 5, "batch": 3, "condition": 3, "sex": 2}.items():
        assert cells.obs[column].nunique() == n
    assert cells.obs["condition"].cat.categories.tolist() == ATTRIBUTES["condition"]
    assert cells.obs["batch"].value_counts().tolist() == [500, 500, 500]
    assert "true_mean" not in simulate_cells(20, 10).layers


@pytest.mark.parametrize(("n_genes", "seed"), [(500, 0), (500, 1), (1000, 2), (2000, 3)])
def test_defaults_look_like_droplet_data(n_genes, seed):
    data = simulate_cells(600, n_genes, n_batches=2, seed=seed)
    assert 0.08 < data.X.nnz / data.X.shape[0] / n_genes < 0.15
    depth = np.asarray(data.X.sum(axis=1)).ravel()
    assert np.median(depth) == pytest.approx(0.2 * n_genes, rel=0.1)
    assert 0.3 < np.log(depth).std() < 0.55


def test_depth_sets_the_total():
    data = simulate_cells(800, 100, depth=2000.0)
    assert np.median(np.asarray(data.X.sum(axis=1))) == pytest.approx(2000, rel=0.06)


def test_latent_is_a_gaussian_mixture(cells):
    centres = cells.uns["truth"]["centres"]
    centred = cells.obsm["true_latent"] - centres[cells.obs["cell_type"].cat.codes]
    assert np.abs(centred.mean(axis=0)).max() < 4 / np.sqrt(len(centred))
    np.testing.assert_allclose(np.cov(centred.T), np.eye(centred.shape[1]), atol=0.15)
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    assert apart[~np.eye(5, dtype=bool)].min() > 4


def test_composition_is_obeyed():
    weights = [[3, 1, 0], [0, 1, 1]]
    data = simulate_cells(2000, 10, n_types=3, n_batches=2, composition=weights)
    np.testing.assert_allclose(data.uns["truth"]["composition"], [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    batch, cell_type = (data.obs[c].cat.codes.to_numpy() for c in ("batch", "cell_type"))
    share = [[(cell_type[batch == b] == t).mean() for t in range(3)] for b in range(2)]
    np.testing.assert_allclose(share, data.uns["truth"]["composition"], atol=0.06)
    assert share[0][2] == share[1][0] == 0
    drawn = simulate_cells(20, 10, n_batches=2).uns["truth"]["composition"]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.02


def test_dropout_only_removes():
    full, thin = (simulate_cells(500, 200, dropout=p, seed=4).X.toarray() for p in (0.0, 0.4))
    assert ((thin == full) | (thin == 0)).all()
    assert (thin[full > 0] > 0).mean() == pytest.approx(0.6, abs=0.02)


def test_attributes_shift_few_genes_and_not_at_their_first_level(cells):
    for name, levels in ATTRIBUTES.items():
        shift = cells.varm[f"true_{name}_shift"]
        assert shift.shape == (300, len(levels))
        assert (shift[:, 0] == 0).all()
        assert 0.04 < (shift[:, 1] != 0).mean() < 0.18
        assert 0.6 < shift[shift != 0].std() < 1.5
    assert (
        simulate_cells(20, 30, n_batches=2, batch_strength=0.0).varm["true_batch_shift"] == 0
    ).all()


def test_seed_decides_everything_and_touches_nothing():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - that very state must stay as it is
    for make in (simulate_cells, simulate_citeseq, simulate_multiome):
        a, b, c = (make(40, 30, seed=seed) for seed in (5, 5, 6))
        if make is not simulate_cells:
            other = next(name for name in a.mod if name != "rna")
            a, b, c = a[other], b[other], c[other]
        assert (a.X != b.X).nnz == 0
        assert (a.X != c.X).nnz > 0
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002 - see above


def test_cells_survive_h5ad(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    assert (back.X != cells.X).nnz == 0
    assert back.obs.equals(cells.obs)
    np.testing.assert_array_equal(back.uns["truth"]["centres"], cells.uns["truth"]["centres"])
    np.testing.assert_array_equal(back.varm["true_loadings"], cells.varm["true_loadings"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_genes": 0}, "n_genes"),
        ({"n_types": 0}, "n_types"),
        ({"n_cells": 3, "n_batches": 4}, "4 batches and 3 cells"),
        ({"n_batches": 0}, "0 batches"),
        ({"batch_strength": -1.0}, "batch_strength"),
        ({"depth": 0.0}, "depth"),
        ({"depth": np.inf}, "depth"),
        ({"dispersion": 1e300}, "dispersion"),
        ({"batch_strength": np.inf}, "batch_strength"),
        ({"batch_strength": np.nan}, "batch_strength"),
        ({"dispersion": 0.0}, "dispersion"),
        ({"dropout": 1.0}, "dropout"),
        ({"composition": [[1.0, 1.0]]}, r"shape \(1, 2\), not \(1, 5\)"),
        ({"composition": [[1.0, 1, 1, 1, -1]]}, "negative weight"),
        ({"composition": [[0.0] * 5]}, "without any"),
        ({"attributes": {"batch": ["a", "b"]}}, "another obs column"),
        ({"attributes": {"sex": "FM"}}, "mapping of names to a list of text"),
        ({"attributes": {"sex": ["F", "F"]}}, "list of different names"),
        ({"attributes": {"sex": []}}, "list of different names"),
    ],
)
def test_wrong_values_are_named(options, word):
    with pytest.raises(ConfigError, match=word):
        simulate_cells(**options)


def test_proteins_have_their_told_means():
    data = simulate_citeseq(4000, 20, 15, n_batches=2, seed=3)
    adt = data["adt"]
    assert_counts(adt)
    x, foreground = adt.X.toarray(), adt.layers["true_foreground"]
    carriers = adt.varm["true_carriers"].T[adt.obs["cell_type"].cat.codes]
    assert foreground[carriers].mean() == pytest.approx(0.95, abs=0.01)
    assert foreground[~carriers].mean() == pytest.approx(0.02, abs=0.01)
    expected = adt.var["true_background"].to_numpy() * np.where(
        foreground, adt.var["true_gain"].to_numpy(), 1
    )
    expected = expected * np.exp(one_hot(adt.obs["batch"]) @ adt.varm["true_batch_shift"].T)
    expected *= np.exp(0.3**2 / 2)  # the mean of a cell's log-normal factor
    for part in (foreground, ~foreground):
        enough = part.sum(axis=0) > 500
        ratio = (x * part).sum(axis=0)[enough] / (expected * part).sum(axis=0)[enough]
        np.testing.assert_allclose(ratio, 1, atol=0.1)
    assert adt.var["true_gain"].min() > 3


def test_mosaic_has_no_rows_where_a_modality_is_absent(tmp_path):
    absent = {"rna": ["batch_1"], "adt": ["batch_0"]}
    data = simulate_citeseq(90, 20, n_batches=3, absent=absent, seed=0)
    whole = simulate_citeseq(90, 20, n_batches=3, seed=0)
    assert set(data["rna"].obs["batch"]) == {"batch_0", "batch_2"}
    assert set(data["adt"].obs["batch"]) == {"batch_1", "batch_2"}
    assert sorted(data.obs_names) == sorted(whole.obs_names)
    for column in ("cell_type", "batch"):
        assert list(data.obs[column]) == list(whole.obs.loc[data.obs_names, column])
    kept = whole["adt"][data["adt"].obs_names]
    assert (kept.X != data["adt"].X).nnz == 0
    with mudata.set_options(pull_on_update=False):
        data.write(tmp_path / "mosaic.h5mu")
        back = mudata.read_h5mu(tmp_path / "mosaic.h5mu")
    assert back.obs.equals(data.obs)
    assert back["adt"].layers["true_foreground"].dtype == bool


@pytest.mark.parametrize(
    ("absent", "word"),
    [
        ({"atd": ["batch_0"]}, "Did you mean 'adt'"),
        ({"adt": ["batch_7"]}, "batch_7"),
        ({"adt": ["batch_0"], "rna": ["batch_0"]}, "without any modality"),
    ],
)
def test_wrong_mosaics_are_named(absent, word):
    with pytest.raises(ConfigError, match=word):
        simulate_citeseq(20, 10, n_batches=2, absent=absent)


def test_sizes_of_second_modalities_are_checked():
    with pytest.raises(ConfigError, match="n_proteins"):
        simulate_citeseq(20, 10, 0)
    with pytest.raises(ConfigError, match="n_peaks"):
        simulate_multiome(20, 10, 0)


def test_linked_peaks_open_with_their_gene():
    data = simulate_multiome(3000, 100, 1000, n_types=12, n_batches=2, seed=1)
    rna, atac = data["rna"], data["atac"]
    assert_counts(atac)
    assert 0.03 < atac.X.nnz / atac.n_obs / atac.n_vars < 0.08
    assert (atac.X.data > 1).mean() < 0.12
    linked = atac.var["true_gene"].notna().to_numpy()
    assert 0.4 < linked.mean() < 0.6
    gene = rna.var_names.get_indexer(atac.var["true_gene"])
    loadings = rna.varm["true_loadings"]
    np.testing.assert_array_equal(atac.varm["true_loadings"][linked], loadings[gene[linked]])
    assert (atac.varm["true_loadings"][~linked] == 0).all()
    # In the counts too: over types, openness goes with the gene of the link, not with another.
    types = one_hot(rna.obs["cell_type"])
    depth = atac.obs["true_depth"].to_numpy(), rna.obs["true_depth"].to_numpy()
    opened, made = (
        np.log((types.T @ a.X.toarray() + 1) / (types.T @ d)[:, None])
        for a, d in zip((atac, rna), depth, strict=True)
    )
    opened, made = (m - m.mean(axis=0) for m in (opened, made))

    def agreement(genes):
        a, b = opened[:, linked], made[:, genes]
        return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())

    assert agreement(gene[linked]) > 0.7
    assert abs(agreement((gene[linked] + 1) % 100)) < 0.3
    assert opened[:, linked].std() > 2 * opened[:, ~linked].std()


@pytest.mark.parametrize("noise", [0.5, np.linspace(0.2, 1.0, 6)])
def test_linear_gaussian_has_the_covariance_of_its_model(noise):
    data = simulate_linear_gaussian(20_000, 6, 2, noise, seed=0)
    loadings = data.varm["true_loadings"]
    expected = loadings @ loadings.T + np.diag(data.var["true_noise"] ** 2)
    np.testing.assert_allclose(np.cov(data.X.T), expected, atol=0.05 * expected.max())
    np.testing.assert_allclose(data.X.mean(axis=0), data.var["true_mean"], atol=0.1)
    rest = data.X - data.var["true_mean"].to_numpy() - data.obsm["true_latent"] @ loadings.T
    np.testing.assert_allclose(rest.std(axis=0), noise * np.ones(6), rtol=0.05)
    assert data.X.dtype == np.float32


def test_linear_gaussian_misses_what_it_should(tmp_path):
    full, holes = (simulate_linear_gaussian(500, 8, 2, seed=3, missing=m) for m in (0.0, 0.3))
    gone = np.isnan(holes.X)
    assert gone.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(full.X[~gone], holes.X[~gone])
    holes.write_h5ad(tmp_path / "holes.h5ad")
    np.testing.assert_array_equal(read_h5ad(tmp_path / "holes.h5ad").X, holes.X)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"k": 0}, "each must be 1"),
        ({"noise": -1.0}, "negative"),
        ({"noise": [1.0, 2.0]}, "one number or 20"),
        ({"missing": 1.0}, "probability"),
    ],
)
def test_wrong_linear_gaussians_are_named(options, word):
    with pytest.raises(ConfigError, match=word):
        simulate_linear_gaussian(**options)
