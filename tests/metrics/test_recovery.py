"""How well latents are recovered: scikit-learn, loops over pairs, permutations, and known noise."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from chreode.errors import DataError
from chreode.metrics.recovery import (
    angle_error,
    axis_r2,
    block_r2,
    distance_to_orthogonal,
    matched_columns,
    mean_correlation,
)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def on_sphere(seed, n, k=3):
    x = drawn(seed, n, k)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_r2_is_scikit_learn_s_on_rows_that_were_not_learned_from():
    z = drawn(0, 301, 4)
    found = z @ drawn(1, 4, 6) + 0.7 * drawn(2, 301, 6)
    model = LinearRegression().fit(found[:150], z[:150])
    expected = r2_score(z[150:], model.predict(found[150:]), multioutput="raw_values")
    np.testing.assert_allclose(axis_r2(z, found), expected, rtol=1e-10)
    blocks = {"first": [0], "others": range(1, 4)}
    by_block = block_r2(z, found, blocks)
    assert by_block == pytest.approx({"first": expected[0], "others": expected[1:].mean()})


def test_many_columns_of_noise_explain_nothing():
    z, noise = drawn(0, 400, 2), drawn(1, 400, 90)
    learned_from = LinearRegression().fit(noise[:200], z[:200]).score(noise[:200], z[:200])
    assert learned_from > 0.35  # what a score on the same rows would say
    assert axis_r2(z, noise).max() < 0


def test_linear_maps_and_shifts_lose_nothing():
    z = drawn(0, 200, 3)
    np.testing.assert_allclose(axis_r2(z, z @ drawn(1, 3, 3) - 5), 1, atol=1e-10)


def test_kernel_regression_sees_another_shape_where_a_line_does_not():
    found = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    z = np.stack([found[:, 0] ** 2, drawn(1, 600)], 1)
    assert axis_r2(z, found)[0] < 0.05
    by_kernel = axis_r2(z, found, linear=False)
    assert by_kernel[0] > 0.98
    assert by_kernel[1] < 0.05  # nor does it see what is not there
    assert block_r2(z, found, {"kept": [0]}, linear=False)["kept"] == pytest.approx(by_kernel[0])


def test_matched_correlation_is_the_best_of_all_orders():
    z = drawn(0, 80, 4)
    found = z[:, [2, 0, 3, 1]] * [1, -2, 0.1, -1] + drawn(1, 80, 4) * [0.5, 1.5, 0.2, 1]
    crossed = np.array(
        [[abs(np.corrcoef(z[:, i], found[:, j])[0, 1]) for j in range(4)] for i in range(4)]
    )
    best = max(permutations(range(4)), key=lambda order: crossed[np.arange(4), list(order)].sum())
    assert mean_correlation(z, found) == pytest.approx(crossed[np.arange(4), list(best)].mean())
    assert matched_columns(z, found).tolist() == list(best)
    # the largest in each row would not be one to one
    twice = np.stack([z[:, 0], z[:, 0] + 0.01 * z[:, 1], z[:, 2], z[:, 3]], 1)
    assert sorted(matched_columns(z, twice)) == [0, 1, 2, 3]


def test_a_turn_lowers_matched_correlation_and_not_r2():
    z, s = drawn(0, 4000, 2), math.sqrt(0.5)
    turned = z @ np.array([[s, -s], [s, s]])
    assert mean_correlation(z, turned) == pytest.approx(s, abs=0.03)
    np.testing.assert_allclose(axis_r2(z, turned), 1, atol=1e-10)


def test_constant_columns_tell_nothing():
    z = drawn(0, 100, 3)
    found = z.copy()
    found[:, 1] = 7
    by_axis = axis_r2(z, found)
    assert abs(by_axis[1]) < 0.1
    np.testing.assert_allclose(by_axis[[0, 2]], 1, atol=1e-10)
    assert mean_correlation(z, found) == pytest.approx(2 / 3)
    assert mean_correlation(z, np.zeros_like(z)) == 0


def test_angles_are_compared_over_all_pairs_of_different_rows():
    z, found = on_sphere(0, 12), on_sphere(1, 12)
    total = [abs(z[i] @ z[j] - found[i] @ found[j]) for i in range(12) for j in range(12) if i != j]
    assert angle_error(z, found) == pytest.approx(np.mean(total))
    turn = ortho_group.rvs(3, random_state=0)
    assert angle_error(z, z @ turn) == pytest.approx(0, abs=1e-12)


def test_points_that_have_nothing_to_do_with_each_other_have_two_thirds():
    assert angle_error(on_sphere(0, 1500), on_sphere(1, 1500)) == pytest.approx(2 / 3, abs=0.02)


def test_the_nearest_orthogonal_map_leaves_the_noise():
    z, noise = on_sphere(0, 5000), 0.05 * drawn(1, 5000, 3)
    for seed in range(3):
        turn = ortho_group.rvs(3, random_state=seed)
        assert distance_to_orthogonal(z, z @ turn + noise) == pytest.approx(
            0.05 * math.sqrt(3), rel=0.03
        )
    # a scale is no orthogonal map
    assert distance_to_orthogonal(z, 0.8 * z) == pytest.approx(0.2)
    mirror = np.diag([1.0, 1.0, -1.0])
    assert distance_to_orthogonal(z, z @ mirror) == pytest.approx(0, abs=1e-7)
    # and the root mean square of two independent points of the sphere is near √2
    assert distance_to_orthogonal(z, on_sphere(2, 5000)) == pytest.approx(math.sqrt(2), abs=0.05)


def with_value(value):
    z = drawn(0, 50, 2)
    z[3, 1] = value
    return z


@pytest.mark.usefixtures("without_types")
@pytest.mark.parametrize("score", [axis_r2, mean_correlation])
def test_what_cannot_be_scored_is_refused(score):
    z = drawn(0, 50, 2)
    for value in (math.nan, math.inf):
        for pair in ((z, with_value(value)), (with_value(value), z)):
            with pytest.raises(DataError, match="not finite"):
                score(*pair)
    with pytest.raises(DataError, match=r"50 rows of latents, 49 rows of what was recovered"):
        score(z, z[:49])
    with pytest.raises(
        DataError, match=r"11 rows: expected 12 or more, to tell latents from 2 columns"
    ):
        score(z[:11], z[:11])
    score(z[:12], z[:12])
    with pytest.raises(DataError, match="constant"):
        score(np.ones((50, 2)), z)


def test_kernel_regression_is_of_latents_wherever_they_lie():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(200, 2))
    found = np.hstack([z, z**2]) + 0.1 * rng.normal(size=(200, 4))
    near, far = (axis_r2(at, found, linear=False) for at in (z, z + 100.0))
    np.testing.assert_allclose(far, near, rtol=1e-6)
