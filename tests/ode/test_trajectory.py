"""Paths of many series: exact solutions, SciPy, torchdiffeq, gradients, ragged times, blow-ups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp
from torchdiffeq import odeint

from chreode.errors import BlowUpError, ConfigError
from chreode.ode import METHODS, trajectory
from chreode.ode.trajectory import _Path, _step

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)


def spiral(y, t):
    return y @ A.T


def exact(start, times):
    return torch.stack(
        [
            torch.stack([torch.matrix_exp(A * t) @ y for t in row])
            for y, row in zip(start, times, strict=True)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_path_is_the_exact_one(method):
    start = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)
    times = torch.linspace(0, 3, 37, dtype=torch.float64).expand(2, -1)
    steps = {"euler": 30_000}.get(method, 1000)
    found = trajectory(spiral, start, times, method=method, steps=steps, rtol=1e-8, atol=1e-8)
    atol = {"euler": 2e-3, "midpoint": 1e-4, "heun": 1e-4}.get(method, 1e-6)
    torch.testing.assert_close(found, exact(start, times), atol=atol, rtol=0)


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_interpolants_are_of_order_four(method):
    """One step: halved, the error between its ends falls by 2⁵ and at its end by 2⁶."""
    start, zero = (
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
    )
    errors = []
    for length in (0.4, 0.2):
        h, path = torch.full((1,), length, dtype=torch.float64), _Path(METHODS[method])
        path.add(h, h, start, _step(path.tableau, spiral, start, zero, h, spiral(start, zero))[1])
        times = torch.tensor([[0.37 * length, length]], dtype=torch.float64)
        errors.append((path.at(times, zero, start) - exact(start, times)).norm(dim=2)[0])
    inside, end = (errors[0] / errors[1]).tolist()
    assert inside > 24  # one order less: 16
    assert end > 48


def test_the_interpolant_of_dormand_and_prince_is_scipys():
    np.testing.assert_allclose(METHODS["dopri5"].dense, RK45.P, rtol=1e-14)


def test_weights_of_interpolants_end_in_those_of_the_method():
    for method in (METHODS["dopri5"], METHODS["tsit5"]):
        np.testing.assert_allclose(np.sum(method.dense, axis=1), method.b, atol=1e-14)


def test_every_series_has_its_own_times_and_steps():
    torch.manual_seed(0)
    start = torch.randn(3, 2, dtype=torch.float64)
    speed = torch.tensor([[1.0], [10.0], [0.1]], dtype=torch.float64)
    times = torch.tensor(
        [[0.0, 1.0, 2.0, 2.0], [0.5, 0.6, 0.7, 3.0], [-1.0, 4.0, 9.0, 9.0]], dtype=torch.float64
    )
    found = trajectory(lambda y, t: speed * spiral(y, t), start, times, rtol=1e-9, atol=1e-9)
    for i in range(3):
        alone = solve_ivp(
            lambda _, y, i=i: speed[i].item() * (A.numpy() @ y),
            (times[i, 0], times[i, -1]), start[i].numpy(),
            t_eval=np.unique(times[i]), rtol=1e-10, atol=1e-10,
        ).y.T  # fmt: skip
        expected = alone[np.unique(times[i], return_inverse=True)[1]]
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-7)


def test_a_field_of_time_is_told_each_series_its_own():
    times = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]], dtype=torch.float64)
    found = trajectory(
        lambda y, t: t[:, None].expand_as(y), torch.zeros(2, 1, dtype=torch.float64), times
    )
    torch.testing.assert_close(found[..., 0], (times.square() - times[:, :1].square()) / 2)


def test_backward_in_time_and_from_another_start():
    start = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    times = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    there = trajectory(
        spiral, start, times, start=torch.zeros(1, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )
    back = trajectory(spiral, there[:, -1], torch.tensor([[1.0, 0.0]], dtype=torch.float64),
                      start=torch.full((1,), 2.0, dtype=torch.float64), rtol=1e-9, atol=1e-9)  # fmt: skip
    torch.testing.assert_close(back[:, 0], there[:, 0], atol=1e-7, rtol=0)
    torch.testing.assert_close(back[:, 1], start, atol=1e-7, rtol=0)


def test_gradients_are_those_of_torchdiffeq():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    ).double()
    start, times = (
        torch.randn(4, 5, dtype=torch.float64),
        torch.linspace(0, 2, 20, dtype=torch.float64),
    )
    gradients = []
    for paths in (
        trajectory(lambda y, t: net(y), start, times.expand(4, -1), rtol=1e-9, atol=1e-9),
        odeint(lambda t, y: net(y), start, times, rtol=1e-10, atol=1e-10).transpose(0, 1),
    ):
        net.zero_grad()
        paths.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


def test_the_gradient_passes_numerical_differences():
    start = torch.tensor([[1.0, 0.2], [0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[0.0, 0.3, 1.0]], dtype=torch.float64).expand(2, -1)
    assert torch.autograd.gradcheck(
        lambda y: trajectory(
            lambda x, t: torch.tanh(spiral(x, t)), y, times, method="rk4", steps=6
        ),
        start,
    )


def test_one_time_is_the_start():
    start = torch.randn(2, 2, dtype=torch.float64)
    found = trajectory(spiral, start, torch.zeros(2, 1, dtype=torch.float64))
    torch.testing.assert_close(found, start[:, None])


def test_a_blow_up_says_whose_when_and_where():
    """dy/dt = y² from y₀ is infinite at 1 / y₀."""
    start = torch.tensor([[0.1], [0.5], [0.01]], dtype=torch.float64)
    times = torch.tensor([[0.0, 3.0]], dtype=torch.float64).expand(3, -1)
    with pytest.raises(BlowUpError, match="series 1") as caught:
        trajectory(lambda y, t: y.square(), start, times)
    assert caught.value.row == 1
    assert 1.9 < caught.value.time < 2.0001
    assert np.isfinite(float(caught.value.state))
    assert float(caught.value.state) > 10


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4"])
@pytest.mark.parametrize("far", [2.0, 1e37, float("inf")])
def test_a_series_that_blows_up_fails_alone(method, far):
    """dx/dt = x² from x = 2 leaves the finite numbers at t = 0.5."""
    how = {"method": method, "steps": 200, "rtol": 1e-4, "atol": 1e-4, "alone": True}
    starts = torch.tensor([[-1.0], [far], [-0.3]])
    times = torch.linspace(0, 1, 11).expand(3, -1)
    found = trajectory(lambda y, _: y.square(), starts, times, **how)
    others = trajectory(lambda y, _: y.square(), starts[[0, 2]], times[[0, 2]], **how)
    torch.testing.assert_close(found[[0, 2]], others, rtol=0, atol=0)
    assert bool(found[1, 6:].isnan().all())
    if far == 2.0:
        torch.testing.assert_close(found[1, :5, 0], 1 / (0.5 - times[1, :5]), rtol=0.02, atol=0)
    none = trajectory(lambda y, _: y.square(), starts[1:2], times[1:2], **how)
    assert bool(none[0, 6:].isnan().all())


@pytest.mark.parametrize("bad", [[0.0, 2.0, 1.0], [0.0, float("nan"), 1.0]])
def test_times_that_turn_back_are_refused(bad):
    with pytest.raises(ConfigError, match="series 0"):
        trajectory(
            spiral, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([bad], dtype=torch.float64)
        )


def test_an_unknown_method_and_no_steps_are_refused():
    start, times = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ConfigError, match="dopri5"):
        trajectory(spiral, start, times, method="dopri")
    with pytest.raises(ConfigError, match="steps=0"):
        trajectory(spiral, start, times, method="rk4", steps=0)
    with pytest.raises(ConfigError, match="rtol=0"):
        trajectory(spiral, start, times, rtol=0)
