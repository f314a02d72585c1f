"""Neighbours and their weights against brute force: ties, coinciding cells, bandwidths out of reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

from chreode.metrics.neighbours import (
    Neighbours,
    _kernel,
    _least,
    connectivities,
    exact_neighbours,
    perplexity_weights,
)


def among_all(x):
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    return distances


def check(x, k):
    """Nearest others of each cell, by all distances; which of those at equal distance is open."""
    near, distances = exact_neighbours(x, k), among_all(x)
    np.testing.assert_allclose(
        near.distances, np.sort(distances, axis=1)[:, :k], rtol=1e-6, atol=1e-6
    )
    of_found = np.take_along_axis(distances, near.indices, axis=1)
    np.testing.assert_allclose(near.distances, of_found, rtol=1e-6, atol=1e-6)
    assert (np.diff(np.sort(near.indices, axis=1), axis=1) > 0).all()
    return near


@given(
    x=st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=3, max_size=40),
    k=st.integers(1, 39),
)
def test_neighbours_on_a_grid_are_those_of_all_pairs(x, k):
    x = np.array(x, dtype=float)
    if len(x) > k and np.ptp(x, axis=0).any():
        near = check(x, k)
        _, spot, size = np.unique(x, axis=0, return_inverse=True, return_counts=True)
        for group in np.flatnonzero(size > k + 1):
            drawn = near.indices[spot.ravel() == group]
            assert set(np.unique(drawn, return_counts=True)[1]) == {k}  # nobody is favoured


@pytest.mark.parametrize("order", ["random", "sorted", "periodic"])
def test_neighbours_do_not_depend_on_how_cells_are_ordered(order):
    rng = np.random.default_rng(0)
    n_cells, k = 3000, 5  # several chunks, and groups of 150 cells
    labels = rng.integers(20, size=n_cells)
    if order == "sorted":
        labels = np.sort(labels)
    elif order == "periodic":
        labels = np.arange(n_cells) % 20
    x = 30 * rng.normal(size=(20, 4))[labels] + rng.normal(size=(n_cells, 4))
    near = check(x, k)
    assert (near.indices == np.argsort(among_all(x), axis=1)[:, :k]).all()


def test_cells_beside_coinciding_cells_take_their_neighbours_from_all_of_them():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [np.zeros((500, 3)), 1e-3 * rng.normal(size=(20, 3)), rng.normal(size=(9, 3))]
    )
    near = check(x, 10)
    assert (near.distances[:500] == 0).all()
    assert near.indices[:500].max() < 500
    assert len(np.unique(near.indices[500:])) > 10
    assert (exact_neighbours(x, 10).indices == near.indices).all()


def test_rounding_does_not_choose_among_cells_far_from_the_origin():
    rng = np.random.default_rng(0)
    check(rng.normal(size=(300, 6)) + 1e4, 20)
    check(np.concatenate([rng.normal(size=(300, 6)), [[1e3] * 6]]), 20)  # an outlier


@pytest.mark.slow
@given(
    values=st.integers(1, 4).flatmap(
        lambda r: st.lists(
            st.lists(st.integers(-3, 3) | st.just(np.inf), min_size=30, max_size=30),
            min_size=r,
            max_size=r,
        )
    ),
    k=st.integers(1, 15),
)
def test_the_least_of_rows_are_those_of_sorting(values, k):
    values = np.array(values, dtype=float)
    values[:, :k] = np.where(np.isinf(values[:, :k]), 9, values[:, :k])  # k finite ones or more
    found = _least(values, k)
    least = np.sort(np.take_along_axis(values, found, axis=1), axis=1)
    assert (least == np.sort(values, axis=1)[:, :k]).all()
    assert all(len(set(row)) == k for row in found)


def some_neighbours(distances):
    """Give the distances some indices: as many cells as rows."""
    n_cells, k = distances.shape
    indices = (np.arange(n_cells)[:, None] + np.arange(1, k + 1)) % n_cells
    return Neighbours(indices, np.sort(distances, axis=1).astype(np.float32))


@pytest.mark.parametrize("spread", [0.01, 0.5, 1.5, 3.0])
def test_perplexity_is_met_whatever_the_distances(spread):
    rng = np.random.default_rng(0)
    distances = 10.0 ** rng.uniform(-6, 6, (100, 1)) * rng.lognormal(0, spread, (100, 90))
    near = some_neighbours(distances)
    weights = perplexity_weights(near, 30.0)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(entropy, np.log(30), rtol=0, atol=1e-9)
    beyond = near.distances.astype(float) - near.distances[:, :1]
    for row in range(0, 100, 25):

        def excess(log_h, b=beyond[row]):
            p = np.exp(-b / np.exp(log_h))
            p /= p.sum()
            return -(p * np.log(np.maximum(p, 1e-300))).sum() - np.log(30)

        middle = np.log(beyond[row].mean())
        h = np.exp(brentq(excess, middle - 12, middle + 12, xtol=1e-13))
        expected = np.exp(-beyond[row] / h)
        np.testing.assert_allclose(weights[row], expected / expected.sum(), rtol=0, atol=1e-9)


def test_perplexity_out_of_reach_takes_the_nearer_end():
    distances = np.ones((100, 60))
    distances[:50, 40:] = 3.0  # forty at the least distance: never fewer than forty count
    weights = perplexity_weights(some_neighbours(distances), 20.0)
    np.testing.assert_allclose(weights[:50, :40], 1 / 40, atol=1e-12)
    np.testing.assert_allclose(weights[:50, 40:], 0, atol=1e-12)
    np.testing.assert_allclose(weights[50:], 1 / 60, atol=1e-12)


def brute_connectivities(near):
    n_cells, k = near.indices.shape
    directed = np.zeros((n_cells, n_cells))
    for cell, (others, row) in enumerate(
        zip(near.indices, near.distances.astype(float), strict=True)
    ):
        beyond = np.maximum(row - min(row[row > 0], default=0), 0)

        def excess(log_h, b=beyond):
            return np.exp(-b / np.exp(log_h)).sum() - np.log2(k + 1)

        middle = np.log(row.sum() / (k + 1) or 1.0)
        low, high = middle - np.log(1e3), middle + np.log(1e3)
        if excess(low) > 0:
            log_h = low
        elif excess(high) < 0:
            log_h = high
        else:
            log_h = brentq(excess, low, high, xtol=1e-13)
        directed[cell, others] = np.exp(-beyond / np.exp(log_h))
    return directed + directed.T - directed * directed.T


def test_connectivities_are_the_union_of_both_directions_even_where_cells_coincide():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    x[:20] = x[0]  # more than k coincide
    x[20:26] = x[20]  # fewer than k, and more than log2(k + 1)
    x[26:28] = x[26]
    near = exact_neighbours(x, 14)
    graph = connectivities(near)
    np.testing.assert_allclose(graph.toarray(), brute_connectivities(near), atol=1e-8)
    assert abs(graph - graph.T).max() == 0


def test_newton_that_goes_to_and_fro_is_cut_short():
    """On sign(x) √|x| Newton goes from x to -x, for ever, and never leaves the bracket."""

    def measure(scaled):
        x = -np.log(scaled[:, 0])
        return np.sign(x) * np.sqrt(np.abs(x)), 0.5 / np.sqrt(np.maximum(np.abs(x), 1e-9))

    found = _kernel(np.ones((1, 1)), np.array([2.0]), 1e6, measure, 0.0)
    assert found[0, 0] == pytest.approx(np.exp(-1), rel=1e-5)  # the bandwidth is 1
