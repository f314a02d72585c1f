"""Probabilistic PCA, factor analysis and NMF against closed forms, SciPy and scikit-learn."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import multivariate_normal
from sklearn import decomposition

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data import source
from chreode.data.align import MissingFeatures
from chreode.data.batch import CellBatch, SparseRows
from chreode.data.simulate import simulate_linear_gaussian
from chreode.learn import exact

SCHEMA = ch.Schema(expression="X")
SHAPES = [(500, 20, 3), (150, 40, 4)]


def dense(cells: ad.AnnData) -> np.ndarray:
    return np.asarray(cells.X, np.float64)


def told(fitted: ch.Fitted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, loadings and covariance of the fitted density."""
    mean, weight, noise = (getattr(fitted.module, k).numpy() for k in ("mean", "weight", "noise"))
    return mean, weight, weight @ weight.T + np.diag(noise)


def log_likelihood(fitted: ch.Fitted, cells: ad.AnnData) -> float:
    return float(fitted.score(cells).mean())


def uneven(n: int, d: int, k: int, missing: float = 0.0) -> ad.AnnData:
    noise = np.random.default_rng(5).uniform(0.2, 1.5, d)
    return simulate_linear_gaussian(n, d, k, noise=noise, seed=1, missing=missing)


@pytest.fixture(scope="module")
def complete() -> ad.AnnData:
    return simulate_linear_gaussian(500, 20, 3, noise=0.5, seed=0)


@pytest.fixture(scope="module")
def holed() -> ad.AnnData:
    """The same cells, with 30 % of the entries not measured."""
    return simulate_linear_gaussian(500, 20, 3, noise=0.5, seed=0, missing=0.3)


# PCA, and probabilistic PCA with nothing missing


