"""Explicit Runge-Kutta methods on tensors: fixed steps, or steps as long as a tolerance allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, FitError, near

Field = Callable[[Float[Tensor, "*b z"], Float[Tensor, ""]], Float[Tensor, "*b z"]]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: stage i is taken at time `c[i]` from the slopes before it, weighted by `a[i]`.

    `error`: weights of the slopes whose sum is the difference to the embedded method of lower order.
    Where it is set the last stage is the first one of the next step. `dense`: for every stage the
    coefficients of θ, θ², … in its weight at a share θ of the step.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()
    dense: tuple[tuple[float, ...], ...] = ()


_DOPRI5_B = (35/384, 0.0, 500/1113, 125/192, -2187/6784, 11/84)  # fmt: skip
_TSIT5_B = (
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774,
)  # fmt: skip
METHODS = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1/6, 1/3, 1/3, 1/6)
    ),
    # Dormand & Prince (1980), table 2
    "dopri5": Tableau(
        5,
        (0.0, 1/5, 3/10, 4/5, 8/9, 1.0, 1.0),
        (
            (),
            (1/5,),
            (3/40, 9/40),
            (44/45, -56/15, 32/9),
            (19372/6561, -25360/2187, 64448/6561, -212/729),
            (9017/3168, -355/33, 46732/5247, 49/176, -5103/18656),
            _DOPRI5_B,
        ),
        (*_DOPRI5_B, 0.0),
        (71/57600, 0.0, -71/16695, 71/1920, -17253/339200, 22/525, -1/40),
        (  # Shampine (1986), of order 4
            (1.0, -8048581381/2820520608, 8663915743/2820520608, -12715105075/11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200/32700410799, -68118460800/10900136933, 87487479700/32700410799),
            (0.0, -1754552775/470086768, 14199869525/1410260304, -10690763975/1880347072),
            (0.0, 127303824393/49829197408, -318862633887/49829197408, 701980252875/199316789632),
            (0.0, -282668133/205662961, 2019193451/616988883, -1453857185/822651844),
            (0.0, 40617522/29380423, -110615467/29380423, 69997945/29380423),
        ),
    ),
    # Tsitouras (2011), table 1 and equation 6
    "tsit5": Tableau(
        5,
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
                -0.028269050394068383,
            ),
            _TSIT5_B,
        ),
        (*_TSIT5_B, 0.0),
        (
            -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
            0.5823571654525552, -0.45808210592918697, 1/66,
        ),
        (
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.13169999999999998, -0.2234, 0.1017),
            (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
    ),
}  # fmt: skip
"""Methods by name; those with an estimate of their error choose their steps."""


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
        return _adaptive(chosen, field, y, start, end, rtol, atol)
    if steps < 1:
        raise ConfigError(f"steps={steps}: expected a whole number of at least 1.")
    h = (end - start) / steps
    for i in range(steps):
        y = _step(chosen, field, y, start + i * h, h)[0]
        _refuse_blow_up(y, start + (i + 1) * h)
    return Solution(y, steps * len(chosen.c))


def _step(
    method: Tableau, field: Field, y: Tensor, t: float, h: float, first: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the state after a step of length `h`, and the slope of every stage."""
    slopes: list[Tensor] = []
    for c, weights in zip(method.c, method.a, strict=True):
        if not slopes and first is not None:
            slopes.append(first)
            continue
        at = y + h * _sum(weights, slopes) if weights else y
        slopes.append(field(at, torch.as_tensor(t + c * h, dtype=y.dtype, device=y.device)))
    return y + h * _sum(method.b, slopes), slopes


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [slope * w for w, slope in zip(weights, slopes, strict=False) if w]
    return reduce(torch.add, terms)


def _adaptive(
    method: Tableau, field: Field, y: Tensor, start: float, end: float, rtol: float, atol: float
) -> Solution:
    """Lengthen or shorten steps by the local error (Hairer, Nørsett & Wanner 1993, II.4)."""
    slope = field(y, torch.as_tensor(start, dtype=y.dtype, device=y.device))
    t, h, evaluations = start, _first_step(field, y, slope, start, end, method.order, rtol, atol), 2
    for _ in range(_MOST_STEPS):
        if t == end:
            return Solution(y, evaluations)
        last = abs(h) >= abs(end - t) * (1 - 1e-12)
        h = end - t if last else h
        new, slopes = _step(method, field, y, t, h, slope)
        evaluations += len(slopes) - 1
        allowed = atol + rtol * torch.maximum(y.abs(), new.abs())
        error = float((h * _sum(method.error, slopes) / allowed).detach().square().mean().sqrt())
        if error <= 1:
            _refuse_blow_up(new, t + h)
            t, y, slope = (end if last else t + h), new, slopes[-1]
        elif error != error:  # NaN: half the step until the field is finite again
            error = float("inf")
        h *= float(grown(torch.tensor(error), method.order))
        if t + h == t and t != end:
            break
    raise FitError(
        f"The solver took {_MOST_STEPS:,} steps, or steps too short to count, and stands at t = {t:.4g} of "
        f"{end:g}. Allow larger errors (rtol, atol), or take a method with fixed steps."
    )


def grown(error: Float[Tensor, "*s"], order: int) -> Float[Tensor, "*s"]:
    """Return by what a step of this error, as a share of the allowed one, should be longer."""
    return (_SAFETY * error ** (-1 / order)).clamp(_SHRINK, _GROW)


def _first_step(
    field: Field,
    y: Tensor,
    slope: Tensor,
    start: float,
    end: float,
    order: int,
    rtol: float,
    atol: float,
) -> float:
    """Return a step that an explicit Euler step would make well (Hairer et al. 1993, II.4, p. 169)."""

    def size(value: Tensor) -> float:
        return float((value / (atol + rtol * y.abs())).detach().square().mean().sqrt())

    direction = 1.0 if end >= start else -1.0
    state, change = size(y), size(slope)
    h = 1e-6 if min(state, change) < 1e-5 else 0.01 * state / change
    h = min(h, abs(end - start))
    time = torch.as_tensor(start + direction * h, dtype=y.dtype, device=y.device)
    bend = size(field(y + direction * h * slope, time) - slope) / max(h, 1e-30)
    largest = max(change, bend)
    longer = max(1e-6, h * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1 / order)
    return direction * min(100 * h, longer, abs(end - start))


def _refuse_blow_up(y: Tensor, t: float) -> None:
    if not bool(y.isfinite().all()):
        raise FitError(
            f"The state is no longer finite at t = {t:.4g}: take more steps, or less guidance."
        )
