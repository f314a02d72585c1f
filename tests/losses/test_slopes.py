"""Errors of slopes are shares, gene by gene."""

from __future__ import annotations

import pytest
import torch

from chreode.losses.slopes import unexplained


def test_every_gene_has_the_same_say_however_large_it_is():
    torch.manual_seed(0)
    truth = torch.randn(400, 3) * torch.tensor([1.0, 5.0, 0.5])
    assert float(unexplained(torch.zeros_like(truth), truth)) == pytest.approx(1.0)
    assert float(unexplained(truth, truth)) == 0.0
    half = truth.clone()
    half[:, 1] *= 0.5
    assert float(unexplained(half, truth)) == pytest.approx(0.25 / 3)


def test_a_gene_that_does_not_move_counts_little():
    truth = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = torch.tensor([[1.0, 0.01], [-1.0, -0.01]])
    assert float(unexplained(found, truth)) == pytest.approx(0.5 * 1e-4 / 0.005)
