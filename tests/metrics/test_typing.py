"""Scores of typing, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

import chreode as ch
from chreode.metrics.typing import BINS, METRICS, calibration, f1, of_types, typing_scores


def told(n=400, known=4, unseen=2, sure=2.0, seed=0):
    """Return types, probabilities that know something of them, and novelty that knows what is unseen."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(known + unseen, n, p=rng.dirichlet(np.full(known + unseen, 3.0)))
    logits = rng.normal(size=(n, known))
    mine = truth < known
    logits[np.flatnonzero(mine), truth[mine]] += sure
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    novelty = (rng.uniform(size=n) * np.where(mine, 1, 0.5) + np.where(mine, 0, 0.5)).round(2)
    return truth, chances, novelty


def found_at_5_percent(novelty, shared):
    """By scikit-learn's ROC curve, straight between its points."""
    false, found, _ = roc_curve(~shared, novelty, drop_intermediate=False)
    return np.interp(0.05, false, found)


@pytest.mark.parametrize("seed", range(3))
def test_they_are_those_of_scikit_learn(seed):
    truth, chances, novelty = told(seed=seed)
    said, shared = chances.argmax(1), truth < chances.shape[1]
    scores = {k: v.value for k, v in typing_scores(truth, chances, novelty).items()}
    assert list(scores) == list(METRICS)

    def macro(true, guess):
        return f1_score(true, guess, labels=np.unique(true), average="macro", zero_division=0)

    expected = {
        "f1": macro(truth, said),
        "accuracy": accuracy_score(truth, said),
        "shared_f1": macro(truth[shared], said[shared]),
        "shared_accuracy": accuracy_score(truth[shared], said[shared]),
        "worst": f1_score(truth[shared], said[shared], average=None).min(),
        "unseen_auroc": roc_auc_score(~shared, novelty),
        "unseen_found": found_at_5_percent(novelty, shared),
    }
    for key, value in expected.items():
        assert scores[key] == pytest.approx(value, abs=1e-12), key
    # what is told of unseen cells lowers the precision of known types too
    assert scores["f1"] < scores["shared_f1"] - 0.1


def test_a_resample_is_the_score_of_these_cells():
    """Every score is computed again over cells that repeat, as if they had been given so."""
    truth, chances, novelty = told(n=150)
    scores = typing_scores(truth, chances, novelty)
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(150, size=150)
        again = typing_scores(truth[rows], chances[rows], novelty[rows])
        for key, score in scores.items():
            assert score.resampled(rows) == pytest.approx(again[key].value, abs=1e-12), key
    low, high = scores["accuracy"].interval(500)
    error = np.sqrt(scores["accuracy"].value * (1 - scores["accuracy"].value) / 150)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_unseen_cells_are_found_where_one_known_cell_of_20_is_marked():
    """Whatever the scale of novelty; by hand, with and without ties."""
    chances = np.full((40, 1), 1.0)
    truth = np.repeat([0, 1], 20)
    known = np.linspace(0, 0.19, 20)  # one of 20 is above 0.185

    def found(unseen, monotone=lambda x: x):
        novelty = monotone(np.concatenate([known, np.resize(unseen, 20)]))
        return typing_scores(truth, chances, novelty)["unseen_found"].value

    assert found([0.185, 0.175]) == found([0.185, 0.175], lambda x: x**3 - 9) == 0.5
    assert found([0.185]) == found([0.5]) == 1
    assert found([0.175]) == 0
    assert found([0.18]) == 0  # as new as a known cell of which only the next is marked
    tied = typing_scores(truth, chances, np.full(40, 0.99))
    assert tied["unseen_found"].value == pytest.approx(0.05)  # nothing tells them apart
    assert tied["unseen_auroc"].value == 0.5


def test_calibration_error_is_what_it_is_by_hand():
    chances = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.35, 0.65]])
    truth = np.array([0, 1, 1, 1])
    assert typing_scores(truth, chances)["ece"].value == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    curve = calibration(truth, chances)
    np.testing.assert_allclose(curve.to_numpy(), [[0.65, 1.0, 2], [0.95, 0.5, 2]])
    sure = np.array([[1.0, 0.0]])
    assert calibration(np.array([0]), sure)["cells"].tolist() == [1]  # 1 is in the last bin


def test_who_says_what_is_true_is_calibrated_and_who_is_too_sure_is_not():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), size=20_000)
    truth = (chances.cumsum(1) > rng.uniform(size=(20_000, 1))).argmax(1)
    honest = typing_scores(truth, chances)["ece"].value
    sharp = chances**3 / (chances**3).sum(1, keepdims=True)
    assert honest < 3 * np.sqrt(BINS / 20_000 / 4)
    assert typing_scores(truth, sharp)["ece"].value > 10 * honest


def test_single_types_are_those_of_scikit_learn():
    truth, chances, _ = told()
    said = chances.argmax(1)
    table = of_types(truth, said)
    labels = np.unique(truth)
    precision, recall, f, n = precision_recall_fscore_support(
        truth, said, labels=labels, zero_division=0
    )
    assert table.index.tolist() == labels.tolist()
    np.testing.assert_allclose(table["precision"], precision)
    np.testing.assert_allclose(table["recall"], recall)
    np.testing.assert_allclose(table["f1"], f)
    np.testing.assert_array_equal(table["cells"], n)
    assert f1(truth, said).value == pytest.approx(table["f1"].mean())


def test_what_cannot_be_scored_says_why():
    truth, chances, novelty = told(unseen=0)
    scores = typing_scores(truth, chances, novelty)
    for key in ("unseen_auroc", "unseen_found"):
        assert np.isnan(scores[key].value)
        assert "every type of the query is in the reference" in scores[key].reason
    alone = typing_scores(np.full(400, 9), chances, novelty)
    assert "no query cell is of a type" in alone["shared_f1"].reason
    assert alone["accuracy"].value == alone["f1"].value == 0
    assert "unseen_auroc" not in typing_scores(truth, chances)
    with pytest.raises(ch.DataError, match="expected one type for each"):
        typing_scores(truth[:-1], chances)
    holed = np.where(np.arange(400) == 7, np.nan, novelty)
    for wrong in (novelty[:-1], holed, np.where(np.isnan(holed), np.inf, holed)):
        with pytest.raises(
            ch.DataError, match=r"novelties of 400 cells: expected one for each, all finite"
        ):
            typing_scores(truth, chances, wrong)
