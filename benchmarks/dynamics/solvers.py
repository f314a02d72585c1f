"""Forward and backward through adaptive solves with many outputs, beside torchdiffeq in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chreode.ode import trajectory

from ..common import Row, machine
from ..speed.ratios import markdown, ratio

LAPS, OUTPUTS, DIMENSIONS, TOLERANCE = 40, 100, 50, 1e-4
#: Series, and whether each has times of its own, which takes torchdiffeq a solve for each.
CASES = {"16 series, the same times": (16, False), "3 series, times of their own": (3, True)}


def cases() -> list[Row]:
    return [{"case": name} for name in CASES]


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (simulated)
    from torchdiffeq import odeint

    n, ragged = CASES[case["case"]]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(DIMENSIONS, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, DIMENSIONS)
    )  # fmt: skip
    start = torch.randn(n, DIMENSIONS)
    times = torch.linspace(0, 1, OUTPUTS).expand(n, -1)
    if ragged:
        times = torch.cat([torch.zeros(n, 1), torch.rand(n, OUTPUTS - 1).sort(1).values], 1)

    def theirs(tolerance: float = TOLERANCE) -> Tensor:
        how = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
        groups = start.split(1 if ragged else n)
        of_each = [
            odeint(lambda _, y: net(y), y, t, **how)
            for y, t in zip(groups, times[:: 1 if ragged else n], strict=True)
        ]
        return torch.cat(of_each, 1).transpose(0, 1)

    def ours(tolerance: float) -> Tensor:
        return trajectory(lambda y, _: net(y), start, times, rtol=tolerance, atol=tolerance)

    exact = theirs(1e-9).detach()
    allowed = float((theirs() - exact).abs().max())
    # the largest tolerance under which ours is no less accurate
    tolerance = next(
        t
        for t in TOLERANCE * 2.0 ** -np.arange(20)
        if float((ours(t) - exact).abs().max()) <= allowed
    )
    laps: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(LAPS):
        for name, solve in (("theirs", theirs), ("ours", lambda: ours(tolerance))):
            laps[name].append(_timed(solve))
    return {
        "laps": laps, "errors": [allowed, float((ours(tolerance) - exact).abs().max())],
        "tolerances": [TOLERANCE, float(tolerance)], "machine": machine(),
    }  # fmt: skip


def _timed(solve: Callable[[], Tensor]) -> float:
    begun = time.perf_counter()
    solve().square().mean().backward()
    return time.perf_counter() - begun


def render(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        theirs, ours = row["laps"]["theirs"], row["laps"]["ours"]
        lines.append((
            row["case"]["case"], f"{1e3 * np.median(theirs):.1f}", f"{1e3 * np.median(ours):.1f}",
            str(ratio(theirs, ours)), *(f"{e:.1e}" for e in row["errors"]),
        ))  # fmt: skip
    header = (
        "",
        "torchdiffeq, ms",
        "chreode, ms",
        "times as fast",
        "error, torchdiffeq",
        "error, chreode",
    )
    return markdown(header, lines)
