"""How the runs of the laboratory are measured and shown: what all tables of it share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from chreode.identify import Setting, Study, recover
from chreode.identify.study import row_of

from ..common import Row, folded
from ..speed.ratios import markdown

SEEDS = (0, 1, 2, 3, 4)
#: Steps after which the loss rests, and wider encoders for mixings that are hard to undo.
BUDGETS: dict[str, dict[str, Any]] = {
    "identity": {"n_steps": 1200}, "linear": {"n_steps": 1200}, "mlp": {"n_steps": 2000},
    "patches": {
        "n_steps": 4000, "n_negatives": 63, "hidden": (128, 256, 256, 128), "lr": 3e-3,
    },
    "spiral": {"n_steps": 2500, "n_negatives": 255, "hidden": (128, 256, 256, 256, 128)},
}  # fmt: skip


#: Steps at the most if a coordinate is fixed: these losses rest earlier than R² of patches does.
VIOLATED_STEPS = 2500


def setting_of(case: Row) -> Setting:
    """Return the setting of a case: the budget of its mixing, and what the case says."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items() if k != "seed"}
    budget = dict(BUDGETS[case["mixing"]]) if case.get("n_latent", 3) == 3 else {}
    if case.get("n_fixed") and budget:
        budget["n_steps"] = min(budget["n_steps"], VIOLATED_STEPS)
    if options.get("ratio", 0) > 0:
        budget.pop("n_negatives", None)  # as many from its own support for every mixing
    return Setting(**{**budget, **options})


def measured(case: Row) -> Row:
    """Run a case."""
    row, _ = recover(setting_of(case), case["seed"])
    return row


def study_of(rows: Sequence[Row], kind: str) -> Study:
    """Return rows of a table as what the package's own studies return."""
    found = [
        {**row_of(setting_of(row["case"]), row["case"]["seed"], row), "failed": ""} for row in rows
    ]
    return Study(kind, pd.DataFrame(found), {})


def answered(rows: Sequence[Row], kind: str) -> list[str]:
    """Return what a study of these rows answers, and its tables."""
    if not rows:
        return []
    return [*(f"- {text}" for text in study_of(rows, kind).answer()), "", *tabulated(rows), ""]


def tabulated(rows: Sequence[Row]) -> list[str]:
    """Return a table of R² beside the paper's, and folded, all else that was measured."""
    study = study_of(rows, "diversity")
    table, axes = study.table(), study.axes()
    header = (
        "run",
        "R² (95 % interval)",
        "lowest, highest seed",
        "worst axis",
        "untrained",
        "paper",
    )
    short = [
        (
            name, f"{row['r2']:.3f}{_interval(row['low'], row['high'])}",
            f"{row['lowest']:.3f}, {row['highest']:.3f}", _number(row["worst"]),
            _number(row["r2_untrained"], 2), _number(row["published"], 2),
        )
        for name, row in table.iterrows()
    ]  # fmt: skip
    keys = {
        "r2_kernel": "R² by kernel regression",
        "mcc": "MCC", "angle": "angle error (0 to 2)", "orthogonal": "distance to orthogonal",
        "alignment": "alignment", "uniformity": "uniformity", "loss": "loss",
        "excess": "above the identity's", "closed": "identity's, closed form",
    }  # fmt: skip
    long = [(name, *(_number(row[key]) for key in keys)) for name, row in table.iterrows()]
    by_axis = [(name, *map(_number, row)) for name, row in axes.iterrows()]
    return [
        *markdown(header, short), "",
        *folded("Other metrics, means over seeds", markdown(("run", *keys.values()), long)), "",
        *folded("R² by axis, means over seeds", markdown(("run", *axes.columns), by_axis)),
    ]  # fmt: skip


def _interval(low: float, high: float) -> str:
    return f" ({low:z.3f} to {high:z.3f})" if low == low else ""


def _number(value: float, places: int = 3) -> str:
    return f"{value:z.{places}f}" if value == value else "–"
