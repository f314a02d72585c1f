"""Errors and edges by hand, by NumPy and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from chreode.errors import DataError
from chreode.metrics.dynamics import (
    edge_precision,
    explained,
    forecast_error,
    scaling_error,
    zeros,
)


def test_errors_are_weighted_means():
    found, truth = np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2))
    assert forecast_error(found, truth) == 7.5
    assert forecast_error(found, truth, np.array([[1.0, 0.0], [0.0, 3.0]])) == (1 + 3 * 16) / 4
    assert explained(1.0, 4.0) == 0.75
    assert explained(4.0, 4.0) == 0.0


def test_what_a_line_per_gene_mends_is_what_polyfit_mends():
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    weight = rng.integers(1, 5, (30, 4)).astype(float)
    left = np.empty_like(truth)
    for gene in range(4):
        line = np.polyfit(found[:, gene], truth[:, gene], 1, w=np.sqrt(weight[:, gene]))
        left[:, gene] = np.polyval(line, found[:, gene])
    scaling, rest = scaling_error(found, truth, weight)
    assert rest == pytest.approx(forecast_error(left, truth, weight))
    assert scaling + rest == pytest.approx(forecast_error(found, truth, weight))
    # another scale and offset cost nothing but scaling
    assert scaling_error(3 * truth - 1, truth)[1] == pytest.approx(0, abs=1e-12)
    assert scaling_error(np.ones((5, 1)), np.arange(5.0)[:, None])[1] == pytest.approx(2.0)


def test_edges_are_judged_as_by_hand():
    signs = np.array([[1, 1, 0], [0, 0, -1], [0, 0, 0]])
    weights = np.array([[9.0, 2.0, 0.1], [0.0, 5.0, -1.0], [-0.5, 0.0, 0.0]])
    found = edge_precision(weights, signs)
    assert found["auprc"] == 1.0
    assert found["lift"] == 3.0  # two of six pairs
    assert found["signed"] == 1.0
    assert found["signed_lift"] == 6.0
    assert found["hamming"] == 0.0
    assert found["sign"] == 1.0
    turned = edge_precision(-weights, signs)
    assert turned["auprc"] == 1.0
    assert turned["signed"] < 0.3
    assert turned["sign"] == 0.0
    none = edge_precision(np.zeros((3, 3)), signs)
    assert none["hamming"] == pytest.approx(1 / 3)
    assert np.isnan(none["sign"])


def test_random_edges_have_the_precision_of_their_density():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 0, 0, 0, 1], (60, 60))
    weights = rng.normal(size=(60, 60))
    found = edge_precision(weights, signs)
    off = ~np.eye(60, dtype=bool)
    assert found["auprc"] == pytest.approx(
        average_precision_score((signs != 0)[off], abs(weights)[off])
    )
    assert found["lift"] == pytest.approx(1, abs=0.08)
    assert found["signed_lift"] == pytest.approx(1, abs=0.12)


def test_a_network_without_edges_is_refused():
    with pytest.raises(DataError, match="no true edge"):
        edge_precision(np.ones((3, 3)), np.eye(3))


def test_zeros_are_counted_within_a_tolerance():
    assert zeros(np.array([0.0, 1e-6, -1e-6, 0.1])) == 0.75


def test_pairs_that_could_not_be_edges_are_not_judged():
    signs = np.zeros((4, 4))
    signs[0, 1] = signs[0, 2] = 1.0
    weights = np.arange(16.0).reshape(4, 4)
    weights[0, 1] = 9.0
    pairs = np.zeros((4, 4), bool)
    pairs[0] = True
    found = edge_precision(weights, signs, pairs)
    # of 0→1 (9), 0→2 (2) and 0→3 (3), two are edges
    assert found["auprc"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert found["lift"] == pytest.approx(found["auprc"] / (2 / 3))
    with pytest.raises(DataError, match="no true edge"):
        edge_precision(weights, signs, ~pairs)


def test_what_cannot_be_compared_is_refused():
    """Rows were repeated, NaN weights counted as weights that are there, and NumPy's errors came through."""
    one, edges = np.ones((3, 2)), np.eye(3)[[1, 2, 0]]
    for wrong in (
        lambda: forecast_error(one[:1], one),
        lambda: forecast_error(one, one, np.zeros((3, 2))),
        lambda: forecast_error(one, one, np.where(np.eye(3, 2), -1.0, 2.0)),
        lambda: scaling_error(one[:2], one),
        lambda: edge_precision(edges, np.where(edges > 0, np.nan, 0.0)),
        lambda: edge_precision(np.where(edges > 0, np.nan, 1.0), edges),
        lambda: zeros(np.array([np.nan, 1.0])),
        lambda: zeros(np.zeros(0)),
    ):
        with pytest.raises(DataError):
            wrong()
    assert np.isnan(explained(1.0, 0.0))
    judged = 1 - np.eye(3, dtype=int)  # 0 and 1 are a mask, and no positions
    assert edge_precision(edges, edges, judged) == edge_precision(edges, edges, judged == 1)
