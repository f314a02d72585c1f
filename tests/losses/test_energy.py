"""Energy distances between clouds: SciPy's of one gene, and gradients finite where clouds meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance as of_one_gene

from chreode.losses.energy import energy_distance


def test_it_is_the_square_of_scipys_without_pairs_of_a_cell_with_itself():
    torch.manual_seed(0)
    x, y = torch.randn(3, 40, 1).double(), 2 * torch.randn(3, 25, 1).double() + 1
    found = energy_distance(x, y)
    for one, a, b in zip(found, x, y, strict=True):
        itself = sum(float(torch.cdist(c, c).sum()) / len(c) ** 2 / (len(c) - 1) for c in (a, b))
        assert float(one) == pytest.approx(of_one_gene(a[:, 0], b[:, 0]) ** 2 - itself)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_of_few_cells_it_is_least_at_the_true_spread(n):
    torch.manual_seed(0)
    x, y = torch.randn(60_000, n, 1), torch.randn(60_000, n, 1)
    grid = np.linspace(0.7, 1.3, 13)
    means = [float(energy_distance(float(s) * x, y).double().mean()) for s in grid]
    bend, slope, _ = np.polyfit(grid, means, 2)
    assert -slope / 2 / bend == pytest.approx(1, abs=0.04)


def test_two_draws_of_one_cloud_are_no_distance_apart_on_average():
    torch.manual_seed(0)
    found = energy_distance(torch.randn(20_000, 3, 2), torch.randn(20_000, 5, 2))
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(found) ** 0.5


def test_what_fills_up_a_cloud_does_not_count():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 3), torch.randn(2, 5, 3)
    there = torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(2, -1)
    few = energy_distance(x[:, :3], y)
    torch.testing.assert_close(energy_distance(x, y, there), few)
    torch.testing.assert_close(energy_distance(y, x, of_y=there), few)
    alone = energy_distance(x[:, :1], y)
    assert bool(alone.isfinite().all())


def test_gradients_are_finite_where_clouds_meet():
    torch.manual_seed(0)
    x = torch.randn(30, 5, requires_grad=True)
    energy_distance(x, x.detach()).backward()
    assert bool(x.grad.isfinite().all())


def test_far_from_the_origin_it_is_scipys_and_cells_that_are_alike_have_finite_gradients():
    torch.manual_seed(0)
    x, y = torch.randn(40, 5) + 1e4, torch.randn(30, 5) + 1e4
    x[1] = x[0]
    a, b = x.double().numpy(), y.double().numpy()
    within = sum(cdist(c, c).sum() / len(c) / (len(c) - 1) for c in (a, b))
    x.requires_grad_()
    found = energy_distance(x, y)
    found.backward()
    assert float(found.detach()) == pytest.approx(2 * cdist(a, b).mean() - within, abs=1e-5)
    assert bool(x.grad.isfinite().all())
