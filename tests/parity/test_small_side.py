"""PCA, PPCA and FA of more features, or cells, than their squares are held for: the same answers."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import decomposition

import chreode as ch
from chreode.data import source
from chreode.data.simulate import simulate_linear_gaussian
from chreode.learn import exact

COUNTS = ch.Schema(counts="X")
#: Features and cells whose squares are held: the covariance, inner products of cells, neither.
WAYS = {"features": (10**6, 0), "cells": (0, 10**6), "neither": (0, 0)}


@pytest.fixture(scope="module")
def counts() -> ad.AnnData:
    rng = np.random.default_rng(0)
    programmes = rng.gamma(0.5, 1, (7, 150)) * rng.gamma(0.3, 1, 150)
    x = rng.poisson(rng.gamma(0.5, 2, (130, 7)) @ programmes)
    x[:, 0] += 1
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    features, cells = WAYS[request.param]
    monkeypatch.setattr(exact, "FEATURES_SQUARED", features)
    monkeypatch.setattr(exact, "CELLS_SQUARED", cells)
    monkeypatch.setattr(source, "CHUNK_VALUES", 150 * 16)  # nine chunks, the last one short
    return request.param


def logged(cells: ad.AnnData) -> np.ndarray:
    x = cells.X.toarray().astype(np.float64)
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


@pytest.mark.parametrize("dense", [False, True])
def test_pca_is_scikit_learns_by_every_way(counts, way, dense):
    cells, schema = counts, COUNTS
    if dense:
        cells = ad.AnnData(logged(counts).astype(np.float32))
        schema = ch.Schema(expression="X")
    fitted = ch.PCA(n_latent=5).fit(cells, schema)
    pca = decomposition.PCA(5, svd_solver="full").fit(logged(counts))
    variance = pca.explained_variance_ * 129 / 130
    np.testing.assert_allclose(fitted.module.variance, variance, rtol=1e-5)
    axes = fitted.module.axes.double().numpy()
    np.testing.assert_allclose(axes.T @ axes, np.eye(5), atol=1e-5)
    left = np.cov(logged(counts).T, bias=True) @ axes - axes * variance
    assert (np.linalg.norm(left, axis=0) <= exact.TOLERANCE * variance).all()
    np.testing.assert_allclose(fitted.module.mean, pca.mean_, atol=1e-5)


def test_ppca_is_scikit_learns_by_every_way(counts, way):
    fitted = ch.PPCA(n_latent=5).fit(counts, COUNTS)
    covariance = np.cov(logged(counts).T, bias=True)
    values = np.linalg.eigvalsh(covariance)[::-1]
    noise = fitted.module.noise.numpy()
    np.testing.assert_allclose(noise, values[5:].sum() / 145, rtol=1e-5)
    length = np.linalg.norm(fitted.module.weight.numpy(), axis=0)
    np.testing.assert_allclose(length**2 + noise[0], values[:5], rtol=1e-5)


def test_factor_analysis_is_the_same_by_every_way(way, monkeypatch):
    noise = np.random.default_rng(5).uniform(0.2, 1.5, 40)
    cells = simulate_linear_gaussian(100, 40, 2, noise=noise, seed=1)
    cells.X = sp.csr_matrix(cells.X)
    fitted = ch.FactorAnalysis(n_factors=2).fit(cells, ch.Schema(expression="X"))
    monkeypatch.undo()
    plain = ch.FactorAnalysis(n_factors=2).fit(cells, ch.Schema(expression="X"))
    np.testing.assert_allclose(fitted.module.noise, plain.module.noise, rtol=0.02)
    assert fitted.score(cells).mean() == pytest.approx(plain.score(cells).mean(), abs=0.01)


def test_a_seed_gives_the_same_bits_where_the_start_is_drawn(counts, monkeypatch):
    monkeypatch.setattr(exact, "FEATURES_SQUARED", 0)
    monkeypatch.setattr(exact, "CELLS_SQUARED", 0)
    a, b, c = (ch.PCA(n_latent=5).fit(counts, COUNTS, seed=s).module.axes for s in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)
    np.testing.assert_allclose(a, c, atol=0.01)


def test_passes_that_run_out_are_told(counts, monkeypatch):
    monkeypatch.setattr(exact, "FEATURES_SQUARED", 0)
    monkeypatch.setattr(exact, "CELLS_SQUARED", 0)
    monkeypatch.setattr(exact, "MAX_PASSES", 1)
    fitted = ch.PCA(n_latent=5).fit(counts, COUNTS)
    assert fitted.provenance["state"] == "still improving"


@pytest.mark.filterwarnings("ignore::chreode.data.check.CountsWarning")  # all add up to the same
def test_variance_that_is_not_there_ends_in_nothing(way):
    """Two kinds of cells have one axis; the others are of no length, and finite."""
    x = np.repeat(np.array([[4.0, 0, 1, 2, 1] * 30, [0, 4, 1, 2, 1] * 30], np.float32), 20, axis=0)
    fitted = ch.PCA(n_latent=4).fit(ad.AnnData(sp.csr_matrix(x)), COUNTS)
    assert np.isfinite(fitted.module.axes.numpy()).all()
    np.testing.assert_allclose(fitted.module.variance[1:], 0, atol=1e-5)
    assert fitted.module.variance[0] > 1


def test_too_few_cells_are_told(counts, way):
    with pytest.raises(ch.DataError, match="9 or fewer"):
        ch.PCA(n_latent=20).fit(counts[:10].copy(), COUNTS)


@pytest.mark.slow
def test_memory_is_that_of_the_data_and_the_answer():
    """200 cells x 6,000 genes: genes squared would be 288 MB."""
    cells = ad.AnnData(sp.random(200, 6000, density=0.05, format="csr", dtype=np.float32, rng=0))
    cells.X.data = np.ceil(cells.X.data * 5)
    cells.X = sp.csr_matrix(
        cells.X + sp.csr_matrix(([1.0] * 200, (range(200), [0] * 200)), (200, 6000))
    )
    ch.PCA(n_latent=2).fit(cells[:50, :50].copy(), COUNTS)  # whatever is imported late
    tracemalloc.start()
    for model in (ch.PCA(n_latent=10), ch.PPCA(n_latent=10), ch.FactorAnalysis(max_epochs=2)):
        model.fit(cells, COUNTS)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
