"""The mixture that a generative model must beat: noise of counting is in it once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from chreode.bench.generators import Known, _shrunk, independent, mixture


def known(n=1500, genes=60, seed=0):
    """One class with a factor of log-rates, gamma noise of its own per gene, and depths that vary."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(1).normal(0, 0.3, size=genes)
    base = np.exp(np.random.default_rng(2).normal(0.5, 1, size=genes))
    rate = base * np.exp(rng.normal(size=(n, 1)) * loadings) * rng.gamma(4, size=(n, genes)) / 4
    depth = 300 * rng.gamma(10, size=(n, 1)) / 10
    counts = sp.csr_matrix(
        rng.poisson(depth * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    )
    return Known({"counts": counts}, {"counts": np.ones(n, bool)}, np.zeros(n, int))


@pytest.fixture(scope="module")
def drawn():
    cells = known()
    made = mixture(cells, np.zeros(1500, int), np.random.default_rng(3))["counts"]
    return cells.counts["counts"].toarray(), made.toarray()


def test_means_variances_and_zeros_are_those_of_the_cells(drawn):
    real, fake = drawn
    np.testing.assert_allclose(fake.mean(0), real.mean(0), rtol=0.15, atol=0.05)
    ratio = fake.var(0) / real.var(0)
    assert np.median(ratio) == pytest.approx(1, abs=0.08)  # noise counted twice is far above
    assert np.abs((real == 0).mean(0) - (fake == 0).mean(0)).max() < 0.07
    totals = real.sum(1), fake.sum(1)
    assert np.mean(totals[1]) == pytest.approx(np.mean(totals[0]), rel=0.02)
    assert np.std(totals[1]) == pytest.approx(np.std(totals[0]), rel=0.15)


def test_pairs_of_features_go_together_as_in_the_cells(drawn):
    def pairs(x):
        return np.corrcoef(np.log1p(x).T)[np.triu_indices(x.shape[1], 1)]

    real, fake = map(pairs, drawn)
    alone = independent(known(), np.zeros(1500, int), np.random.default_rng(3))["counts"].toarray()
    other = pairs(
        known(seed=7).counts["counts"].toarray()
    )  # what samples of this size leave to see
    assert np.corrcoef(real, fake)[0, 1] > np.corrcoef(real, other)[0, 1] - 0.05
    assert 0.75 < np.polyfit(real, fake, 1)[0] < 1.15
    assert abs(np.corrcoef(real, pairs(alone))[0, 1]) < 0.5


def test_where_there_is_nothing_but_noise_there_are_no_components():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1000))
    noise = np.linalg.svd(x, compute_uv=False) ** 2 / 200
    assert (_shrunk(noise, 5.0) > 0).sum() <= 1
    # a spike of twenty: the eigenvalue is inflated, and the loadings are partly noise
    spiked = x + np.sqrt(20) * rng.normal(size=(200, 1)) * np.full(1000, 1000**-0.5)
    top = np.linalg.svd(spiked, compute_uv=False)[0] ** 2 / 200
    assert top > 24
    assert _shrunk(np.array([top]), 5.0)[0] == pytest.approx(
        20 * (1 - 5 / 400) / (1 + 5 / 20), rel=0.25
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_classes_of_a_few_cells_and_silent_features_are_drawn(n):
    cells = known(n)
    counts = sp.csr_matrix(sp.hstack([cells.counts["counts"], sp.csr_matrix((n, 5))]))
    few = Known({"counts": counts}, cells.measured, cells.classes)
    made = mixture(few, np.zeros(20, int), np.random.default_rng(0))["counts"]
    assert made.shape == (20, 65)
    assert np.isfinite(made.data).all()
    assert made[:, 60:].nnz == 0
    empty = Known({"counts": sp.csr_matrix((n, 5))}, cells.measured, cells.classes)
    assert mixture(empty, np.zeros(4, int), np.random.default_rng(0))["counts"].nnz == 0
