"""Table 1 of the paper with both samplers: what is recovered of S² if positives reach all of it or not."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from chreode.identify.studies import ALL, SAMPLERS

from ..common import Row
from .runs import SEEDS, answered, measured

VIOLATED: list[dict[str, Any]] = [
    {"n_fixed": 1, "sampler": sampler, "ratio": ratio}
    for sampler, ratio in product(SAMPLERS, (0.0, 1.0))
]


def cases() -> list[Row]:
    """Return the cases, those of the first seed first."""
    hows = [{"n_fixed": 0}, *VIOLATED]
    return [
        {"mixing": mixing, "encoder": encoder, **how, "seed": seed}
        for seed in SEEDS
        for encoder in ("mlp", "inverse")
        for mixing, how in product(ALL, hows)
        if encoder == "mlp" or mixing != "mlp"  # which has no inverse encoder
    ]


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    return measured(case)


def render(rows: list[Row]) -> list[str]:
    """Return what the network recovers, and what the inverse encoder does beside it."""
    of_network = [row for row in rows if row["case"]["encoder"] == "mlp"]
    both = [row for row in rows if row["case"]["mixing"] != "mlp"]
    return [
        *answered(of_network, "diversity"),
        "**A network beside an encoder made like the inverse of the mixing.**", "",
        *answered(both, "encoders"),
    ]  # fmt: skip