def test_pca_is_scikit_learns(complete):
    fitted = ch.PCA(n_latent=4).fit(complete, SCHEMA)
    pca = decomposition.PCA(4, svd_solver="full").fit(dense(complete))
    z = fitted.embed(complete.copy())
    theirs = pca.transform(dense(complete))
    np.testing.assert_allclose(z * np.sign((z * theirs).sum(0)), theirs, atol=1e-4)
    np.testing.assert_allclose(
        fitted.module.variance, pca.explained_variance_ * 499 / 500, rtol=1e-5
    )
    expected = pca.inverse_transform(theirs)
    np.testing.assert_allclose(fitted.reconstruct(complete).X, expected, atol=1e-4)

    filled = complete.copy()
    filled.X[:, 2:5] = pca.mean_[2:5]
    lacking = complete[:, [0, 1, *range(5, 20)]].copy()
    with pytest.warns(MissingFeatures):
        np.testing.assert_allclose(fitted.embed(lacking), fitted.embed(filled), atol=1e-4)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_ppca_is_scikit_learns(n, d, k):
    cells = simulate_linear_gaussian(n, d, k, noise=0.5, seed=3)
    fitted = ch.PPCA(n_latent=k).fit(cells, SCHEMA)
    mean, weight, _ = told(fitted)
    pca = decomposition.PCA(k, svd_solver="full").fit(dense(cells))

    np.testing.assert_allclose(mean, pca.mean_, atol=1e-6)
    length = np.linalg.norm(weight, axis=0)
    np.testing.assert_allclose(np.abs(weight / length), np.abs(pca.components_.T), atol=1e-6)
    # maximum likelihood divides by n, scikit-learn by n - 1
    pca.noise_variance_ *= (n - 1) / n
    pca.explained_variance_ *= (n - 1) / n
    noise = fitted.module.noise.numpy()
    np.testing.assert_allclose(noise, pca.noise_variance_, rtol=1e-6)
    np.testing.assert_allclose(length**2 + noise[0], pca.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(fitted.score(cells), pca.score_samples(dense(cells)), rtol=1e-6)


def test_ppca_needs_no_epochs_where_nothing_is_missing(complete):
    fitted = ch.PPCA(n_latent=3).fit(complete, SCHEMA)
    path = fitted.history["train_log_likelihood"]
    assert fitted.provenance["state"] == "rested"
    assert len(path) == 3
    assert np.ptp(path) < 1e-9


def test_em_reaches_the_closed_form_from_elsewhere(complete):
    exact = ch.PPCA(n_latent=3).fit(complete, SCHEMA)
    elsewhere = ch.PPCA(n_latent=3).fit(complete[:15].copy(), SCHEMA)
    assert log_likelihood(elsewhere, complete) < log_likelihood(exact, complete) - 5
    by_em = ch.PPCA(n_latent=3, tol=1e-12).fit(complete, SCHEMA, from_=elsewhere)
    assert len(by_em.history) > 3
    assert log_likelihood(by_em, complete) == pytest.approx(
        log_likelihood(exact, complete), abs=1e-8
    )
    np.testing.assert_allclose(by_em.module.weight, exact.module.weight, atol=1e-4)


def test_ppca_of_counts_is_ppca_of_log_expression(cells, schema):
    x = cells.layers["counts"].toarray()
    logged = ad.AnnData(np.log1p(1e4 * x / x.sum(1, keepdims=True)).astype(np.float32))
    a = ch.PPCA(n_latent=4).fit(cells, schema)
    b = ch.PPCA(n_latent=4).fit(logged, SCHEMA)
    np.testing.assert_allclose(a.embed(cells), b.embed(logged), atol=1e-3)


# densities, posteriors and draws


@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_the_score_is_the_density_of_the_observed_entries(model, complete, holed):
    for cells in (complete, holed):
        fitted = model.fit(cells, SCHEMA)
        mean, _, covariance = told(fitted)
        score = fitted.score(cells, bound="elbo")
        np.testing.assert_array_equal(score, fitted.score(cells, bound="importance"))
        for i in range(0, 500, 50):
            x = dense(cells)[i]
            at = np.flatnonzero(~np.isnan(x))
            density = multivariate_normal(mean[at], covariance[np.ix_(at, at)])
            assert score[i] == pytest.approx(density.logpdf(x[at]), abs=1e-6)


@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_new_cells_are_projected_by_the_conditional_gaussian(model, complete, holed):
    fitted = model.fit(complete, SCHEMA)
    mean, weight, covariance = told(fitted)

    def expected(x):
        at = np.flatnonzero(~np.isnan(x))
        gain = np.linalg.solve(covariance[np.ix_(at, at)], weight[at])
        return gain.T @ (x - mean)[at], np.eye(3) - weight[at].T @ gain

    z = fitted.embed(holed.copy())
    np.testing.assert_allclose(z[:50], [expected(x)[0] for x in dense(holed)[:50]], atol=1e-5)

    # a query without some of the features is a query with these features not measured
    query = complete[:, 6:].copy()
    with pytest.warns(MissingFeatures):
        z = fitted.embed(query)
    lacking = dense(complete)
    lacking[:, :6] = np.nan
    np.testing.assert_allclose(z[:50], [expected(x)[0] for x in lacking[:50]], atol=1e-5)
    filled = complete.copy()
    filled.X[:, :6] = mean[:6]
    assert np.abs(fitted.embed(filled) - z).max() > 0.01  # filling in the mean is not the same

    draws = fitted.posterior(holed, n_samples=4000, seed=0)[:, :3]
    for i in range(3):
        m, s = expected(dense(holed)[i])
        np.testing.assert_allclose(draws[:, i].mean(0), m, atol=5 * np.sqrt(s.max() / 4000))
        np.testing.assert_allclose(np.cov(draws[:, i].T), s, atol=0.1 * s.max())


@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_generated_cells_have_the_density_of_the_model(model):
    cells = uneven(500, 8, 3)
    fitted = model.fit(cells, SCHEMA)
    mean, _, covariance = told(fitted)
    new = dense(fitted.generate(20_000, seed=0))
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(new.mean(0), mean, atol=0.04 * spread.max())
    np.testing.assert_allclose(np.cov(new.T), covariance, atol=0.05 * spread.max() ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_predicted_cells_are_a_second_measurement(model):
    cells = uneven(2000, 8, 3)
    fitted = model.fit(cells, SCHEMA)
    _, weight, _ = told(fitted)
    residual = dense(fitted.predict(cells, to={}, seed=0)) - dense(fitted.reconstruct(cells))
    noise = np.diag(fitted.module.noise)
    posterior = np.linalg.inv(np.eye(3) + weight.T @ np.linalg.solve(noise, weight))
    expected = weight @ posterior @ weight.T + noise
    np.testing.assert_allclose(np.cov(residual.T), expected, atol=0.12 * expected.max())


# far from zero

WIDE = {"few features": (3000, 2000), "few cells": (1, 2000), "many of both": (1, 1)}


@pytest.fixture(params=WIDE)
def far(request, monkeypatch):
    """Sparse cells: features at 1e4 with noise of 1e-3, beside features that are mostly zeros."""
    for name, most in zip(("FEATURES_SQUARED", "CELLS_SQUARED"), WIDE[request.param], strict=True):
        monkeypatch.setattr(exact, name, most)
    rng = np.random.default_rng(0)
    z, w = rng.normal(size=(300, 2)), rng.normal(size=(2, 40))
    x = 1e4 + 1e-2 * z @ w + 1e-3 * rng.normal(size=(300, 40))
    few = 5e-3 * rng.exponential(size=(300, 20)) * (rng.random((300, 20)) < 0.1)
    return ad.AnnData(sp.csr_matrix(np.hstack([x, few]).astype(np.float32)))


def closed_form(x, k):
    """Mean, principal axes, their variances, and the mean of the other variances, all dense."""
    values, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    return x.mean(0), axes[:, ::-1][:, :k], values[::-1][:k], values[:-k].mean()


def test_far_from_zero_variances_are_those_of_dense_cells(far):
    x = far.X.toarray().astype(np.float64)
    mean, axes, values, sigma2 = closed_form(x, 2)
    halves = torch.from_numpy(far.X.toarray()).split(150)
    batches = [CellBatch(torch.arange(150), {"expression": SparseRows.of(h)}) for h in halves]
    found = exact.principal(lambda: iter(batches), 2, Rng(0))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-8)

    pca = ch.PCA(n_latent=2).fit(far, SCHEMA)
    np.testing.assert_allclose(pca.module.variance, values, rtol=1e-5)
    turn = np.abs(axes.T @ pca.module.axes.numpy())
    np.testing.assert_allclose(turn, np.eye(2), atol=1e-3)

    ppca = ch.PPCA(n_latent=2).fit(far, SCHEMA)
    np.testing.assert_allclose(ppca.module.noise, sigma2, rtol=1e-6)
    _, _, covariance = told(ppca)
    expected = (axes * (values - sigma2)) @ axes.T + sigma2 * np.eye(60)
    np.testing.assert_allclose(covariance, expected, atol=1e-6 * values[0])
    density = multivariate_normal(mean, expected).logpdf(x)
    np.testing.assert_allclose(ppca.score(far), density, rtol=1e-5)


def test_far_from_zero_factor_analysis_is_that_of_dense_cells(far):
    x = far.X.toarray()
    model = ch.FactorAnalysis(n_factors=2, max_epochs=20)
    sparse, dense_ = model.fit(far, SCHEMA), model.fit(ad.AnnData(x), SCHEMA)
    np.testing.assert_allclose(sparse.module.noise, dense_.module.noise, rtol=1e-6)
    mean, _, covariance = told(sparse)
    density = multivariate_normal(mean, covariance).logpdf(x.astype(np.float64))
    np.testing.assert_allclose(sparse.score(far), density, rtol=1e-6)


# missing entries


@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_em_fills_holes_better_than_means_do(model, complete, holed):
    fitted = model.fit(holed, SCHEMA)
    path = fitted.history["train_log_likelihood"].to_numpy()
    assert fitted.provenance["state"] == "rested"
    assert path[-1] > path[0] + 1
    assert np.diff(path).min() > -1e-9

    hole = np.isnan(dense(holed))
    truth = dense(complete)[hole]
    imputed = holed.copy()
    imputed.X = np.where(hole, np.nanmean(dense(holed), 0), dense(holed))
    by_imputing = model.fit(imputed, SCHEMA)
    assert path[0] == pytest.approx(log_likelihood(by_imputing, holed), abs=0.01)  # EM's start

    def error(values):
        return np.sqrt(np.mean((dense(values)[hole] - truth) ** 2))

    by_em = error(fitted.reconstruct(holed))
    by_mean = error(imputed)
    by_imputed = error(by_imputing.reconstruct(imputed))
    assert by_em < 0.7 < 0.9 * by_imputed < by_mean  # the noise alone is 0.5
    np.testing.assert_allclose(np.sqrt(fitted.module.noise.numpy().mean()), 0.5, atol=0.02)


def test_it_does_not_matter_how_cells_are_chunked(complete, holed, monkeypatch):
    mixed = complete.copy()
    mixed.X[250:] = holed.X[250:]  # whole chunks without holes, beside chunks with
    model = ch.FactorAnalysis(n_factors=3, max_epochs=5)
    at_once = model.fit(mixed, SCHEMA)
    monkeypatch.setattr(source, "CHUNK_VALUES", 50 * mixed.n_vars)
    in_chunks = model.fit(mixed, SCHEMA)
    for name, value in at_once.module.state_dict().items():
        np.testing.assert_allclose(
            in_chunks.module.state_dict()[name], value, rtol=1e-8, atol=1e-10
        )


def test_a_cell_without_any_measurement_stays_at_the_prior(holed):
    holed = holed.copy()
    holed.X[7] = np.nan
    fitted = ch.PPCA(n_latent=3).fit(holed, SCHEMA)
    assert np.abs(fitted.embed(holed)[7]).max() == 0
    assert fitted.score(holed)[7] == 0


# factor analysis


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_factor_analysis_is_scikit_learns(n, d, k):
    cells = uneven(n, d, k)
    fitted = ch.FactorAnalysis(n_factors=k, tol=1e-9, max_epochs=5000).fit(cells, SCHEMA)
    fa = decomposition.FactorAnalysis(k, tol=1e-10, max_iter=10_000, svd_method="lapack")
    fa.fit(dense(cells))
    np.testing.assert_allclose(fitted.score(cells), fa.score_samples(dense(cells)), rtol=2e-3)
    assert log_likelihood(fitted, cells) == pytest.approx(fa.score(dense(cells)), rel=1e-6)
    np.testing.assert_allclose(fitted.module.noise, fa.noise_variance_, rtol=5e-3)
    theirs, ours = fa.transform(dense(cells)), fitted.embed(cells)
    sign = np.sign((theirs * ours).sum(0))
    np.testing.assert_allclose(ours * sign, theirs, atol=5e-3)


def test_em_on_cells_alone_comes_as_far():
    """A fit that goes on from another one takes no steps on the covariance."""
    cells = uneven(150, 40, 4)
    best = ch.FactorAnalysis(n_factors=4, tol=0).fit(cells, SCHEMA)
    elsewhere = ch.FactorAnalysis(n_factors=4).fit(cells[:30].copy(), SCHEMA)
    on = ch.FactorAnalysis(n_factors=4).fit(cells, SCHEMA, from_=elsewhere)
    path = on.history["train_log_likelihood"].to_numpy()
    assert path[0] < log_likelihood(best, cells) - 5
    assert np.diff(path).min() > -1e-9
    assert on.provenance["state"] == "rested"
    assert 10 < len(path) < 100
    assert log_likelihood(on, cells) > log_likelihood(best, cells) - 2e-3


def test_uneven_noise_is_what_factor_analysis_adds():
    cells = uneven(1000, 20, 3)
    fa = ch.FactorAnalysis(n_factors=3).fit(cells, SCHEMA)
    ppca = ch.PPCA(n_latent=3).fit(cells, SCHEMA)
    assert log_likelihood(fa, cells) > log_likelihood(ppca, cells) + 1
    np.testing.assert_allclose(fa.module.noise.sqrt(), cells.var["true_noise"], atol=0.07)


@pytest.mark.parametrize("model", [ch.PPCA(n_latent=3), ch.FactorAnalysis(n_factors=3)])
def test_a_constant_feature_says_nothing(model, complete):
    flat = complete.copy()
    flat.X[:, 4] = 2.0
    fitted = model.fit(flat, SCHEMA)
    assert np.isfinite(fitted.score(flat)).all()
    assert np.abs(fitted.loadings().iloc[4]).max() < 1e-8
    assert fitted.reconstruct(flat).X[:, 4] == pytest.approx(2.0)


@pytest.mark.parametrize("model", [ch.PPCA, ch.FactorAnalysis])
def test_what_cannot_be_learned_is_refused(model, complete):
    size = "n_latent" if model is ch.PPCA else "n_factors"
    with pytest.raises(ch.DataError, match="3 latent dimensions needs 5 cells and 4 features"):
        model(**{size: 3}).fit(complete[:4].copy(), SCHEMA)
    with pytest.raises(ch.DataError, match="20 latent dimensions"):
        model(**{size: 20}).fit(complete, SCHEMA)
    silent = complete.copy()
    silent.X[:, 4] = np.nan
    with pytest.raises(ch.DataError, match=r"1 feature .the first is number 4"):
        model(**{size: 3}).fit(silent, SCHEMA)


@pytest.mark.parametrize("model", [ch.PPCA, ch.FactorAnalysis])
@pytest.mark.parametrize("option", [{"size": 4}, {"tol": 0.3}, {"max_epochs": 2}])
def test_every_option_of_em_tells_where_entries_are_missing(model, option, holed):
    size = "n_latent" if model is ch.PPCA else "n_factors"
    option = {size if k == "size" else k: v for k, v in option.items()}
    usual = model(**{size: 3}).fit(holed, SCHEMA)
    other = model(**{size: 3, **option}).fit(holed, SCHEMA)
    a, b = usual.module.weight, other.module.weight
    assert a.shape != b.shape or not torch.allclose(a, b, atol=1e-6)


# non-negative matrix factorisation


@pytest.fixture(scope="module")
def programmes() -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = rng.gamma(0.5, size=(300, 4)) @ rng.gamma(0.3, size=(4, 60)) + 0.05 * rng.random((300, 60))
    return ad.AnnData(sp.csr_matrix(np.where(x > 0.2, x, 0).astype(np.float32)))


def test_nmf_is_scikit_learns(programmes):
    fitted = ch.NMF(n_factors=4).fit(programmes, SCHEMA, seed=0)
    theirs = decomposition.NMF(4, random_state=0)
    activity = theirs.fit_transform(programmes.X)
    np.testing.assert_allclose(fitted.module.components, theirs.components_, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(fitted.loadings(), fitted.module.components.T)

    def error(h, w):
        return np.linalg.norm(programmes.X.toarray() - h @ w)

    ours = error(fitted.embed(programmes), fitted.module.components.numpy())
    assert ours == pytest.approx(error(activity, theirs.components_), rel=1e-3)


def test_nmf_projects_by_exact_least_squares(programmes):
    fitted = ch.NMF(n_factors=4).fit(programmes, SCHEMA)
    new = programmes[:40].copy()
    h, w = fitted.embed(new).astype(float), fitted.module.components.numpy().astype(float)
    slope = (h @ w - new.X.toarray()) @ w.T  # the conditions of Karush, Kuhn and Tucker
    assert h.min() == 0
    assert slope.min() > -1e-4
    assert np.abs(slope[h > 0]).max() < 1e-4
    np.testing.assert_allclose(fitted.reconstruct(new).X, h @ w, atol=1e-5)

    with pytest.warns(MissingFeatures):
        few = fitted.embed(new[:, 5:].copy()).astype(float)
    slope = (few @ w[:, 5:] - new.X.toarray()[:, 5:]) @ w[:, 5:].T
    assert slope.min() > -1e-4
    assert np.abs(slope[few > 0]).max() < 1e-4


def test_nmf_refuses_what_is_centred_and_too_few_cells(programmes):
    centred = ad.AnnData(programmes.X.toarray() - 1)
    with pytest.raises(ch.DataError, match=r"goes down to -1, as after\s+centring"):
        ch.NMF(n_factors=4).fit(centred, SCHEMA)
    with pytest.raises(ch.DataError, match=r"n_factors=4\) needs .* got 3 x 60"):
        ch.NMF(n_factors=4).fit(programmes[:3].copy(), SCHEMA)


def test_nmf_says_whether_it_came_to_rest(programmes):
    for epochs, state in ((2, "still improving"), (1000, "rested")):
        fitted = ch.NMF(n_factors=4, max_epochs=epochs).fit(programmes, SCHEMA)
        assert fitted.provenance["state"] == state


@pytest.mark.parametrize("option", [{"n_factors": 3}, {"tol": 0.3}, {"max_epochs": 2}])
def test_every_option_of_nmf_tells(programmes, option):
    usual = ch.NMF(n_factors=4).fit(programmes, SCHEMA).module.components
    other = ch.NMF(**{"n_factors": 4, **option}).fit(programmes, SCHEMA).module.components
    assert usual.shape != other.shape or not torch.allclose(usual, other)
