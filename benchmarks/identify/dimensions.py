"""Fixed coordinates of S⁹, none to all ten, with InfoNCE and the published sampler."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from ..common import Row
from .runs import measured, tabulated

SEEDS = (0, 1, 2)


def cases() -> list[Row]:
    return [
        {
            "mixing": mixing, "n_latent": 10, "n_fixed": n, "sampler": "published",
            "hidden": [256, 256], "n_steps": 1500, "n_negatives": 255, "seed": seed,
        }
        for seed in SEEDS
        for n, mixing in product(range(11), ("linear", "monomials"))
    ]  # fmt: skip


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    return measured(case)


def render(rows: list[Row]) -> list[str]:
    return tabulated(rows)
