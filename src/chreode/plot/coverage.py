"""What positives change: a bar per factor, or a square per positives and factor."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..config.arguments import checked
from ..text import picture
from .style import GREY, PALETTE, axes, bare, require_columns, short

#: Coverage above which a square is so dark that its number is white.
_DARK = 0.6


@checked
def coverage_bars(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the coverage of each factor as a bar with its 95 % interval, from 0 (kept) to 1 (removed).

    Parameters
    ----------
    table
        What `Coverage.table` returns. A factor without coverage has no bar, and is marked as not told.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    SchemaError
        If the table holds something else.

    Examples
    --------
    >>> row = {"coverage": 0.25, "low": 0.2, "high": 0.3}
    >>> ax = coverage_bars(pd.DataFrame([row], index=["depth"]))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['depth']
    """
    require_columns(table, ("coverage", "low", "high"), of="Coverage.table()")
    ax = axes(ax, 5.5, 0.8 + 0.32 * len(table))
    y, value = np.arange(len(table)), table["coverage"].to_numpy(float)
    told = ~np.isnan(value)
    ends = np.abs(table[["low", "high"]].to_numpy(float).T - value)
    ax.barh(y[told], value[told], height=0.6, color=PALETTE[0], alpha=0.6)
    ax.errorbar(
        value[told], y[told], xerr=ends[:, told], fmt="none", color=PALETTE[0], linewidth=1.2
    )
    for at in y[~told]:
        ax.text(0.01, at, "not told", va="center", color=GREY, fontsize=8)
    ax.set_yticks(y, [picture(short(name, 40)) for name in table.index])
    ax.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5), xlabel="coverage: 0 kept, 1 removed")
    bare(ax)
    return ax


@checked
def coverage_matrix(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the coverage of each factor (columns) by each of several positives (rows), from white to dark.

    Parameters
    ----------
    table
        What `Coverage.table` returns of several positives. What is not told is left empty.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    SchemaError
        If the table holds something else.

    Examples
    --------
    >>> rows = [("mask", "depth"), ("thin", "depth")]
    >>> ax = coverage_matrix(pd.DataFrame({"coverage": [0.1, 0.9]}, index=pd.MultiIndex.from_tuples(rows)))
    >>> [text.get_text() for text in ax.texts]
    ['0.10', '0.90']
    """
    require_columns(table, ("coverage",), of="Coverage.table()")
    value = table["coverage"].astype(float)
    rows, columns = (value.index.get_level_values(level).unique() for level in (0, 1))
    wide = value.unstack().reindex(index=rows, columns=columns).to_numpy()
    ax = axes(ax, 2.2 + 0.75 * len(columns), 1.3 + 0.32 * len(rows))
    ax.imshow(wide, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, j in np.argwhere(~np.isnan(wide)):
        light = "white" if wide[i, j] > _DARK else "black"
        ax.text(j, i, f"{wide[i, j]:.2f}", ha="center", va="center", color=light, fontsize=8)
    ax.set_yticks(range(len(rows)), [picture(short(name, 30)) for name in rows])
    names = [picture(short(name, 20)) for name in columns]
    ax.set_xticks(range(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
