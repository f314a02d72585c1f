"""Paths whose marginal velocity is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from chreode.flows.path import straight, stratified_times
from chreode.ode import solve

MEAN, SCALE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])


def marginal_velocity(x, t, sigma):
    """E[velocity | x_t = x] for noise N(0, I) and data N(MEAN, SCALE²): a linear regression."""
    kept = 1 - (1 - sigma) * t
    variance = (t * SCALE) ** 2 + kept**2
    covariance = t * SCALE**2 - (1 - sigma) * kept
    return MEAN + covariance / variance * (x - t * MEAN)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_ends_and_the_velocity(sigma):
    torch.manual_seed(0)
    noise, data = torch.randn(2, 5, 2, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    at = [straight(noise, data, torch.full((5,), s, dtype=torch.float64), sigma)[0] for s in (0, 1)]
    torch.testing.assert_close(at[0], noise)
    torch.testing.assert_close(at[1], data + sigma * noise)
    point, velocity = straight(noise, data, t, sigma)
    later, _ = straight(noise, data, t + 1e-6, sigma)
    torch.testing.assert_close((later - point) / 1e-6, velocity, rtol=0, atol=1e-8)
    # the form of Lipman et al., equation 21
    torch.testing.assert_close(
        velocity,
        (data - (1 - sigma) * point) / (1 - (1 - sigma) * t)[:, None],
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_regression_on_the_path_finds_the_marginal_velocity(sigma):
    """What a network would learn at a time, by least squares, is the closed form."""
    torch.manual_seed(0)
    n = 200_000
    data, noise = MEAN + SCALE * torch.randn(n, 2), torch.randn(n, 2)
    for time in (0.1, 0.5, 0.9):
        point, velocity = straight(noise, data, torch.full((n,), time), sigma)
        for j in range(2):
            slope, level = np.polyfit(point[:, j].numpy(), velocity[:, j].numpy(), 1)
            probe = torch.zeros(2, 2)
            probe[1] = 1.0
            expected = marginal_velocity(probe, time, sigma)[:, j]
            assert level == pytest.approx(float(expected[0]), abs=0.03)
            assert slope == pytest.approx(float(expected[1] - expected[0]), abs=0.03)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_following_the_marginal_velocity_makes_the_data(sigma):
    torch.manual_seed(0)
    noise = torch.randn(4000, 2)
    found = solve(lambda x, t: marginal_velocity(x, t, sigma), noise, method="rk4", steps=50).y
    scale = torch.sqrt(SCALE**2 + sigma**2)
    torch.testing.assert_close(found, MEAN + scale * noise, rtol=0, atol=2e-3)


def test_times_are_stratified_and_uniform():
    torch.manual_seed(0)
    times = stratified_times(64)
    assert sorted((times * 64).long().tolist()) == list(range(64))
    assert not torch.equal(times, times.sort().values)
    many = torch.cat([stratified_times(8) for _ in range(500)])
    assert kstest(many.numpy(), "uniform").pvalue > 0.01
    assert stratified_times(1).shape == (1,)
