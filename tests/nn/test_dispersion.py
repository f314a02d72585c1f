"""Where a decoder of counts starts, and how fast its dispersions learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chreode.data.batch import SparseRows
from chreode.nn.dispersion import CountMoments, LogTheta


def counts(n=8_000, seed=0):
    """Return negative binomial counts whose cells differ in depth alone, with the truth."""
    rng = np.random.default_rng(seed)
    frequency = rng.dirichlet(np.full(300, 5.0))
    theta = np.geomspace(0.2, 20, 300)
    mean = rng.lognormal(8, 0.5, n)[:, None] * frequency
    return rng.poisson(rng.gamma(theta, size=mean.shape) * mean / theta), frequency, theta


def test_moments_find_frequencies_and_dispersions():
    x, frequency, theta = counts()
    rows = SparseRows.of(torch.from_numpy(x).float())
    found = CountMoments.of(rows.split([3_000, 5_000]))
    np.testing.assert_allclose(found.log_frequency.exp(), frequency, rtol=0.1)
    error = found.log_theta.numpy() - np.log(theta)
    assert abs(np.median(error)) < 0.05
    assert np.quantile(np.abs(error), 0.9) < 0.15
    np.testing.assert_allclose(found.log_odds.sigmoid(), (x > 0).mean(0), atol=1e-4)


def test_moments_are_the_formula_and_empty_cells_say_nothing():
    x = counts(300)[0][:, :5].astype(float)
    x[::7] = 0
    depth = x.sum(1, keepdims=True)
    p = (x.sum(0) + 0.5) / (x.sum() + 2.5)
    excess = ((x - depth * p) ** 2 - depth * p).sum(0)
    theta = ((depth * p) ** 2).sum(0) / excess
    found = CountMoments.of([SparseRows.of(torch.from_numpy(x).float())])
    np.testing.assert_allclose(found.log_theta, np.log(theta), rtol=1e-5)
    fewer = CountMoments.of([SparseRows.of(torch.from_numpy(x[depth[:, 0] > 0]).float())])
    for name in ("log_frequency", "log_theta", "log_odds"):
        torch.testing.assert_close(getattr(found, name), getattr(fewer, name))


@pytest.mark.parametrize(("most", "binary"), [(1.0, True), (2.0, False), (0.5, False)])
def test_features_that_are_there_or_not_are_told(most, binary):
    rows = SparseRows.of(torch.tensor([[0.0, 1.0], [most, 0.0]]))
    assert CountMoments.of([rows]).binary == binary


def test_features_that_never_vary_stay_finite():
    found = CountMoments.of([SparseRows.of(torch.tensor([[0.0, 5.0], [0.0, 5.0]]))])
    for values in (found.log_frequency, found.log_theta, found.log_odds):
        assert bool(values.isfinite().all())


def test_a_start_is_what_is_read_and_a_step_goes_ten_times_as_far():
    table = LogTheta((2, 1), 4)
    wanted = torch.tensor([2.5, 3.0, 3.5, 4.0])
    table.start(wanted)
    torch.testing.assert_close(table.table(), wanted.expand(3, 4))
    optimiser = torch.optim.Adam(table.parameters(), lr=1e-3)
    table(torch.tensor([0, 2])).sum().backward()
    optimiser.step()
    moved = wanted - table.table().detach()
    torch.testing.assert_close(moved[[0, 2]], torch.full((2, 4), 0.01), atol=1e-5, rtol=0)


def test_without_a_start_log_theta_is_standard_normal():
    torch.manual_seed(0)
    values = LogTheta((50,), 200).table().detach()
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05


def test_a_start_is_near_a_poisson():
    table = LogTheta((1,), 2)
    table.start(torch.tensor([-3.0, 4.0]))
    torch.testing.assert_close(table.table().exp(), torch.tensor([[10.0, math.exp(4)]]))


def test_theta_rises_with_the_frequency_by_the_formula():
    table = LogTheta((1,), 3, rises=True)
    frequency, here = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([[0.4, 0.3, 0.3]])
    theta = torch.tensor([20.0, 55.0, 148.0])
    table.start(theta.log())
    table.refer(frequency.log(), 10)
    with torch.no_grad():
        table.odds.copy_(torch.tensor([[0.0, 0.5, -0.4]]))
    w = torch.tensor([[0.0, 1.5, -1.2]]).sigmoid()
    expected = theta * (1 - w + w * here / frequency)
    torch.testing.assert_close(table.of(table.table(), here.log() + 7).exp(), expected)
    rising = theta * w * here / frequency / expected
    torch.testing.assert_close(table.rising(here.log() + 7), rising)
    # a normal prior of mean 0 and spread 2 of the log-odds, shared by ten cells
    penalty = (w.logit() / 2).square().sum() / 2 / 10
    torch.testing.assert_close(table.penalty(), penalty, rtol=1e-5, atol=0)
