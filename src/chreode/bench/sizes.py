"""How many cells there are of each type and batch."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..data.cells import Cells


def cell_counts(cells: Cells, rows: Any = None) -> pd.DataFrame:
    """Return the number of cells of every label and batch, as far as the schema names them.

    Parameters
    ----------
    rows
        Positions of the cells that count (default: all).

    Returns
    -------
    ``label``, ``batch``, ``cells``; "no value" where a cell has none.
    """
    named = [role for role in ("label", "batch") if role in cells.places]
    if not named:
        return pd.DataFrame()
    table = pd.DataFrame({role: cells.categories(role).to_numpy(object) for role in named})
    table = table if rows is None else table.iloc[rows]
    groups = table.where(table.notna(), "no value").groupby(named, sort=True)
    return groups.size().rename("cells").reset_index()
