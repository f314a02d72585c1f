"""Errors are shares of what moves, and roots of squares: genes with little noise count as others do."""

from __future__ import annotations

import pytest
import torch

from chreode.models.dynamics.unexplained import unexplained


def test_it_is_the_mean_of_roots_over_the_root_of_the_whole():
    torch.manual_seed(0)
    truth = torch.randn(400, 3, dtype=torch.double)
    found, weight = truth + torch.tensor([0.1, 0.2, 0.4]), torch.ones_like(truth)
    told = (0.7 / 3) / float(truth.square().mean().sqrt())
    assert float(unexplained(found, truth, weight)) == pytest.approx(told, rel=1e-4)
    assert float(unexplained(found[:, None], truth[:, None], weight[:, None])) == pytest.approx(
        told, rel=1e-4
    )


def test_what_was_not_measured_does_not_count():
    truth, weight = torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    found = truth + torch.tensor([[0.5, 0.5], [0.5, 99.0]])
    whole = ((1 + 1 + 2 * 9) / 4) ** 0.5
    assert float(unexplained(found, truth, weight)) == pytest.approx(0.5 / whole, rel=1e-4)


def test_the_pull_of_a_gene_does_not_depend_on_its_noise():
    """What makes one strength right for all: the gradient of a root has the length 1, not that of errors."""
    torch.manual_seed(0)
    x, noise = torch.randn(20_000, 1), torch.randn(20_000, 2) * torch.tensor([0.1, 1.0])
    slope = torch.zeros(2, requires_grad=True)
    truth = noise
    weight = torch.ones_like(truth)
    unexplained(x * slope, truth, weight).backward()
    pull = slope.grad.abs() / (x * noise).mean(0).abs() * noise.square().mean(0).sqrt()
    assert float(pull[0]) == pytest.approx(float(pull[1]), rel=1e-3)


def test_no_error_has_no_gradient_that_is_not_a_number():
    found = torch.ones(4, 2, requires_grad=True)
    unexplained(found, torch.ones(4, 2), torch.ones(4, 2)).backward()
    assert bool(found.grad.isfinite().all())
