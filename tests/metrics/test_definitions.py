"""Each metric against brute force, scikit-learn, SciPy, or a case worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.stats import chisquare
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

from chreode.metrics import silhouette
from chreode.metrics.clustering import ari, kmeans_clusters, leiden_clusters, nmi
from chreode.metrics.mixing import (
    chi_square,
    clisi,
    graph_connectivity,
    ilisi,
    kbet,
    lisi,
    pcr_comparison,
)
from chreode.metrics.neighbours import (
    Neighbours,
    connectivities,
    exact_neighbours,
    perplexity_weights,
)
from chreode.metrics.silhouette import (
    bras,
    isolated_labels,
    silhouette_label,
    silhouette_widths,
)


def brute_lisi(x, groups, n_neighbours=90, perplexity=30):
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    values = []
    for row in distances:
        nearest = np.argsort(row)[:n_neighbours]

        def kernel(beta, d=row[nearest]):
            weights = np.exp(-beta * (d - d.min()))
            return weights / weights.sum()

        def excess(beta, kernel=kernel):
            p = kernel(beta)
            return -(p * np.log(p)).sum() - np.log(perplexity)

        p = kernel(brentq(excess, 1e-3, 1e2))
        values.append(1 / sum(p[groups[nearest] == g].sum() ** 2 for g in np.unique(groups)))
    return np.array(values)


def test_lisi_is_the_brute_force_one(simulate):
    x, labels, batches, _ = simulate(300, shift=1.0, spread=1.0)
    neighbours = exact_neighbours(x)
    of_batch, of_label = brute_lisi(x, batches), brute_lisi(x, labels)
    np.testing.assert_allclose(lisi(neighbours, batches), of_batch, atol=1e-5)
    assert ilisi(neighbours, batches).value == pytest.approx(
        (np.median(of_batch) - 1) / 2, abs=1e-5
    )
    assert clisi(neighbours, labels).value == pytest.approx((4 - np.median(of_label)) / 3, abs=1e-5)


def test_perplexity_weights_have_the_perplexity_whatever_the_scale(simulate):
    near = exact_neighbours(simulate(200)[0])
    weights = perplexity_weights(near, 30.0)
    perplexity = np.exp(-(weights * np.log(weights)).sum(axis=1))
    np.testing.assert_allclose(perplexity, 30, rtol=1e-5)
    shell = Neighbours(near.indices, (1000 + near.distances).astype(np.float32))
    np.testing.assert_allclose(perplexity_weights(shell, 30.0), weights, rtol=0.01)
    even = Neighbours(near.indices, np.ones_like(near.distances))
    np.testing.assert_allclose(perplexity_weights(even, 30.0), 1 / 90)


def test_exact_neighbours_are_those_of_all_pairs_even_among_coinciding_cells():
    x = np.random.default_rng(0).normal(size=(150, 4)) + 1000
    x[:30] = x[0]
    near = exact_neighbours(x, k=20)
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(near.distances, np.sort(distances, axis=1)[:, :20], atol=1e-4)
    assert (near.distances[:30] == 0).all()
    assert near.indices[:30].max() < 30
    assert (near.take(5).indices == near.indices[:, :5]).all()
    assert near.take(50).k == 20


def test_silhouettes_are_those_of_scikit_learn(simulate):
    x, labels, batches, _ = simulate(300, shift=2.0)
    labels[0] = 9  # alone in its label
    widths = silhouette_widths(x + 1e3, labels, batches)
    np.testing.assert_allclose(widths.label, silhouette_samples(x, labels), atol=1e-9)
    for label in range(4):
        own = labels == label
        expected = silhouette_samples(x[own], batches[own])
        np.testing.assert_allclose(widths.batch[own], expected, atol=1e-9)


def brute_widths(x, groups):
    """Silhouette widths cell by cell, from all distances."""
    distances, widths = cdist(x, x), np.zeros(len(x))
    for i, own in enumerate(groups):
        same = (groups == own) & (np.arange(len(x)) != i)
        others = [distances[i, groups == g].mean() for g in np.unique(groups) if g != own]
        a, b = distances[i, same].mean() if same.any() else 0, min(others, default=0)
        if same.any() and others and max(a, b) > 0:
            widths[i] = (b - a) / max(a, b)
    return widths


@pytest.mark.slow
@given(
    cells=st.lists(
        st.tuples(*[st.integers(-2, 2)] * 2, st.integers(0, 3), st.integers(0, 2)),
        min_size=2,
        max_size=30,
    ),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_silhouettes_of_few_cells_are_those_of_all_pairs(cells, tile):
    # cells that coincide, labels of one cell, of one batch, tiles that end within groups
    x, label, batch = np.array(cells, dtype=float)[:, :2], *np.array(cells)[:, 2:].T
    assume(np.ptp(x, axis=0).any())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silhouette, "TILE", tile)
        widths = silhouette_widths(x, label, batch)
    np.testing.assert_allclose(widths.label, brute_widths(x, label), atol=1e-9)
    for own in np.unique(label):
        expected = brute_widths(x[label == own], batch[label == own])
        np.testing.assert_allclose(widths.batch[label == own], expected, atol=1e-9)


@pytest.mark.parametrize("sizes", [[1024, 1, 1023, 252], [5] * 300 + [1] * 40, [2300]])
def test_silhouettes_of_many_cells_are_those_of_scikit_learn(sizes):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = 3 * rng.normal(size=(len(sizes), 4))[labels] + rng.normal(size=(len(labels), 4))
    widths = silhouette_widths(x, labels).label
    expected = silhouette_samples(x, labels) if len(sizes) > 1 else np.zeros(len(x))
    np.testing.assert_allclose(widths, expected, atol=1e-9)


def test_silhouette_label_by_hand():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    widths = [1 - 1 / 10.5, 1 - 1 / 9.5]  # the outer cells, the inner cells
    expected = (np.mean(widths) + 1) / 2
    assert silhouette_label(x, list("aabb")).value == pytest.approx(expected)


def test_labels_on_the_same_spot_have_silhouette_zero():
    x = np.repeat([[0.1, 5.0], [0.7, 9.0]], 4, axis=0) * 1e3
    widths = silhouette_widths(x, [0, 1, 0, 1, 2, 2, 2, 2]).label
    assert widths.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_isolated_labels_averages_the_labels_in_fewest_batches(simulate):
    x, labels, batches, _ = simulate()
    batches[labels == 2] %= 2
    batches[labels == 3] %= 2
    widths = silhouette_widths(x, labels).label
    expected = np.mean([(widths[labels == label].mean() + 1) / 2 for label in (2, 3)])
    assert isolated_labels(x, labels, batches).value == pytest.approx(expected)


def test_bras_by_all_pairs(simulate):
    x, labels, batches, _ = simulate(200, shift=1.0)
    labels[labels == 1] = 0
    batches[labels == 2] = 0  # one batch: does not count
    x[3] = 0  # no direction
    units = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    distances = 1 - units @ units.T
    means = []
    for label in (0, 3):
        cells = np.flatnonzero(labels == label)
        kept = []
        for i in cells:
            same = [j for j in cells if batches[j] == batches[i] and j != i]
            other = [j for j in cells if batches[j] != batches[i]]
            a, b = distances[i, same].mean(), distances[i, other].mean()
            kept.append(1 - abs(b - a) / max(a, b))
        means.append(np.mean(kept))
    assert bras(x, labels, batches).value == pytest.approx(np.mean(means), abs=1e-10)


def test_graph_connectivity_counts_strongly_connected_pieces():
    # 0 ⇄ 1, 1 → 2 with no way back (2 leads to the other label), 3 ⇄ 4
    indices = np.array([[1, 3], [0, 2], [3, 4], [4, 0], [3, 1]])
    neighbours = Neighbours(indices, np.ones((5, 2), dtype=np.float32))
    score = graph_connectivity(neighbours, ["a", "a", "a", "b", "b"])
    assert score.value == pytest.approx((2 / 3 + 1) / 2)
    assert score.resampled(np.array([0, 2, 2, 2, 4])) == pytest.approx((3 / 4 + 1) / 2)
    assert score.resampled(np.array([0, 1, 1, 2, 2])) == pytest.approx(3 / 5)


def test_chi_square_is_pearsons():
    rng = np.random.default_rng(0)
    batch = rng.choice([0, 2, 5], p=[0.6, 0.3, 0.1], size=60)
    around = rng.integers(60, size=(60, 20))
    shares = np.array([(batch == b).mean() for b in (0, 2, 5)])
    expected = [
        chisquare([(batch[row] == b).sum() for b in (0, 2, 5)], 20 * shares)[0] for row in around
    ]
    np.testing.assert_allclose(chi_square(around, batch), expected)


@pytest.mark.slow
def test_kbet_accepts_random_batches_and_refuses_islands(simulate):
    x, labels, batches, _ = simulate(1200, spread=8.0)
    neighbours = exact_neighbours(x)
    assert kbet(neighbours, labels, batches).value > 0.9
    halves = x[:, 0] > pd.Series(x[:, 0]).groupby(labels).transform("median").to_numpy()
    assert kbet(neighbours, labels, halves).value < 0.4
    one_batch = np.where(labels == 0, 0, batches)
    kept = kbet(neighbours, labels, one_batch)
    by_label = kbet(neighbours, labels, batches)
    without = by_label.resampled(np.flatnonzero(labels != 0))
    assert kept.value == pytest.approx(without)  # a label of one batch does not count
    strict = kbet(neighbours, labels, batches, alpha=0.5)
    assert 0.3 < strict.value < 0.7


def brute_kbet(neighbours, label, batch, alpha=0.05):
    """Share of accepted cells of each label that counts, from dense matrices; all in one piece."""
    whole = connectivities(neighbours.take(49)).toarray()
    shares = {}
    for one in np.unique(label):
        cells = np.flatnonzero(label == one)
        weights, of = whole[np.ix_(cells, cells)], pd.factorize(batch[cells])[0]
        if len(cells) < 10 or of.max() == 0:
            continue
        degree = weights.sum(axis=0)
        kernel = weights / np.outer(degree, degree)
        root = np.sqrt(kernel.sum(axis=0))
        values, vectors = np.linalg.eigh(kernel / np.outer(root, root))
        kept = np.argsort(-np.abs(values))[: min(100, len(cells) - 1)]
        values, vectors = values[kept], vectors[:, kept]
        steps = [v / (1 - v) if v < 1 - 1e-8 else 1.0 for v in values]
        k = int(np.clip(len(cells) / (of.max() + 1) // 4, 10, 70))
        distances = cdist(vectors * steps, vectors * steps)
        np.fill_diagonal(distances, -1)  # the cell itself comes first
        around = of[np.argsort(distances, axis=1)[:, : min(k, len(cells) - 1) + 1]]
        expected = around.shape[1] * np.bincount(of) / len(of)
        observed = np.stack([np.bincount(row, minlength=len(expected)) for row in around])
        shares[one] = (chisquare(observed.T, expected[:, None]).pvalue >= alpha).mean()
    return shares


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kbet_is_that_of_dense_matrices(shift):
    rng = np.random.default_rng(0)
    # two labels do not count: one of too few cells, one of a single cell
    labels = rng.permutation(np.repeat(np.arange(6), [300, 250, 60, 40, 9, 1]))
    batches = rng.integers(3, size=len(labels))
    batches[labels == 3] = 0  # nor does one of a single batch
    x = 20 * rng.normal(size=(6, 5))[labels] + rng.normal(size=(len(labels), 5))
    neighbours = exact_neighbours(x + shift * batches[:, None])
    score, expected = kbet(neighbours, labels, batches), brute_kbet(neighbours, labels, batches)
    assert sorted(expected) == [0, 1, 2]
    for label, share in expected.items():
        assert score.resampled(np.flatnonzero(labels == label)) == pytest.approx(share), label
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    assert 0 < score.value < 1


def test_kbet_fails_a_label_whose_large_pieces_hold_one_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 3))
    x[:80] += 100
    labels = np.repeat([0, 1], [100, 140])
    batches = np.repeat([0, 1], [80, 160])  # the 20 cells of label 0 in batch 1 lie in label 1
    batches[100:] = rng.integers(2, size=140)
    score = kbet(exact_neighbours(x), labels, batches)
    assert score.resampled(np.arange(100)) == 0
    assert score.resampled(np.arange(100, 240)) > 0.8
    assert np.isnan(score.resampled(np.arange(80, 100)))  # left out, being in a small piece


def test_pcr_is_the_regression_of_all_principal_components(simulate):
    x, _, batches, pre = simulate(250, shift=0.5)

    def explained(matrix):
        pca = PCA().fit(matrix)
        parts = pca.transform(matrix)
        design = np.eye(3)[batches]
        r2 = [LinearRegression().fit(design, part).score(design, part) for part in parts.T]
        return np.average(r2, weights=pca.explained_variance_)

    expected = (explained(pre) - explained(x)) / explained(pre)
    assert pcr_comparison(pre, x, batches).value == pytest.approx(expected, abs=1e-10)
    assert pcr_comparison(x, pre, batches).value == 0  # worse than before: clipped
    two = pcr_comparison(pre[:2], x[:2], ["a", "b"])
    assert np.isnan(two.resampled(np.zeros(2, int)))  # of one cell there is no variance


@pytest.mark.parametrize("n_clusters", [1, 2, 7, 60])
def test_nmi_and_ari_are_those_of_scikit_learn(n_clusters):
    rng = np.random.default_rng(n_clusters)
    labels, clusters = rng.integers(4, size=60), rng.integers(n_clusters, size=60)
    if n_clusters == 60:
        clusters = rng.permutation(60)
    assert nmi(labels, clusters).value == pytest.approx(
        normalized_mutual_info_score(labels, clusters), abs=1e-12
    )
    assert ari(labels, clusters).value == pytest.approx(
        adjusted_rand_score(labels, clusters), abs=1e-12
    )


def test_clusterings_depend_on_their_seed_alone(simulate):
    x, labels, *_ = simulate(spread=0.3)
    neighbours = exact_neighbours(x)
    state = random.getstate()
    first = leiden_clusters(neighbours, labels, seed=5)
    assert random.getstate() == state
    random.seed(99)
    assert (leiden_clusters(neighbours, labels, seed=5) == first).all()
    assert (leiden_clusters(neighbours, labels, seed=6) != first).any()
    kmeans = kmeans_clusters(x, labels, seed=5)
    assert (kmeans_clusters(x, labels, seed=5) == kmeans).all()
    assert len(np.unique(kmeans)) == 4
