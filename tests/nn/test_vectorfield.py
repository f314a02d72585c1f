"""Fields and gates: shapes, paths by hand, exact zeros, the distribution of gates."""

from __future__ import annotations

import math

import pytest
import torch

from chreode.models.dynamics.gates import BETA, GAMMA, ZETA, HardConcrete
from chreode.models.dynamics.vectorfield import VectorField, mean_jacobian


def test_one_network_is_a_perceptron():
    torch.manual_seed(0)
    field, x = VectorField(3, (5, 4), activation="tanh"), torch.randn(7, 3)
    h = x
    for i, (w, b) in enumerate(zip(field.weights, field.biases, strict=True)):
        h = h @ w[0] + b[0]
        h = torch.tanh(h) if i < 2 else h
    torch.testing.assert_close(field(x), h)


def test_networks_of_outputs_are_perceptrons_side_by_side():
    torch.manual_seed(0)
    field, x = VectorField(3, (5, 4), per_output=True, activation="elu"), torch.randn(7, 3)
    for b in field.biases:
        torch.nn.init.normal_(b)
    for j in range(3):
        h = x
        for i, (w, b) in enumerate(zip(field.weights, field.biases, strict=True)):
            h = h @ w[j] + b[j]
            h = torch.nn.functional.elu(h) if i < 2 else h
        torch.testing.assert_close(field(x)[:, j], h[:, 0])


@pytest.mark.parametrize("per_output", [False, True])
def test_paths_are_sums_of_products(per_output):
    torch.manual_seed(0)
    field = VectorField(3, (2,), per_output=per_output)
    found = field.paths([w.abs() for w in field.weights])
    a, b = (w.abs() for w in field.weights)
    for i in range(3):
        for j in range(3):
            k = j if per_output else 0
            by_hand = sum(a[k, i, h] * b[k, h, 0 if per_output else j] for h in range(2))
            torch.testing.assert_close(found[i, j], by_hand)


def test_a_closed_edge_is_exactly_none():
    torch.manual_seed(0)
    field = VectorField(4, (8,), per_output=True, gates="edges")
    with torch.no_grad():
        field.gates[0].slow.fill_(0.5)
        field.gates[0].slow[2, 1] = -0.5  # 1 → 2
    jacobian = torch.func.jacrev(lambda x: field(x[None])[0])(torch.randn(4))
    assert jacobian[2, 1] == 0.0
    assert (jacobian.flatten() == 0).sum() == 1


def test_published_gates_cannot_tell_targets_apart():
    """On inputs of layers, a path's gate is of its input times a constant: of rank one."""
    torch.manual_seed(0)
    ranks = []
    for gates in ("inputs", "weights"):
        field = VectorField(5, (6, 6), gates=gates)
        with torch.no_grad():
            for gate in field.gates:
                gate.slow.normal_().mul_(0.1)
        ranks.append(int(torch.linalg.matrix_rank(field.paths(field.opened()))))
    assert ranks == [1, 5]


def test_gates_are_open_as_often_as_said():
    torch.manual_seed(0)
    gate = HardConcrete(200_000)
    with torch.no_grad():
        gate.slow.fill_(0.04)
    z = gate.sample().detach()
    p = 1 / (1 + math.exp(-(0.4 - BETA * math.log(-GAMMA / ZETA))))
    assert float((z > 0).float().mean()) == pytest.approx(p, abs=0.004)
    assert gate.opened()[0].item() == pytest.approx(p, abs=1e-6)
    assert float(z.min()) == 0.0
    assert float(z.max()) == 1.0


def test_settled_gates_have_no_chance_and_are_zero_where_that_is_likelier():
    gate = HardConcrete(3)
    with torch.no_grad():
        gate.slow.copy_(torch.tensor([-0.3, 0.0, 0.4]))
    first = gate.settled()
    torch.testing.assert_close(first, gate.settled())
    assert first[0] == 0.0
    assert 0 < first[1] < 1
    assert first[2] == 1.0
    assert bool(gate.opened()[0] < 0.5 < gate.opened()[1])


def test_the_share_of_closed_gates_at_the_start():
    torch.manual_seed(0)
    for closed in (0.2, 0.5):
        gate = HardConcrete(10_000, closed=closed)
        assert torch.sigmoid(gate.log_alpha).mean().item() == pytest.approx(1 - closed, abs=0.01)


def test_the_mean_jacobian_of_a_linear_map_is_its_matrix():
    torch.manual_seed(0)
    a = torch.randn(4, 3)
    found = mean_jacobian(lambda x: x @ a + x.square().sum(1, keepdim=True), torch.zeros(20, 4))
    torch.testing.assert_close(found, a)


def test_linear_terms_are_behind_the_gates_of_edges():
    torch.manual_seed(0)
    field = VectorField(3, (4,), per_output=True, gates="edges", skip=True)
    with torch.no_grad():
        field.skip.normal_()
        field.gates[0].slow.fill_(0.5)
        field.gates[0].slow[2, 1] = -0.5  # 1 → 2
    x = torch.randn(5, 3)
    expected = VectorField.forward(field, x)
    found = mean_jacobian(field, x)
    assert found[1, 2] == 0.0
    assert field.reach()[1, 2] == 0.0
    assert (found == 0).sum() == 1
    with torch.no_grad():
        without = field(x) - x @ field.linear().T
        field.skip.zero_()
        torch.testing.assert_close(field(x), without)
        assert not torch.equal(expected, without)
    field.settle("ones")
    assert field.reach()[1, 2] > 0
