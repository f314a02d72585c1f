"""Rows that are held out: a share of some, or cells that are named."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError, counted
from .cells import Cells


def named_cells(cells: Cells, rows: np.ndarray, what: Any, name: str) -> Any:
    """Return a share as it is, and the cells named in its place as positions: some of `rows`.

    Parameters
    ----------
    what
        A share (None: 0); or cells, as a mask, positions or names.
    name
        What the argument is called, for messages.

    Raises
    ------
    ConfigError
        If it is no share from 0 to below 1, or names no cells, all cells, or others than `rows`.
    """
    share = 0 if what is None else what
    if isinstance(share, (int, float, np.number)) and not isinstance(share, bool):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}={share}: expected a share from 0 to below 1, or rows.")
        return float(share)
    found = cells.positions(what, name)
    others = len(np.setdiff1d(found, rows))
    if others or not 0 < len(found) < len(rows):
        raise ConfigError(
            f"{name} has {counted(len(found), 'cell')}, {others:,} of them not among the {len(rows):,} "
            "to use. Name some of those, or give a share."
        )
    return found


def hold_out(
    rows: np.ndarray, what: Any, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are left, and those held out: a share that is drawn, or positions."""
    if isinstance(what, float):
        shuffled, n = generator.permutation(rows), round(len(rows) * what)
        return np.sort(shuffled[n:]), np.sort(shuffled[:n])
    return np.setdiff1d(rows, what), np.intersect1d(rows, what)
