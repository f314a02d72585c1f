"""Whole paths of many series at once: each with its own times, its own steps, and gradients through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BlowUpError, ConfigError, near
from .tableaus import METHODS, Tableau

Field = Callable[[Float[Tensor, "s z"], Float[Tensor, " s"]], Float[Tensor, "s z"]]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_MOST_STEPS = 10_000


def trajectory(
    velocity: Field,
    y: Float[Tensor, "s z"],
    times: Float[Tensor, "s t"],
    *,
    start: Float[Tensor, " s"] | None = None,
    method: str = "dopri5",
    steps: int = 20,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    alone: bool = False,
) -> Float[Tensor, "s t z"]:
    """Follow ``dy/dt = velocity(y, t)`` for several series, each from its own start through its own times.

    Steps are as long as each series allows, whatever the others do; states at `times` come from the
    interpolant of the method, so that many times cost no more steps than few. Gradients are those of
    the steps taken (backpropagation; the lengths of steps are constants).

    Parameters
    ----------
    velocity
        Slope of every series' state at its own time.
    y
        States at `start`.
    times
        When to report, rising or falling along each row. Repeat the last one where a series has fewer.
    start
        Time of `y` (default: the first of `times`).
    method
        ``"dopri5"`` or ``"tsit5"`` choose their steps; ``"rk4"`` takes `steps` equal ones per series.
    rtol, atol
        Error allowed per step, relative to the state and absolute: root mean square of a series.
    alone
        A series that blows up fails alone: its states are NaN from then on, those of the others what they
        are without it. By default none is answered.

    Raises
    ------
    ConfigError
        If there is no such method, or times do not rise or fall along a row.
    BlowUpError
        If a state is no longer finite, or steps become too short to count, and not `alone`: says of which
        series, when, and where it stood.

    References
    ----------
    Hairer, Nørsett and Wanner (1993), Solving Ordinary Differential Equations I, II.4 to II.6.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no solver {method!r}.{near(method, METHODS)}")
    tableau = METHODS[method] if METHODS[method].dense else _closed(METHODS[method])
    start = times[:, 0] if start is None else start
    _refuse_unsorted(torch.cat([start[:, None], times], 1))
    path = _Path(tableau, alone)
    with torch.no_grad():
        end = times[:, -1].clone()
    if tableau.error:
        _adaptive(path, velocity, y, start, end, rtol, atol)
    else:
        _even(path, velocity, y, start, end, steps)
    return path.at(times, start, y)


@dataclass
class _Path:
    """The steps taken: where each ended, how long it was, its slopes; and which series were lost."""

    tableau: Tableau
    alone: bool = False
    lost: dict[int, float] = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    slopes: list[Sequence[Tensor]] = field(default_factory=list)

    def add(self, t: Tensor, h: Tensor, y: Tensor, slopes: Sequence[Tensor]) -> None:
        """Record a step of length h (0: none) that ended at t."""
        self.ends.append(t)
        self.lengths.append(h)
        self.states.append(y)
        self.slopes.append(slopes)

    def lose(self, gone: Tensor, t: Tensor, y: Tensor) -> None:
        """Go on without some series."""
        row = int(gone.nonzero()[0])
        if not self.alone:
            raise BlowUpError(row, float(t[row]), y[row].detach())
        self.lost |= {row: float(t[row]) for row in gone.nonzero()[:, 0].tolist()}

    def at(self, times: Tensor, start: Tensor, first: Tensor) -> Float[Tensor, "s t z"]:
        """Return the states at `times`: one product of matrices for all steps, stages and times."""
        found = self._read(times, start, first) if self.ends else first[:, None]
        found = found.expand(-1, times.shape[1], -1)
        for row, when in self.lost.items():
            after = (times[row] - start[row]).abs() > abs(when - float(start[row]))
            found = found.index_put((torch.tensor(row), after), found.new_tensor(torch.nan))
        return found

    def _read(self, times: Tensor, start: Tensor, first: Tensor) -> Float[Tensor, "s t z"]:
        with torch.no_grad():
            direction = torch.where(self.ends[-1] >= start, 1.0, -1.0)[:, None]
            ends, h = torch.stack(self.ends, 1), torch.stack(self.lengths, 1)
            # the first step that ends no sooner; where none was needed, the first
            step = torch.searchsorted(
                (ends * direction).contiguous(), (times * direction).contiguous()
            )
            step = step.clamp(max=ends.shape[1] - 1)
            length = h.gather(1, step)
            begun = ends.gather(1, step) - length
            share = ((times - begun) / length.where(length != 0, torch.ones_like(length))).clamp(
                0, 1
            )
            dense = torch.tensor(self.tableau.dense, dtype=first.dtype, device=first.device)
            powers = share[..., None] ** torch.arange(1, dense.shape[1] + 1, device=first.device)
            weight = (powers @ dense.T) * length[..., None]  # s t stages
            weight = torch.cat([torch.ones_like(weight[..., :1]), weight], -1)
            s, t, k = weight.shape
            spread = weight.new_zeros(s, t, ends.shape[1], k)
            spread.scatter_(2, step[..., None, None].expand(-1, -1, 1, k), weight[:, :, None])
        rows = [r for y, slopes in zip(self.states, self.slopes, strict=True) for r in (y, *slopes)]
        return torch.bmm(spread.flatten(2), torch.stack(rows, 1))


def _closed(method: Tableau) -> Tableau:
    """Add a stage at the end of the step, for a cubic interpolant (Hermite's) between slopes."""
    bulk = [(0.0, 3 * b, -2 * b) for b in method.b]
    first = tuple(map(add, bulk[0], (1.0, -2.0, 1.0)))
    return Tableau(
        method.order, (*method.c, 1.0), (*method.a, method.b), (*method.b, 0.0),
        dense=(first, *bulk[1:], (0.0, -1.0, 1.0)),
    )  # fmt: skip


