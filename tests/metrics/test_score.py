"""Bootstrap: a resample counts cells again and holds all else fixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from chreode.errors import ConfigError
from chreode.metrics.clustering import leiden_clusters, nmi
from chreode.metrics.integration import METRICS, integration_scores, summary
from chreode.metrics.mixing import (
    lisi,
    pcr_comparison,
)
from chreode.metrics.neighbours import (
    exact_neighbours,
)
from chreode.metrics.score import Score, combined, ends, mean_over_labels
from chreode.metrics.silhouette import (
    silhouette_widths,
)


@pytest.fixture(scope="module")
def scored(simulate):
    x, labels, batches, pre = simulate(shift=0.7, spread=1.5)
    return x, labels, batches, pre, integration_scores(x, labels, batches, pre=pre)


@pytest.mark.slow
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


def test_connectivity_by_itself_is_no_score_of_batches(scored):
    """It reads none, and is all that one batch leaves."""
    *_, scores = scored
    only = summary({key: scores[key] for key in ("clisi", "graph_connectivity")})
    assert only["bio"].value == scores["clisi"].value
    assert np.isnan(only["batch"].value)
    assert np.isnan(only["total"].value)
    assert "one batch" in only["batch"].reason


def test_intervals_end_where_the_metric_does():
    """One cell in two hundred is not perfect: as many draws lie beyond 1 as below."""
    values = np.r_[np.ones(199), 0.0]
    score = Score.of(lambda counts: float(np.average(values, weights=counts)), 200, (0.0, 1.0))
    assert score.draws().max() > 1
    assert score.interval()[1] == 1
    both = combined([(0.5, score), (0.5, replace(score, span=(-0.5, 1.0)))])
    assert both.span == (-0.25, 1.0)
    assert both.interval()[1] == 1


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_labels_are_a_column_or_its_values(dtype):
    labels = pd.Series(["B", "B", "T", "T"], dtype=dtype)
    for form in (labels, labels.array, labels.to_numpy(), labels.tolist()):
        assert nmi(form, [0, 0, 1, 1]).value == pytest.approx(1)
    with pytest.raises(TypeError, match="a list of values or an array or a column or its values"):
        nmi("BBTT", [0, 0, 1, 1])


def test_an_interval_holds_its_value_however_skewed_the_draws_are():
    """One cell of a hundred decides: a third of the resamples lack it, and most others have it once."""
    values = np.r_[np.zeros(99), 1.0]
    score = Score.of(lambda counts: float((counts @ values) ** 8), 100, (0.0, 1e9))
    low, high = score.interval()
    assert low <= score.value <= high
    assert ends(np.r_[np.zeros(99), 100.0], (0.0, 50.0)) == (0.0, 1.0)
