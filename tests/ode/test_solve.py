"""Solvers against exact solutions, against their orders, and against torchdiffeq."""

from __future__ import annotations

import math

import pytest
import torch
from torchdiffeq import odeint

from chreode.errors import ConfigError, FitError
from chreode.ode import METHODS, solve

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
Y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)


def spiral(y, t):
    """Turn at a speed that grows with time: y(t) = R(t²/2) y₀."""
    return t * torch.stack([-y[:, 1], y[:, 0]], 1)


def turned(y, angle):
    c, s = math.cos(angle), math.sin(angle)
    return y @ torch.tensor([[c, s], [-s, c]], dtype=y.dtype)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_errors_fall_as_the_order_says(method, order):
    errors = [
        float((solve(spiral, Y0, 0.2, 1.7, method=method, steps=n).y - exact()).norm())
        for n in (40, 80)
    ]
    assert errors[0] > 0
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def exact():
    return turned(Y0, (1.7**2 - 0.2**2) / 2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dopri5_keeps_its_tolerance(tolerance):
    found = solve(spiral, Y0, 0.2, 1.7, rtol=tolerance, atol=tolerance)
    assert float((found.y - exact()).abs().max()) < 20 * tolerance


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back_again(method):
    there = solve(spiral, Y0, 0.0, 1.0, method=method, steps=200, rtol=1e-8, atol=1e-8).y
    back = solve(spiral, there, 1.0, 0.0, method=method, steps=200, rtol=1e-8, atol=1e-8).y
    torch.testing.assert_close(back, Y0, rtol=0, atol=2e-2 if method == "euler" else 1e-4)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_fixed_steps_are_those_of_torchdiffeq(method):
    theirs = odeint(
        lambda t, y: spiral(y, t), Y0, torch.tensor([0.0, 1.0], dtype=torch.float64),
        method=method, options={"step_size": 0.1},
    )[-1]  # fmt: skip
    ours = solve(spiral, Y0, method=method, steps=10).y
    # its rk4 is the 3/8 rule, of the same order
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if method == "rk4" else 1e-12)


def test_dopri5_takes_the_steps_of_torchdiffeq():
    calls = []

    def counted(t, y):
        calls.append(float(t))
        return spiral(y, t)

    span = torch.tensor([0.0, 3.0], dtype=torch.float64)
    theirs = odeint(counted, Y0, span, method="dopri5", rtol=1e-6, atol=1e-6)[-1]
    ours = solve(spiral, Y0, 0.0, 3.0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.y, theirs, rtol=0, atol=1e-5)
    assert ours.evaluations == pytest.approx(len(calls), rel=0.25)


def test_evaluations_are_counted():
    calls = []

    def field(y, t):
        calls.append(t)
        return -y

    for method in METHODS:
        calls.clear()
        assert solve(field, Y0, method=method, steps=3).evaluations == len(calls)


def test_gradients_flow_through_a_solve():
    y = Y0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(lambda y, t: -y, y, rtol=1e-8, atol=1e-8).y.sum(), y)
    torch.testing.assert_close(gradient, torch.full_like(Y0, math.exp(-1)), rtol=1e-6, atol=0)


def test_a_solution_that_leaves_the_numbers_is_refused():
    with pytest.raises(FitError, match="no longer finite at t"):
        solve(lambda y, t: y**3 * 1e30, torch.full((1, 1), 10.0), method="euler", steps=8)
    with pytest.raises(FitError, match="stands at t = 0.5"):
        solve(lambda y, t: y**2, torch.full((1, 1), 2.0, dtype=torch.float64))  # a pole at ½


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "rk5"}, "rk4"),
        ({"method": "euler", "steps": 0}, "at least 1"),
        ({"rtol": 0.0}, "above 0"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        solve(spiral, Y0, **options)
