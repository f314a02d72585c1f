"""Integration metrics: against scib-metrics, brute force, hand-computed cases and invariances."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.stats import chisquare, ortho_group
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

from chreode.errors import CapabilityError, ConfigError, DataError
from chreode.metrics.clustering import ari, kmeans_clusters, leiden_clusters, nmi
from chreode.metrics.integration import METRICS, integration_scores, summary
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
from chreode.metrics.score import Score, encode, mean_over_labels
from chreode.metrics.silhouette import (
    bras,
    isolated_labels,
    silhouette_batch,
    silhouette_label,
    silhouette_widths,
)

SCIB = Path(__file__).parents[1] / "fixtures" / "scib"
CASES = ("mixed", "apart", "pieces")
CLUSTERED = {"nmi_kmeans", "ari_kmeans", "nmi_leiden", "ari_leiden"}
DETERMINISTIC = [metric.key for metric in METRICS if metric.key not in CLUSTERED]


@pytest.fixture(scope="module")
def oracle():
    arrays = dict(np.load(SCIB / "cells.npz"))
    return arrays, json.loads((SCIB / "scores.json").read_text())


def stored_neighbours(arrays, case):
    x, indices = arrays[f"{case}_x"], arrays[f"{case}_indices"].astype(np.int64)
    distances = np.linalg.norm(x[indices].astype(float) - x[:, None], axis=2)
    return Neighbours(indices, distances.astype(np.float32))


def simulate(n_cells=600, shift=0.0, spread=4.0, seed=0):
    """Four labels, evenly in three batches that `shift` moves apart."""
    rng = np.random.default_rng(seed)
    labels, batches = rng.integers(4, size=n_cells), rng.integers(3, size=n_cells)
    centres, moves = spread * rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    x = centres[labels] + shift * moves[batches] + rng.normal(size=(n_cells, 5))
    return x, labels, batches, x + 4 * moves[batches]


# --- against scib-metrics ---------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_deterministic_metrics_agree_with_scib_on_the_shared_graph(oracle, case):
    arrays, scores = oracle
    x, label, batch = arrays[f"{case}_x"], arrays["labels"], arrays["batches"]
    neighbours = stored_neighbours(arrays, case)
    ours = {
        "isolated_labels": isolated_labels(x, label, batch),
        "silhouette_label": silhouette_label(x, label),
        "clisi": clisi(neighbours, label),
        "silhouette_batch": silhouette_batch(x, label, batch),
        "bras": bras(x, label, batch),
        "ilisi": ilisi(neighbours, batch),
        "kbet": kbet(neighbours, label, batch),
        "graph_connectivity": graph_connectivity(neighbours, label),
        "pcr_comparison": pcr_comparison(arrays["pre"], x, batch),
    }
    assert sorted(ours) == sorted(DETERMINISTIC)
    for key, score in ours.items():
        assert score.value == pytest.approx(scores[case][key], abs=1e-5), key


@pytest.mark.parametrize("case", CASES)
def test_the_joint_call_finds_the_stored_graph_and_the_same_scores(oracle, case):
    arrays, scores = oracle
    x, label, batch = arrays[f"{case}_x"], arrays["labels"], arrays["batches"]
    assert (exact_neighbours(x).indices == arrays[f"{case}_indices"]).all()
    joint = integration_scores(x, label, batch, pre=arrays["pre"], metrics=DETERMINISTIC)
    assert list(joint) == DETERMINISTIC
    for key, score in joint.items():
        assert score.value == pytest.approx(scores[case][key], abs=1e-4), key


@pytest.mark.parametrize("case", CASES)
def test_clusterings_score_within_the_spread_of_seeds(oracle, case):
    arrays, scores = oracle
    x, label = arrays[f"{case}_x"], arrays["labels"]
    neighbours = stored_neighbours(arrays, case)
    for name, clusters in (
        ("kmeans", kmeans_clusters(x, label, seed=1)),
        ("leiden", leiden_clusters(neighbours, label, seed=1)),
    ):
        for index, value in (("nmi", nmi(label, clusters)), ("ari", ari(label, clusters))):
            theirs = scores[case][f"{index}_{name}"]
            assert min(theirs) - 0.03 < value.value < max(theirs) + 0.03, (index, name)


@pytest.mark.parametrize("case", CASES)
def test_connectivities_are_those_of_umap(oracle, case):
    arrays, scores = oracle
    rows = connectivities(stored_neighbours(arrays, case).take(14))[:5].toarray()
    np.testing.assert_allclose(rows[rows > 1e-6], scores[case]["connectivities"], atol=1e-5)


# --- against brute force and hand-computed cases ------------------------------------------------


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


def test_lisi_is_the_brute_force_one():
    x, labels, batches, _ = simulate(300, shift=1.0, spread=1.0)
    neighbours = exact_neighbours(x)
    of_batch, of_label = brute_lisi(x, batches), brute_lisi(x, labels)
    np.testing.assert_allclose(lisi(neighbours, batches), of_batch, atol=1e-5)
    assert ilisi(neighbours, batches).value == pytest.approx(
        (np.median(of_batch) - 1) / 2, abs=1e-5
    )
    assert clisi(neighbours, labels).value == pytest.approx((4 - np.median(of_label)) / 3, abs=1e-5)


def test_perplexity_weights_have_the_perplexity_whatever_the_scale():
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


def test_silhouettes_are_those_of_scikit_learn():
    x, labels, batches, _ = simulate(300, shift=2.0)
    labels[0] = 9  # alone in its label
    widths = silhouette_widths(x + 1e3, labels, batches)
    np.testing.assert_allclose(widths.label, silhouette_samples(x, labels), atol=1e-9)
    for label in range(4):
        own = labels == label
        expected = silhouette_samples(x[own], batches[own])
        np.testing.assert_allclose(widths.batch[own], expected, atol=1e-9)


def test_silhouette_label_by_hand():
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    widths = [1 - 1 / 10.5, 1 - 1 / 9.5]  # the outer cells, the inner cells
    expected = (np.mean(widths) + 1) / 2
    assert silhouette_label(x, list("aabb")).value == pytest.approx(expected)


def test_labels_on_the_same_spot_have_silhouette_zero():
    x = np.repeat([[0.1, 5.0], [0.7, 9.0]], 4, axis=0) * 1e3
    widths = silhouette_widths(x, [0, 1, 0, 1, 2, 2, 2, 2]).label
    assert widths.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_isolated_labels_averages_the_labels_in_fewest_batches():
    x, labels, batches, _ = simulate()
    batches[labels == 2] %= 2
    batches[labels == 3] %= 2
    widths = silhouette_widths(x, labels).label
    expected = np.mean([(widths[labels == label].mean() + 1) / 2 for label in (2, 3)])
    assert isolated_labels(x, labels, batches).value == pytest.approx(expected)


def test_bras_by_all_pairs():
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


def test_kbet_accepts_random_batches_and_refuses_islands():
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


def test_pcr_is_the_regression_of_all_principal_components():
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


# --- bootstrap ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored():
    x, labels, batches, pre = simulate(shift=0.7, spread=1.5)
    return x, labels, batches, pre, integration_scores(x, labels, batches, pre=pre)


def test_every_score_counts_each_cell_once(scored):
    x, *_, scores = scored
    for key, score in scores.items():
        assert score.n_cells == len(x)
        assert score.resampled(np.arange(len(x))) == pytest.approx(score.value, abs=1e-12), key
        low, high = score.interval(n=50)
        assert 0 <= low < high <= 1, key
        assert low - 0.01 < score.value < high + 0.01, key


def test_resampling_is_computing_again_with_the_structure_held_fixed(scored):
    x, labels, batches, pre, scores = scored
    rows = np.random.default_rng(1).integers(len(x), size=400)
    widths = silhouette_widths(x, labels, batches)
    neighbours = exact_neighbours(x)
    clusters = leiden_clusters(neighbours, labels)
    by_label = pd.DataFrame({"label": labels, "batch": 1 - np.abs(widths.batch)}).iloc[rows]
    purity = (4 - lisi(neighbours, labels)) / 3
    expected = {
        "silhouette_label": (widths.label[rows].mean() + 1) / 2,
        "silhouette_batch": by_label.groupby("label")["batch"].mean().mean(),
        "nmi_leiden": normalized_mutual_info_score(labels[rows], clusters[rows]),
        "ari_leiden": adjusted_rand_score(labels[rows], clusters[rows]),
        "clisi": np.median(purity[rows]),
        "pcr_comparison": pcr_comparison(pre[rows], x[rows], batches[rows]).value,
    }
    for key, value in expected.items():
        assert scores[key].resampled(rows) == pytest.approx(value, abs=1e-10), key


def test_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(size=1000)
    score = Score.of(lambda counts: float(np.average(values, weights=counts)), 1000)
    low, high = score.interval(n=2000, seed=3)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert score.interval(n=50, seed=3) == score.interval(n=50, seed=3)
    assert score.interval(n=50, seed=3) != score.interval(n=50, seed=4)
    narrow = score.interval(n=2000, level=0.5, seed=3)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("wrong", [{"n": 0}, {"level": 1.0}, {"level": 0.0}])
def test_interval_refuses_impossible_settings(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Score.of(lambda _: 1.0, 3).interval(**wrong)


def test_labels_absent_from_a_resample_are_left_out():
    score = mean_over_labels(np.array([0.0, 1.0, np.nan]), np.array([0, 1, 2]))
    assert score.value == 0.5
    assert score.resampled(np.array([1, 1, 2])) == 1
    assert np.isnan(score.resampled(np.array([2, 2, 2])))


def test_summary_averages_raw_scores_and_their_resamples(scored):
    *_, scores = scored
    total = summary(scores)
    means = {
        kind: np.mean([scores[m.key].value for m in METRICS if m.kind == kind])
        for kind in ("bio", "batch")
    }
    assert total["bio"].value == pytest.approx(means["bio"])
    assert total["batch"].value == pytest.approx(means["batch"])
    assert total["total"].value == pytest.approx(0.6 * means["bio"] + 0.4 * means["batch"])
    low, high = total["total"].interval(n=50)
    assert low < total["total"].value < high
    only = summary({"clisi": scores["clisi"]})
    assert only["bio"].value == scores["clisi"].value
    assert np.isnan(only["total"].value)
    assert "batch" in only["total"].reason
    assert all(np.isnan(only["total"].interval()))


# --- invariance and order -----------------------------------------------------------------------


def values_of(x, labels, batches, pre, metrics=DETERMINISTIC):
    scores = integration_scores(x, labels, batches, pre=pre, metrics=metrics)
    return {key: score.value for key, score in scores.items()}


@pytest.fixture(scope="module")
def base():
    data = simulate(400, shift=0.8, spread=1.5)
    return data, values_of(*data)


def test_order_of_cells_does_not_matter(base):
    (x, labels, batches, pre), values = base
    order = np.random.default_rng(0).permutation(len(x))
    again = values_of(x[order], labels[order], batches[order], pre[order])
    assert again == pytest.approx(values, abs=1e-6)


def test_turning_and_scaling_do_not_matter_and_shifting_matters_to_bras_alone(base):
    (x, labels, batches, pre), values = base
    turn = ortho_group.rvs(x.shape[1], random_state=0)
    assert values_of(3 * x @ turn, labels, batches, pre) == pytest.approx(values, abs=1e-5)
    shifted = values_of(x + 50, labels, batches, pre)
    assert abs(shifted.pop("bras") - values["bras"]) > 0.01
    assert shifted == pytest.approx({k: values[k] for k in shifted}, abs=1e-5)


def test_names_of_labels_and_their_container_do_not_matter(base):
    (x, labels, batches, pre), values = base
    names = np.array(["T", "B", "NK", "DC"])[labels]
    categorical = pd.Series(pd.Categorical(names), index=np.arange(len(x))[::-1])
    assert values_of(x, categorical, [f"p{b}" for b in batches], pre) == pytest.approx(values)


@pytest.mark.parametrize("metric", [m for m in METRICS if m.kind == "batch"], ids=lambda m: m.key)
def test_mixed_batches_beat_separated_ones(metric):
    labels, batches = simulate()[1:3]
    mixed, _, _, pre = simulate(spread=8.0)
    apart = simulate(shift=6.0, spread=8.0)[0]
    good, bad = (
        integration_scores(x, labels, batches, pre=pre, metrics=[metric.key])[metric.key].value
        for x in (mixed, apart)
    )
    assert good > bad + 0.2
    assert good > 0.8


@pytest.mark.parametrize("metric", [m for m in METRICS if m.kind == "bio"], ids=lambda m: m.key)
def test_separate_labels_beat_shuffled_ones(metric):
    x, labels, batches, _ = simulate(spread=8.0)
    shuffled = np.random.default_rng(0).permutation(labels)
    good, bad = (
        integration_scores(x, given, batches, metrics=[metric.key])[metric.key].value
        for given in (labels, shuffled)
    )
    assert good > bad + 0.2
    assert good > 0.8


def test_bras_sees_nested_batches_that_the_silhouette_misses():
    rng = np.random.default_rng(0)
    batches = rng.integers(4, size=800)
    x = rng.normal(size=(800, 3)) + [20, 0, 0] * (batches // 2)[:, None] + [5, 5, 0]
    labels = np.zeros(800)  # batches 0 and 1 coincide, and 2 and 3, far from the first
    assert silhouette_batch(x, labels, batches).value > 0.9
    assert bras(x, labels, batches).value < 0.8


# --- seeds --------------------------------------------------------------------------------------


def test_clusterings_depend_on_their_seed_alone():
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


# --- bad and awkward input ----------------------------------------------------------------------


def test_cells_without_label_are_left_out_of_label_metrics_and_counted():
    x, labels, batches, pre = simulate(shift=0.7, spread=1.5)
    known = np.arange(len(x)) % 5 > 0
    partly = np.where(known, np.array(["a", "b", "c", "d"])[labels], None).astype(object)
    partly[0], partly[5], partly[10] = np.nan, "", -1
    scores = integration_scores(x, partly, batches, pre=pre, metrics=DETERMINISTIC)
    alone = integration_scores(x[known], labels[known], batches[known], metrics=DETERMINISTIC)
    for metric in METRICS:
        if metric.key not in scores:
            continue
        score = scores[metric.key]
        assert score.n_cells == len(x)
        if "label" in metric.needs:
            assert score.value == pytest.approx(alone[metric.key].value), metric.key
            assert score.excluded == (~known).sum()
            rows = np.flatnonzero(~known)[:1].repeat(9)
            again = score.resampled(np.concatenate([np.arange(len(x)), rows]))
            assert again == pytest.approx(score.value)
        else:
            assert score.excluded == 0
    assert scores["ilisi"].value == ilisi(exact_neighbours(x), batches).value
    with pytest.raises(DataError, match="120 of 600 cells have no label"):
        silhouette_label(x, partly)


def test_without_any_label_only_the_label_free_metrics_remain():
    x, _, batches, pre = simulate(200)
    scores = integration_scores(x, [None] * 200, batches, pre=pre)
    defined = {key for key, score in scores.items() if not score.reason}
    assert defined == {"ilisi", "pcr_comparison"}


def test_one_batch_or_one_label_leaves_reasons():
    x, labels, batches, pre = simulate(200)
    one_batch = integration_scores(x, labels, np.zeros(200), pre=pre)
    for key in ("silhouette_batch", "bras", "ilisi", "kbet", "pcr_comparison"):
        assert np.isnan(one_batch[key].value)
        assert "batch has 1 distinct value" in one_batch[key].reason
    one_label = integration_scores(x, ["T"] * 200, batches, pre=pre)
    for metric in METRICS:
        assert np.isnan(one_label[metric.key].value) == (metric.kind == "bio"), metric.key
    assert "pass it as pre" in integration_scores(x, labels, batches)["pcr_comparison"].reason


def test_single_functions_refuse_what_they_cannot_compare():
    x, labels, batches, pre = simulate(200)
    neighbours = exact_neighbours(x)
    one = np.zeros(200)
    for refused in (
        lambda: ilisi(neighbours, one),
        lambda: kbet(neighbours, labels, one),
        lambda: silhouette_batch(x, labels, one),
        lambda: bras(x, labels, one),
        lambda: pcr_comparison(pre, x, one),
        lambda: clisi(neighbours, one),
        lambda: silhouette_label(x, one),
        lambda: isolated_labels(x, one, batches),
        lambda: nmi(one, labels),
        lambda: ari(one, labels),
    ):
        with pytest.raises(DataError, match="1 distinct value"):
            refused()
    for refused in (
        lambda: silhouette_batch(x, labels, labels),
        lambda: bras(x, labels, labels),
        lambda: kbet(neighbours, labels, labels),
    ):
        with pytest.raises(DataError, match="No label has"):
            refused()
    even = np.tile([[0.0], [1.0]], (100, 1))
    with pytest.raises(DataError, match="no variance"):
        pcr_comparison(even, x, np.repeat([0, 1], 100))
    with pytest.raises(DataError, match="199"):
        pcr_comparison(pre[:199], x, batches)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedding": np.full((200, 5), np.nan)}, "NaN or infinite for 200"),
        ({"embedding": np.full((200, 5), 0.3)}, "collapsed"),
        ({"embedding": np.zeros((200, 5))}, "collapsed"),
        ({"embedding": np.zeros((1, 5))}, "2 cells or more"),
        ({"labels": ["a"] * 199}, "label has shape"),
        ({"labels": [["a"]] * 200}, "label has shape"),
        ({"batches": ["a"] * 201}, "batch has shape"),
        ({"batches": [None] * 200}, "200 of 200 cells have no batch"),
        ({"pre": np.ones((3, 2))}, "pre has 3"),
    ],
)
def test_bad_input_is_refused_before_compute(change, said):
    x, labels, batches, _ = simulate(200)
    given = {"embedding": x, "labels": labels, "batches": batches} | change
    with pytest.raises(DataError, match=said):
        integration_scores(**given)


@pytest.mark.parametrize("change", ["self", "range", "descending"])
def test_neighbours_refuse_what_they_are_not(change):
    indices = np.array([[1, 2], [0, 2], [1, 0]])
    distances = np.ones((3, 2), dtype=np.float32)
    if change == "self":
        indices[0, 0] = 0
    elif change == "range":
        indices[0, 0] = 3
    else:
        distances[2, 1] = 0.5
    with pytest.raises(DataError):
        Neighbours(indices, distances)


def test_few_cells_use_all_neighbours_and_say_so():
    x, labels, batches, pre = simulate(40, spread=6.0)
    with pytest.warns(UserWarning, match="40 cells have 39 neighbours each, not 90"):
        scores = integration_scores(x, labels, batches, pre=pre)
    assert all(0 <= score.value <= 1 for key, score in scores.items() if key != "kbet")
    assert scores["clisi"].value > 0.6


def test_cells_that_mostly_coincide_do_not_crash():
    x, labels, batches, pre = simulate(400)
    x[:300] = x[0]
    scores = integration_scores(x, labels, batches, pre=pre)
    assert all(-0.5 <= score.value <= 1 for score in scores.values())


def test_one_spot_per_label_is_perfect_whatever_the_order_of_cells():
    labels = np.arange(1200) % 3
    batches = np.repeat([0, 1], 600)
    spots = np.random.default_rng(0).normal(size=(3, 7))
    scores = integration_scores(
        spots[labels], labels, batches, pre=spots[labels] + batches[:, None]
    )
    least = {"isolated_labels": 1, "ilisi": 0.9, "kbet": 0.9, "pcr_comparison": 0.99}
    for key, score in scores.items():
        assert score.value >= least.get(key, 1 - 1e-9), key


def test_unknown_metrics_are_refused_and_progress_is_told():
    x, labels, batches, _ = simulate(200)
    with pytest.raises(ConfigError, match="Did you mean 'clisi'"):
        integration_scores(x, labels, batches, metrics=["clsi"])
    told = []
    integration_scores(x, labels, batches, metrics=["ilisi", "clisi"], progress=told.append)
    assert told == ["clisi", "ilisi"]


def test_missing_igraph_is_told_before_compute(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    x, labels, batches, _ = simulate(200)
    told = []
    with pytest.raises(CapabilityError, match=r"pip install 'chreode\[bench\]'"):
        integration_scores(x, labels, batches, progress=told.append)
    assert told == []
    integration_scores(x, labels, batches, metrics=["clisi"])


def test_encode_numbers_values_whatever_their_kind():
    assert encode(pd.Series(["b", "a", "b"], dtype="category"), "label", 3).tolist() == [0, 1, 0]
    assert encode(np.array([True, False]), "label", 2).tolist() == [0, 1]
    with pytest.raises(DataError, match="1 of 2 cells"):
        encode(pd.Series(["a", None], dtype="string"), "label", 2)
