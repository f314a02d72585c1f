"""Penalties by hand, and proximal steps against their definitions."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from chreode.models.dynamics import sparsity
from chreode.models.dynamics.vectorfield import VectorField


def field_of(**how):
    torch.manual_seed(0)
    return VectorField(3, (4,), **how)


def test_l1_is_the_mean_of_all_weights():
    field = field_of()
    everything = torch.cat([w.abs().flatten() for w in field.weights])
    torch.testing.assert_close(sparsity.l1(field), everything.mean())


def test_the_path_norm_is_a_product_of_matrices():
    field = field_of()
    a, b = (w[0].abs() for w in field.weights)
    torch.testing.assert_close(sparsity.path_norm(field), (a @ b).sum(0).mean())
    with_skip = field_of(skip=True)
    with torch.no_grad():
        with_skip.skip.copy_(-torch.ones(3, 3))
    torch.testing.assert_close(sparsity.path_norm(with_skip), sparsity.path_norm(field_of()) + 3.0)


def test_open_gates_and_open_paths_are_probabilities():
    field = field_of(gates="weights")
    p = [g.opened() for g in field.gates]
    torch.testing.assert_close(
        sparsity.open_gates(field), torch.cat([v.flatten() for v in p]).mean()
    )
    torch.testing.assert_close(sparsity.open_paths(field), (p[0][0] @ p[1][0]).sum(0).mean() / 4)
    masks = [torch.ones_like(v) for v in p]
    torch.testing.assert_close(sparsity.open_paths(field, masks), torch.tensor(3.0))


def test_groups_shrink_by_their_proximal_step():
    """The step minimises ½‖w − v‖² + s‖w‖₂ for the weights of each edge."""
    field = field_of(per_output=True)
    before = field.weights[0].detach().clone()
    step = torch.full((3, 3), 0.3)
    step[1, 2] = 10.0
    sparsity.shrink_groups(field, step)
    after = field.weights[0].detach()
    assert not after[1, 2].any()
    for j, i in ((0, 0), (2, 1)):
        v = before[j, i].double().numpy()
        best = minimize(
            lambda w, v=v: 0.5 * ((w - v) ** 2).sum() + 0.3 * (w**2).sum() ** 0.5,
            v * 0.5,
            tol=1e-12,
        ).x
        torch.testing.assert_close(after[j, i].double(), torch.from_numpy(best), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_the_hierarchical_step_minimises_its_objective(seed):
    """½(b − θ)² + ½‖W − w‖² + s|b| under |W| ≤ M|b| (Lemhadri et al. 2021, equation 5)."""
    torch.manual_seed(seed)
    skip, w = torch.randn(1, 1).double(), torch.randn(1, 1, 5).double()
    step, ratio = 0.4, 1.7
    found, weights = sparsity.hierarchical(skip, w, torch.full((1, 1), step).double(), ratio)
    assert (weights.abs() <= ratio * found.abs()[..., None] + 1e-12).all()

    def cost(b):
        clipped = w.abs().clamp(max=ratio * abs(b))
        return float(
            0.5 * (b - skip).square().sum()
            + 0.5 * (w.abs() - clipped).square().sum()
            + step * abs(b)
        )

    grid = torch.linspace(-4, 4, 160_001).double()
    clipped = w.abs().flatten().minimum(ratio * grid.abs()[:, None])
    costs = (
        0.5 * (grid - skip.flatten()).square()
        + 0.5 * (w.abs().flatten() - clipped).square().sum(1)
        + step * grid.abs()
    )
    assert cost(float(found)) <= float(costs.min()) + 1e-8


def test_a_skip_of_nothing_closes_its_network():
    found, weights = sparsity.hierarchical(
        torch.tensor([[0.05]]), 0.01 * torch.ones(1, 1, 3), torch.ones(1, 1), 2.0
    )
    assert not found.any()
    assert not weights.any()
