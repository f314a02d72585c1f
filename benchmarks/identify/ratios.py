"""The sweep over the constraint ratio, with both samplers, on two mixings."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from chreode.identify.studies import SAMPLERS

from ..common import Row
from ..tables import shown
from .runs import SEEDS, answered, measured, study_of

MIXINGS = ("identity", "mlp")
FIGURE = "ratio.svg"
PICTURE = "R² over the share of negatives from the anchor's own support"


def cases() -> list[Row]:
    """Return the cases between those of `sphere`, which has the ratios 0 and 1."""
    return [
        {"mixing": mixing, "n_fixed": 1, "sampler": sampler, "ratio": ratio, "seed": seed}
        for seed in SEEDS
        for mixing, sampler, ratio in product(MIXINGS, SAMPLERS, (0.1, 0.3, 0.5, 0.9))
    ]


def measure(case: Row, _data: Path, _kept: Path) -> Row:
    return measured(case)


def swept(rows: list[Row]) -> list[Row]:
    """Return the rows with those of `sphere`, in the order of their ratios."""
    ends = [
        row for row in shown("identify", "sphere")[0]
        if (case := row["case"])["mixing"] in MIXINGS and case["encoder"] == "mlp" and case["n_fixed"]
    ]  # fmt: skip
    found = [{**row, "case": {**row["case"], "encoder": "mlp"}} for row in [*ends, *rows]]

    def place(row: Row) -> tuple[int, int, float]:
        case = row["case"]
        at = MIXINGS.index(case["mixing"]), SAMPLERS.index(case["sampler"])
        return *at, case["ratio"]

    return sorted(found, key=place)


def render(rows: list[Row]) -> list[str]:
    return [*answered(swept(rows), "ratio"), f"![{PICTURE}](figures/{FIGURE})"]


def draw(rows: list[Row], path: Path) -> None:
    """Draw R² over the ratio."""
    import matplotlib as mpl

    from chreode.plot import recovery_over_ratio

    figure = recovery_over_ratio(study_of(swept(rows), "ratio").rows).figure
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "ratio"}):  # the same rows, the same file
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
