"""One state followed to an end: in equal steps, or in steps as long as a tolerance allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BlowUpError, ConfigError, FitError, near
from .tableaus import METHODS, Tableau
from .trajectory import trajectory

Field = Callable[[Float[Tensor, "*b z"], Float[Tensor, ""]], Float[Tensor, "*b z"]]


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    Attributes
    ----------
    y
        State at the end.
    evaluations
        Calls of the field.
    """

    y: Tensor
    evaluations: int


def solve(
    field: Field,
    y: Float[Tensor, "*b z"],
    start: float = 0.0,
    end: float = 1.0,
    *,
    method: str = "dopri5",
    steps: int = 20,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Solution:
    """Follow ``dy/dt = field(y, t)`` from `start` to `end`, which may lie before it.

    Parameters
    ----------
    field
        Velocity of a state at a time (a 0-dimensional tensor).
    y
        State at `start`.
    method
        ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"`` with equal steps; ``"dopri5"`` adapts them.
    steps
        Number of equal steps. Dopri5 ignores it.
    rtol, atol
        Error allowed per step of Dopri5, relative to the state and absolute: root mean square over
        all entries.

    Raises
    ------
    ConfigError
        If there is no such method, or a number makes no sense.
    FitError
        If the state is no longer finite, or Dopri5 needs more than 10,000 steps.

    Examples
    --------
    >>> solve(lambda y, t: -y, torch.ones(1), end=2.0).y
    tensor([0.1353])
    """
    if method not in METHODS:
        raise ConfigError(f"There is no solver {method!r}.{near(method, METHODS)}")
    chosen = METHODS[method]
    if chosen.error:
        if not (rtol > 0 and atol > 0):
            raise ConfigError(f"rtol={rtol}, atol={atol}: expected numbers above 0.")
        how = {"method": method, "rtol": rtol, "atol": atol}
        return _adaptive(field, y, start, end, how)
    if steps < 1:
        raise ConfigError(f"steps={steps}: expected a whole number of at least 1.")
    h = (end - start) / steps
    for i in range(steps):
        y = _step(chosen, field, y, start + i * h, h)
        _refuse_blow_up(y, start + (i + 1) * h)
    return Solution(y, steps * len(chosen.c))


def _step(method: Tableau, field: Field, y: Tensor, t: float, h: float) -> Tensor:
    """Return the state after a step of length `h`."""
    slopes: list[Tensor] = []
    for c, weights in zip(method.c, method.a, strict=True):
        at = y + h * _sum(weights, slopes) if weights else y
        slopes.append(field(at, torch.as_tensor(t + c * h, dtype=y.dtype, device=y.device)))
    return y + h * _sum(method.b, slopes)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [slope * w for w, slope in zip(weights, slopes, strict=False) if w]
    return reduce(torch.add, terms)


def _adaptive(field: Field, y: Tensor, start: float, end: float, how: dict[str, Any]) -> Solution:
    """Follow the whole state as one series, whose steps its error over all entries decides."""
    evaluations = 0

    def velocity(flat: Tensor, t: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return field(flat.view_as(y), t[0]).reshape(1, -1)

    times = torch.tensor([[start, end]], dtype=y.dtype, device=y.device)
    try:
        found = trajectory(velocity, y.reshape(1, -1), times, **how)
    except BlowUpError as error:
        raise FitError(
            f"The solver stands at t = {error.time:.4g} of {end:g}: the state is no longer finite, or steps "
            "became too short to count. Allow larger errors (rtol, atol), or take a method with fixed steps."
        ) from None
    return Solution(found[0, -1].view_as(y), evaluations)


def _refuse_blow_up(y: Tensor, t: float) -> None:
    if not bool(y.isfinite().all()):
        raise FitError(
            f"The state is no longer finite at t = {t:.4g}: take more steps, or less guidance."
        )
