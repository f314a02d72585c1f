"""Energy distances between clouds: SciPy's of one gene, and gradients finite where clouds meet."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import energy_distance as of_one_gene

from chreode.losses.energy import energy_distance


def test_it_is_the_square_of_scipys():
    torch.manual_seed(0)
    x, y = torch.randn(3, 40, 1).double(), 2 * torch.randn(3, 25, 1).double() + 1
    found = energy_distance(x, y)
    for one, a, b in zip(found, x, y, strict=True):
        assert float(one) == pytest.approx(of_one_gene(a[:, 0], b[:, 0]) ** 2)


def test_the_same_cloud_is_no_distance_away_and_gradients_are_finite():
    torch.manual_seed(0)
    x = torch.randn(30, 5, requires_grad=True)
    distance = energy_distance(x, x.detach())
    distance.backward()
    assert float(distance.detach()) == pytest.approx(0.0, abs=1e-5)
    assert bool(x.grad.isfinite().all())
