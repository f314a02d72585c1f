"""The sweep over the constraint ratio, with both samplers, on two mixings."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from chreode.identify.studies import SAMPLERS

from ..common import Row
from .runs import SEEDS, measured, tabulated


def cases() -> list[Row]:
    """Return the cases between those of `sphere`, which has the ratios 0 and 1."""
    return [
        {"mixing": mixing, "n_fixed": 1, "sampler": sampler, "ratio": ratio, "seed": seed}
        for seed in SEEDS
        for mixing, sampler, ratio in product(("identity", "mlp"), SAMPLERS, (0.1, 0.3, 0.5, 0.9))
    ]


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    return measured(case)


def render(rows: list[Row]) -> list[str]:
    return tabulated(rows)