class _Combine(torch.autograd.Function):
    """y + h Σ a_i k_i, as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, a: tuple[float, ...], *slopes: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        ctx.a = a
        out = slopes[0] * a[0]
        for weight, slope in zip(a[1:], slopes[1:], strict=True):
            if weight:
                out.add_(slope, alpha=weight)
        return out.mul_(h).add_(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (h,) = ctx.saved_tensors
        scaled = gradient * h
        return gradient, None, None, *(scaled * weight if weight else None for weight in ctx.a)


def _step(
    tableau: Tableau, velocity: Field, y: Tensor, t: Tensor, h: Tensor, first: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the state after a step of each series, and the slope of every stage."""
    slopes, at, h_ = [first], y, h[:, None]
    for c, weights in zip(tableau.c[1:], tableau.a[1:], strict=True):
        at = _Combine.apply(y, h_, weights, *slopes)  # type: ignore[no-untyped-call]  # torch's own
        slopes.append(velocity(at, t + c * h))
    return at, slopes  # the last stage stands at the end of the step


def _even(path: _Path, velocity: Field, y: Tensor, start: Tensor, end: Tensor, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps={steps}: expected a whole number of at least 1.")
    h = (end - start) / steps
    slope = velocity(y, start)
    for i in range(steps):
        t = start + i * h
        new, slopes = _step(path.tableau, velocity, y, t, h, slope)
        gone = ~new.isfinite().all(1)
        if bool(gone.any()):
            path.lose(gone, t, y)
            new, *slopes = (k.where(~gone[:, None], torch.zeros_like(k)) for k in (new, *slopes))
        path.add(start + (i + 1) * h, h, y, slopes)
        y, slope = new, slopes[-1]


def _adaptive(
    path: _Path, velocity: Field, y: Tensor, start: Tensor, end: Tensor, rtol: float, atol: float
) -> None:
    if not (rtol > 0 and atol > 0):
        raise ConfigError(f"rtol={rtol}, atol={atol}: expected numbers above 0.")
    tableau, t = path.tableau, start
    slope = velocity(y, start)
    h = _first_step(velocity, y, slope, start, end, tableau.order, rtol, atol)
    for _ in range(_MOST_STEPS):
        if bool((t == end).all()):
            return
        left = end - t
        last = h.abs() >= left.abs() * (1 - 1e-6)
        h = torch.where(last, left, h)
        new, slopes = _step(tableau, velocity, y, t, h, slope)
        with torch.no_grad():
            off = torch.stack([w * k for w, k in zip(tableau.error, slopes, strict=True) if w]).sum(
                0
            )
            allowed = atol + rtol * torch.maximum(y.abs(), new.abs())
            error = (h[:, None] * off / allowed).square().mean(1).sqrt()
            # NaN: shorter steps until the slope is finite again
            error = error.nan_to_num(torch.inf, posinf=torch.inf)
            # all try again, so that no gradient passes what is not finite
            taken = (error <= 1) & bool(error.isfinite().all())
            reached = torch.where(taken, torch.where(last, end, t + h), t)
            stuck = (reached == t) & (t != end) & (h.abs() <= 1e-7 * (end - start).abs())
            # those that another one made wait try the same step again
            longer = torch.where(taken | (error > 1), h * grown(error, tableau.order), h)
        if bool(taken.any()):
            path.add(reached, torch.where(taken, h, 0.0), y, slopes)
            y = torch.where(taken[:, None], new, y)
            slope = torch.where(taken[:, None], slopes[-1], slope)
        if bool(stuck.any()):
            path.lose(stuck, t, y)
            reached = torch.where(stuck, end, reached)
            y, slope = (k.where(~stuck[:, None], torch.zeros_like(k)) for k in (y, slope))
        t, h = reached, longer
    path.lose(t != end, t, y)


def grown(error: Float[Tensor, "*s"], order: int) -> Float[Tensor, "*s"]:
    """Return by what a step of this error, as a share of the allowed one, should be longer."""
    return (_SAFETY * error ** (-1 / order)).clamp(_SHRINK, _GROW)


def _first_step(
    velocity: Field,
    y: Tensor,
    slope: Tensor,
    start: Tensor,
    end: Tensor,
    order: int,
    rtol: float,
    atol: float,
) -> Tensor:
    """Return the steps that explicit Euler would make well (Hairer et al. 1993, II.4, p. 169)."""
    with torch.no_grad():
        scale = atol + rtol * y.abs()

        def size(value: Tensor) -> Tensor:
            return (value / scale).square().mean(1).sqrt()

        way = end - start
        state, change = size(y), size(slope)
        h = torch.where((state < 1e-5) | (change < 1e-5), 1e-6, 0.01 * state / change)
        h = torch.minimum(h, way.abs()) * way.sign()
        bend = size(velocity(y + h[:, None] * slope, start + h) - slope) / h.abs().clamp(min=1e-30)
        largest = torch.maximum(change, bend)
        longer = torch.where(
            largest <= 1e-15, (h.abs() * 1e-3).clamp(min=1e-6), (0.01 / largest) ** (1 / order)
        )
        h = torch.minimum(torch.minimum(100 * h.abs(), longer), way.abs()) * way.sign()
        return h.nan_to_num(0.0)  # where the slope itself is not finite there is no step


def _refuse_unsorted(times: Float[Tensor, "s t"]) -> None:
    steps = times.diff(dim=1)
    bad = ((steps > 0).any(1) & (steps < 0).any(1)) | ~times.isfinite().all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ConfigError(
            f"times of series {row}: expected finite ones that rise, or fall, all the way."
        )
