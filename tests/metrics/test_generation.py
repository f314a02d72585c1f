"""Metrics of generated cells: closed forms, POT, and cells of which it is known how good they are."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import scipy.sparse as sp

from chreode.errors import ConfigError, DataError
from chreode.metrics import generation as m
from chreode.metrics.space import Space


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_wasserstein_is_that_of_pot(rng):
    x, y = rng.normal(size=(60, 5)), rng.normal(1, 2, size=(60, 5))
    expected = np.sqrt(ot.emd2([], [], ot.dist(x, y)))
    assert m.wasserstein2(x, y) == pytest.approx(expected, rel=1e-6)
    assert m.wasserstein2(x, x[::-1]) == 0
    assert m.wasserstein2(x, x + np.array([3, 0, 0, 0, 4])) == pytest.approx(5)


def test_wasserstein_thins_the_larger_cloud(rng):
    x, y = rng.normal(size=(50, 2)), rng.normal(size=(200, 2))
    assert m.wasserstein2(x, y) == m.wasserstein2(x, y, seed=0)
    assert 0 < m.wasserstein2(x, y) < 1.5


def test_mmd_is_its_formula(rng):
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(9, 3))

    def k(a, b, s):
        return np.exp(-((a - b) ** 2).sum() / (2 * s**2))

    widths = np.array([0.5, 2.0])
    unbiased = biased = 0.0
    for s in widths:
        xx = np.mean([k(a, b, s) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        yy = np.mean([k(a, b, s) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        xy = np.mean([k(a, b, s) for a in x for b in y])
        unbiased += (xx + yy - 2 * xy) / 2
        biased += np.mean([k(a, b, s) for a in x for b in x]) - 2 * xy
        biased += np.mean([k(a, b, s) for a in y for b in y])
    assert m.mmd2(x, y, widths) == pytest.approx(unbiased, rel=1e-9)
    assert m.mmd2(x, y, widths, biased=True) == pytest.approx(biased, rel=1e-9)


def test_mmd_and_energy_have_no_bias(rng):
    """The mean over many pairs of samples of one distribution is 0 within three standard errors."""
    for distance in (m.mmd2, m.energy_distance):
        found = [distance(rng.normal(size=(30, 4)), rng.normal(size=(30, 4))) for _ in range(200)]
        assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
        assert distance(rng.normal(size=(30, 4)), rng.normal(2, 1, size=(30, 4))) > 5 * np.std(
            found
        )


def test_the_published_mmd_has_the_floor_of_its_diagonal(rng):
    found = m.mmd2(*rng.normal(size=(2, 100, 30)) * 3, np.array(m.PAPER_WIDTHS), biased=True)
    assert 0.05 < found < 0.1  # about 2 k / n of the kernels that see nothing but themselves


def test_manifold_of_equal_shifted_and_collapsed_clouds(rng):
    x, y = rng.normal(size=(2, 400, 3))
    same = m.manifold(x, y)
    assert same.precision > 0.9
    assert same.recall > 0.9
    assert same.density == pytest.approx(1, abs=0.1)
    assert same.coverage > 0.9
    far = m.manifold(x, y + 20)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    point = m.manifold(x, x[:1] + 1e-3 * y)
    assert point.precision > 0.9
    assert point.recall < 0.1
    assert point.coverage < 0.1


@pytest.mark.slow
def test_a_forest_tells_real_from_fake_only_if_they_differ(rng):
    x, y = rng.normal(size=(2, 300, 5))
    assert m.real_or_fake(x, y) == pytest.approx(0.5, abs=0.07)
    assert m.real_or_fake(x, y * 2) > 0.8  # same mean, other spread


def test_memorisation_of_copies_of_noise_and_of_new_cells(rng):
    train, held_out, new = rng.normal(size=(3, 300, 5))
    assert m.memorisation(train, held_out, train) == 1
    assert m.memorisation(train, held_out, train + 0.01 * held_out) > 0.95
    assert m.memorisation(train, held_out, new) == pytest.approx(0.5, abs=0.06)
    assert m.memorisation(train, held_out, 5 * new) < 0.1


def test_membership_of_copies_and_of_new_cells(rng):
    train, held_out, new = rng.normal(size=(3, 300, 5))
    assert m.membership(train, held_out, new) == pytest.approx(0.5, abs=0.06)
    assert m.membership(train, held_out, train) == 1
    # a tenth copied: the others are guessed at by chance
    some = np.concatenate([train[:30], new[:270]])
    assert m.membership(train, held_out, some) == pytest.approx(0.55, abs=0.06)
    # no copies, but too narrow a cloud, which memorisation takes for memory
    assert m.memorisation(train, held_out, 0.3 * new) > 0.6
    assert m.membership(train, held_out, 0.3 * new) == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_fakes_that_repeat_a_few_cells_are_told_from_real_ones(rng, n):
    """However much each of them looks like a real one."""
    real, few = rng.normal(size=(300, 5)), rng.normal(size=(n, 5))
    found = [m.real_or_fake(real, few[rng.integers(n, size=300)], seed=s) for s in range(3)]
    assert min(found) > 0.9


def test_concordance_is_lins(rng):
    a = rng.normal(size=100)
    assert m.concordance(a, a) == pytest.approx(1)
    assert m.concordance(a, -a) < 0
    assert m.concordance(a, a + 1) == pytest.approx(2 * a.var() / (2 * a.var() + 1))
    assert np.isnan(m.concordance(np.ones(3), np.ones(3)))


def test_gene_statistics_are_those_of_the_dense_matrix(rng):
    counts = rng.poisson(0.7, size=(40, 6))
    counts[0] = 0
    x = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
    found = m.Moments.of(sp.csr_matrix(counts))
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.variance, x.var(0))
    np.testing.assert_allclose(found.zeros, (counts == 0).mean(0))


def test_fold_changes_are_recovered_by_real_cells_and_not_by_shuffled_ones(rng):
    rate = np.exp(rng.normal(size=(3, 50)))
    labels = np.repeat([0, 1, 2], 200)
    a, b = (sp.csr_matrix(rng.poisson(rate[labels])) for _ in range(2))
    assert m.fold_change_agreement(a, b, labels, labels) > 0.95
    assert m.fold_change_agreement(a, b, labels, rng.permutation(labels)) < 0.2


def test_the_space_is_centred_by_real_cells(rng):
    counts = sp.csr_matrix(rng.poisson(1.0, size=(100, 40)))
    space = Space.of(counts, n_genes=30, n_components=5)
    np.testing.assert_allclose(space.place(counts).mean(0), 0, atol=1e-6)
    assert len(space.genes) == 30


@pytest.mark.parametrize("form", [sp.csc_matrix, sp.csr_array, sp.csc_array])
def test_counts_are_taken_in_every_form_of_rows_and_columns(rng, form):
    real, fake = (sp.csr_matrix(rng.poisson(2.0, size=(60, 12))) for _ in range(2))
    types = np.repeat([0, 1], 30)

    def found(form):
        x, y = form(real), form(fake)
        return (
            *m.gene_agreement(x, y).values(),
            m.correlation_agreement(x, y, np.arange(5)),
            m.cross_agreement((x, x[:, :3]), (y, y[:, :3])),
            m.fold_change_agreement(x, y, types, types),
            Space.of(x).place(y).sum(),
        )

    np.testing.assert_allclose(found(form), found(sp.csr_matrix), rtol=1e-6)


DISTANCES = {
    "wasserstein2": 1, "mmd2": 2, "energy_distance": 2, "manifold": 6, "real_or_fake": 2,
    "memorisation": 1, "membership": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "least"), DISTANCES.items())
def test_clouds_that_have_no_distance_are_refused(rng, name, least):
    """Each was a NaN, a perfect score or an error of NumPy, SciPy or scikit-learn."""
    metric, x = getattr(m, name), rng.normal(size=(8, 3))
    third = (x,) if name in ("memorisation", "membership") else ()
    for odd in (x[: least - 1], x[:, :2], x[:, :0], np.where(x > 1, np.nan, x)):
        for clouds in ((odd, x, *third), (x, odd, *third)):
            with pytest.raises(DataError, match=r"shapes|NaN|neighbours"):
                metric(*clouds)
    assert np.isfinite(np.array(metric(x[:least], x, *third), object).any())


def test_widths_of_cells_that_mostly_coincide_are_those_of_the_others(rng):
    x = np.repeat(rng.normal(size=(2, 2)), [9, 1], axis=0)
    np.testing.assert_allclose(m.median_widths(x), m.median_widths(x[-2:]))
    assert np.isfinite(m.mmd2(x, x[::-1]))
    for alike in (x[:9], x[:1]):
        with pytest.raises(DataError, match="coincide"):
            m.median_widths(alike)


def test_what_cannot_be_compared_is_refused(rng):
    x = rng.normal(size=(8, 3))
    counts = sp.csr_matrix(rng.poisson(2.0, (8, 4)).astype(float))
    for wrong in (
        lambda: m.mmd2(x, x, np.array([0.0])),
        lambda: m.mmd2(x, x, np.zeros(0)),
        lambda: m.manifold(x, x, k=0),
        lambda: m.real_or_fake(x, x, folds=1),
        lambda: Space.of(counts, n_genes=0),
        lambda: Space.of(counts, n_components=0),
    ):
        with pytest.raises(ConfigError, match="expected"):
            wrong()
    for wrong in (
        lambda: m.concordance(x[:, 0], x[1:, 0]),
        lambda: m.depth_distance(x[:0, 0], x[:, 0]),
        lambda: m.gene_agreement(counts, counts[:0]),
        lambda: m.correlation_agreement(counts, counts, np.array([0, -1])),
        lambda: m.cross_agreement((counts, counts[1:]), (counts, counts)),
        lambda: m.fold_change_agreement(counts, counts, np.arange(8), np.arange(3)),
        lambda: Space.of(counts[:, :1]),
        lambda: Space.of(counts[:1]),
        lambda: m.correlation_agreement(counts, counts[:, :3], np.array([0, 1])),
        lambda: m.cross_agreement((counts, counts), (counts, counts[:, :3])),
        lambda: m.fold_change_agreement(counts, counts[:, :3], np.arange(8) % 2, np.arange(8) % 2),
        lambda: m.gene_agreement(counts * np.nan, counts),
        lambda: Space.of(-counts),
    ):
        with pytest.raises(DataError, match=r"expected|give|no cells"):
            wrong()


def test_cells_without_a_label_are_of_no_class(rng):
    counts = sp.csr_matrix(rng.poisson(2.0, (8, 4)).astype(float))
    labels = np.array(["a", "b", np.nan, "a", "b", None, "a", "b"], object)
    known = np.where(np.isin(labels, ["a", "b"]), labels, "c")
    assert m.fold_change_agreement(counts, counts, labels, labels) == 1
    assert np.isnan(m.fold_change_agreement(counts, counts, known, np.repeat("d", 8)))
