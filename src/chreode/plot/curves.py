"""Has learning come to rest? The numbers of every epoch."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..config.arguments import checked
from ..errors import DataError
from ..text import picture
from ..verbs.state import FittedState
from .style import PALETTE, bare, panels, picture_of, require_columns

_COLOURS = {"train": PALETTE[0], "validation": PALETTE[5]}


@checked
def history(fitted: FittedState | pd.DataFrame) -> Figure:
    """Draw what was logged over the epochs: a row per phase, a panel per quantity.

    Parameters
    ----------
    fitted
        A fitted model, or its `history`: one row per epoch, with columns ``train_…`` and
        ``validation_…``. A dot marks the epoch of the lowest validation objective, but not of a model
        whose target moves, as its objectives cannot be compared.

    Raises
    ------
    DataError
        If nothing was logged, as in a fit in closed form.
    SchemaError
        If the table is no history.

    Examples
    --------
    >>> log = pd.DataFrame({"epoch": [0, 1, 2], "train_objective": [3.0, 2.0, 1.5]})
    >>> history(log).axes[0].get_title()
    'objective'
    """
    comparable = not isinstance(fitted, FittedState) or fitted.model.comparable
    table = fitted.history if isinstance(fitted, FittedState) else fitted
    phases = table.groupby("phase", sort=False) if "phase" in table else [("fit", table)]
    require_columns(table, ["epoch"], "the history of a fit")
    rows = {str(name): (rows, logged) for name, rows in phases if (logged := _logged(rows))}
    if not rows:
        raise DataError(
            "The history holds no training curve: the fit was in closed form, or of no epoch at all."
        )
    wide = max(len(logged) for _, logged in rows.values())
    figure = picture_of(3.2 * wide, 2.4 * len(rows))
    grid = panels(figure, len(rows), wide)
    for line, (phase, (epochs, logged)) in zip(grid, rows.items(), strict=True):
        for ax, quantity in zip(line, logged, strict=False):
            _draw(ax, epochs, quantity, dotted=comparable)
        for ax in line[len(logged) :]:
            ax.set_visible(False)
        if len(rows) > 1:
            line[0].set_ylabel(picture(phase))
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure


def _logged(rows: pd.DataFrame) -> list[str]:
    """Return the quantities of a phase, the objective first."""
    recorded = rows.dropna(axis=1, how="all").columns
    split = [c.partition("_") for c in recorded]
    names = dict.fromkeys(quantity for part, _, quantity in split if part in _COLOURS)
    return sorted(names, key=lambda name: name != "objective")


def _draw(ax: Axes, rows: pd.DataFrame, quantity: str, *, dotted: bool) -> None:
    done = rows["epoch"].to_numpy() + 1
    for part, colour in _COLOURS.items():
        values = rows.get(f"{part}_{quantity}")
        if values is None or values.isna().all():
            continue
        few = "o" if len(rows) < 10 else None  # a line through one point shows nothing
        ax.plot(done, values, color=colour, linewidth=1.4, marker=few, markersize=3, label=part)
        if dotted and part == "validation" and quantity == "objective":
            lowest = int(np.nanargmin(values))
            ax.plot(done[lowest], values.iloc[lowest], "o", color=colour, markersize=6)
    ax.set_title(picture(quantity.replace("_", " ")), fontsize="medium")
    ax.set_xlabel("epochs")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    bare(ax)
