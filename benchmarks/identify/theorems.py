"""The theorems: losses of maps that rescale v, in closed form and sampled, of u → |u| and of turned v."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from chreode.compute.rng import Rng
from chreode.identify import Setting
from chreode.identify.mixings import turned
from chreode.identify.recovery import N_NEGATIVES, final_losses
from chreode.identify.spaces import Sphere
from chreode.identify.studies import SAMPLERS
from chreode.losses.optima import rescaled
from chreode.losses.sphere import uniformity
from chreode.metrics.recovery import axis_r2

from ..common import Row
from ..speed.ratios import markdown

FACTORS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, math.inf)
EVEN = -4 + math.log(math.sinh(4) / 4)


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """Return h(u, v) = (u, λv) / ‖(u, λv)‖ with one fixed coordinate."""
    keeps, grows = (1.0, factor) if math.isfinite(factor) else (0.0, 1.0)
    return lambda z: F.normalize(torch.cat([keeps * z[:, :1], grows * z[:, 1:]], 1), dim=1)


def folded_up(z: Tensor) -> Tensor:
    return torch.cat([z[:, :1].abs(), z[:, 1:]], 1)


def twisted(z: Tensor) -> Tensor:
    """Turn v by an angle that depends on u: half a turn from pole to pole."""
    return turned(z[:, [1, 2, 0]], math.pi / 2 * z[:, 0])[:, [2, 0, 1]]


def cases() -> list[Row]:
    return [
        {"sampler": sampler, "ratio": ratio} for ratio, sampler in product((0.0, 1.0), SAMPLERS)
    ]


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    setting = Setting(n_fixed=1, **case)
    maps = [scaled(factor) for factor in FACTORS]
    with Rng(0).scope("loss"):
        *sampled, of_fold, of_twist = final_losses(setting, [*maps, folded_up, twisted])
    with Rng(0).scope("test"):
        z = Sphere(3).draw(20_000)
    truth = z.double().numpy()
    closed = [
        rescaled(
            factor, setting.kappa, 3, 1, N_NEGATIVES,
            sampler=setting.sampler, corrected=setting.ratio == 1,
        )
        for factor in FACTORS
    ]  # fmt: skip
    return {
        "sampled": sampled, "closed": closed, "fold": of_fold - sampled[FACTORS.index(1.0)],
        "twist": of_twist - sampled[FACTORS.index(1.0)],
        "fold_r2": axis_r2(truth, folded_up(z).double().numpy()).tolist(),
        "twist_r2": axis_r2(truth, twisted(z).double().numpy()).tolist(),
        "uniformity": float(uniformity(z[:10_000])),
    }  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return the loss of each map above that of the identity."""
    one = FACTORS.index(1.0)
    header = ("map", *(_name(row["case"]) for row in rows))
    lines = [
        (
            f"λ = {factor:g}" if math.isfinite(factor) else "v alone (λ = ∞)",
            *(
                f"{row['closed'][i] - row['closed'][one]:+.4f} "
                f"({row['sampled'][i] - row['sampled'][one]:+.4f})"
                for row in rows
            ),
        )
        for i, factor in enumerate(FACTORS)
    ]
    lines.append(("u → \\|u\\|", *(f"({row['fold']:+.4f})" for row in rows)))
    lines.append(("v turned by πu/2", *(f"({row['twist']:+.4f})" for row in rows)))
    of_fold, of_twist = (
        ", ".join(f"{value:z.2f}" for value in rows[0][key]) for key in ("fold_r2", "twist_r2")
    )
    return [
        *markdown(header, lines), "",
        f"R² by axis of u → |u|: {of_fold}; of the turned v: {of_twist}. Uniformity of 10,000 even points: "
        f"{rows[0]['uniformity']:.3f}; in closed form it is {EVEN:.3f}.",
    ]  # fmt: skip


def _name(case: Row) -> str:
    return f"{'corrected' if case['ratio'] else 'InfoNCE'}, {case['sampler']}"
