"""Couplings against every permutation, and against POT."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import torch

from chreode.flows.coupling import optimal


def cost(noise, data):
    return float((noise - data).square().sum())


def test_no_permutation_is_cheaper():
    torch.manual_seed(0)
    noise, data = torch.randn(6, 2), torch.randn(6, 2)
    best = min(cost(noise[list(p)], data) for p in itertools.permutations(range(6)))
    assert abs(cost(optimal(noise, data), data) - best) < 1e-5


def test_the_cost_is_that_of_pot():
    torch.manual_seed(1)
    noise, data = torch.randn(64, 10), torch.randn(64, 10) + 1
    found = cost(optimal(noise, data), data) / 64
    expected = ot.emd2([], [], np.asarray(torch.cdist(noise, data).square(), np.float64))
    assert abs(found - expected) < 1e-4


def test_groups_exchange_nothing():
    torch.manual_seed(2)
    noise, data = torch.randn(40, 3), torch.randn(40, 3)
    group = torch.arange(40) % 3
    paired = optimal(noise, data, group)
    for code in range(3):
        mine = group == code
        assert set(map(tuple, paired[mine].tolist())) == set(map(tuple, noise[mine].tolist()))
        alone = optimal(noise[mine], data[mine])
        torch.testing.assert_close(paired[mine], alone)
    assert cost(paired, data) > cost(optimal(noise, data), data)


def test_far_from_the_origin_pairs_are_the_same():
    torch.manual_seed(3)
    noise, data = ((256 * torch.randn(40, 3)).round() / 256 for _ in range(2))
    far = 8192.0  # a shift that float32 adds without rounding
    torch.testing.assert_close(optimal(noise + far, data + far) - far, optimal(noise, data))
