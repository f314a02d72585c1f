"""Correlations of foretold proteins, against NumPy, and the neighbours that foretell them by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import chreode as ch
from chreode.metrics.proteins import METRICS, by_neighbours, of_proteins, protein_scores


def pair(n=120, p=9, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 6, size=p)
    own = rng.normal(size=(n, p)) * np.linspace(0.2, 1.5, p)
    return level + own, level + 0.6 * own + rng.normal(scale=0.5, size=(n, p))


def test_correlations_are_those_of_numpy():
    measured, foretold = pair()
    by_cell = [np.corrcoef(a, b)[0, 1] for a, b in zip(measured, foretold, strict=True)]
    by_protein = [np.corrcoef(a, b)[0, 1] for a, b in zip(measured.T, foretold.T, strict=True)]
    scores = protein_scores(measured, foretold)
    assert list(scores) == list(METRICS)
    assert scores["cell_r"].value == pytest.approx(np.mean(by_cell))
    assert scores["protein_r"].value == pytest.approx(np.mean(by_protein))
    assert scores["worst_protein"].value == pytest.approx(min(by_protein))
    np.testing.assert_allclose(of_proteins(measured, foretold), by_protein)


def test_a_resample_is_the_score_of_these_cells():
    measured, foretold = pair()
    scores = protein_scores(measured, foretold)
    rows = np.random.default_rng(1).integers(120, size=120)
    again = protein_scores(measured[rows], foretold[rows])
    for key, score in scores.items():
        assert score.resampled(rows) == pytest.approx(again[key].value, abs=1e-9), key


def test_the_mean_profile_does_well_per_cell_and_says_nothing_of_a_protein():
    measured, _ = pair()
    scores = protein_scores(measured, np.tile(measured.mean(0), (120, 1)))
    assert scores["cell_r"].value > 0.8
    for key in ("protein_r", "worst_protein"):
        assert scores[key].value == 0


def test_to_foretell_nothing_of_a_hard_protein_does_not_pay():
    """It counts as 0: all methods are averaged over the same proteins."""
    measured, foretold = pair()
    silent = foretold.copy()
    silent[:, 0] = 1.0
    value = protein_scores(measured, silent)["protein_r"].value
    single = of_proteins(measured, foretold)
    assert value == pytest.approx(single[1:].sum() / len(single))
    assert of_proteins(measured, silent)[0] == 0


@pytest.mark.parametrize("level", [0.0, 1e4])
def test_a_constant_protein_is_left_out_and_rounding_is_no_variance(level):
    measured, foretold = pair()
    with_flat = np.column_stack([measured, np.full(120, level + 0.1)])
    scores = protein_scores(with_flat, np.column_stack([foretold, foretold[:, 0]]))
    assert scores["protein_r"].value == pytest.approx(
        protein_scores(measured, foretold)["protein_r"].value
    )
    assert np.isnan(of_proteins(with_flat, with_flat)[-1])


def test_neighbours_are_the_nearest_by_cosine():
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(80, 6)), rng.normal(size=(30, 6))
    reference *= rng.uniform(0.1, 9, size=(80, 1))  # lengths tell nothing
    values = rng.normal(size=(80, 4))
    near = cdist(query, reference, "cosine").argsort(1)[:, :5]
    np.testing.assert_allclose(by_neighbours(reference, query, values), values[near].mean(1))
    euclid = cdist(query, reference).argsort(1)[:, :5]
    assert (np.sort(near, 1) != np.sort(euclid, 1)).any()
    with pytest.raises(ch.DataError, match="by 5 cells of the reference, which has 3"):
        by_neighbours(reference[:3], query, values[:3])
