"""How the runs of the laboratory are measured: what all tables of it share."""

from __future__ import annotations

from typing import Any

from chreode.identify import Setting, recover

from ..common import Row

SEEDS = (0, 1, 2, 3, 4)
#: Steps after which the loss rests, and the encoder's widths: the spiral needs the paper's.
BUDGETS: dict[str, dict[str, Any]] = {
    "identity": {"n_steps": 1200}, "linear": {"n_steps": 1200}, "mlp": {"n_steps": 2000},
    "patches": {"n_steps": 2500},
    "spiral": {"n_steps": 2500, "n_negatives": 255, "hidden": (128, 256, 256, 256, 128)},
}  # fmt: skip


def setting_of(case: Row) -> Setting:
    """Return the setting of a case: its budget, and what the case says."""
    options = {k: v for k, v in case.items() if k != "seed"}
    budget = dict(BUDGETS.get(case["mixing"], {}))
    if options.get("ratio", 0) > 0:
        budget.pop("n_negatives", None)  # an anchor's own support is small: 31, as for the others
    return Setting(**{**budget, **options})


def measured(case: Row) -> Row:
    """Run a case."""
    row, _ = recover(setting_of(case), case["seed"])
    return row
