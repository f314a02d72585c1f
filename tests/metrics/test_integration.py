"""Integration scores: against scib-metrics, invariances, order, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group

from chreode.errors import CapabilityError, ConfigError, DataError
from chreode.metrics.clustering import ari, kmeans_clusters, leiden_clusters, nmi
from chreode.metrics.integration import METRICS, integration_scores
from chreode.metrics.mixing import (
    clisi,
    graph_connectivity,
    ilisi,
    kbet,
    pcr_comparison,
)
from chreode.metrics.neighbours import (
    Neighbours,
    connectivities,
    exact_neighbours,
)
from chreode.metrics.score import encode
from chreode.metrics.silhouette import (
    bras,
    isolated_labels,
    silhouette_batch,
    silhouette_label,
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


# --- invariance and order -----------------------------------------------------------------------


def values_of(x, labels, batches, pre, metrics=DETERMINISTIC):
    scores = integration_scores(x, labels, batches, pre=pre, metrics=metrics)
    return {key: score.value for key, score in scores.items()}


@pytest.fixture(scope="module")
def base(simulate):
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
def test_mixed_batches_beat_separated_ones(simulate, metric):
    labels, batches = simulate()[1:3]
    mixed, _, _, pre = simulate(spread=8.0)
    apart = simulate(shift=6.0, spread=8.0)[0]
    good, bad = (
        integration_scores(x, labels, batches, pre=pre, metrics=[metric.key])[metric.key].value
        for x in (mixed, apart)
    )
    assert good > bad + 0.2
    assert good > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("metric", [m for m in METRICS if m.kind == "bio"], ids=lambda m: m.key)
def test_separate_labels_beat_shuffled_ones(simulate, metric):
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


# --- bad and awkward input ----------------------------------------------------------------------


def test_cells_without_label_are_left_out_of_label_metrics_and_counted(simulate):
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
    with pytest.raises(DataError, match="no label for 120 of 600 cells"):
        silhouette_label(x, partly)


def test_without_any_label_only_the_label_free_metrics_remain(simulate):
    x, _, batches, pre = simulate(200)
    scores = integration_scores(x, [None] * 200, batches, pre=pre)
    defined = {key for key, score in scores.items() if not score.reason}
    assert defined == {"ilisi", "pcr_comparison"}


def test_one_batch_or_one_label_leaves_reasons(simulate):
    x, labels, batches, pre = simulate(200)
    one_batch = integration_scores(x, labels, np.zeros(200), pre=pre)
    for key in ("silhouette_batch", "bras", "ilisi", "kbet", "pcr_comparison"):
        assert np.isnan(one_batch[key].value)
        assert "batch has 1 distinct value" in one_batch[key].reason
    one_label = integration_scores(x, ["T"] * 200, batches, pre=pre)
    for metric in METRICS:
        assert np.isnan(one_label[metric.key].value) == (metric.kind == "bio"), metric.key
    assert "pass it as pre" in integration_scores(x, labels, batches)["pcr_comparison"].reason


def test_single_functions_refuse_what_they_cannot_compare(simulate):
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
        ({"batches": [None] * 200}, "no batch for 200 of 200 cells"),
        ({"pre": np.ones((3, 2))}, "pre has 3"),
    ],
)
def test_bad_input_is_refused_before_compute(simulate, change, said):
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


def test_few_cells_use_all_neighbours_and_say_so(simulate):
    x, labels, batches, pre = simulate(40, spread=6.0)
    with pytest.warns(UserWarning, match="Each of 40 cells has fewer than 90 neighbours"):
        scores = integration_scores(x, labels, batches, pre=pre)
    assert all(0 <= score.value <= 1 for key, score in scores.items() if key != "kbet")
    assert scores["clisi"].value > 0.6


def test_cells_that_mostly_coincide_do_not_crash(simulate):
    x, labels, batches, pre = simulate(400)
    x[:300] = x[0]
    scores = integration_scores(x, labels, batches, pre=pre)
    assert all(-0.5 <= score.value <= 1 for score in scores.values())


@pytest.mark.slow
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


def test_unknown_metrics_are_refused_and_progress_is_told(simulate):
    x, labels, batches, _ = simulate(200)
    with pytest.raises(ConfigError, match="Did you mean 'clisi'"):
        integration_scores(x, labels, batches, metrics=["clsi"])
    told = []
    integration_scores(x, labels, batches, metrics=["ilisi", "clisi"], progress=told.append)
    assert told == ["clisi", "ilisi"]


def test_missing_igraph_is_told_before_compute(simulate, monkeypatch):
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
