"""What a fit keeps of its training cells, so that `generate` can draw what the user leaves open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from ..compute.rng import Rng
from ..errors import ConfigError
from ..schema import CATEGORY_ROLES
from .sets import widened
from .source import Source

#: Cells that are kept in all, more or less.
KEPT = 10_000
#: Cells that are kept of every combination of categories, however rare it is, where there are few of them.
LEAST = 50
#: The column of how many training cells each kept cell stands for.
WEIGHT = "cells"

Table = Mapping[str, np.ndarray]
"""Conditions, depth and weight of the kept cells, a row each."""


def remember(source: Source, rows: Int[np.ndarray, " n"], rng: Rng) -> dict[str, np.ndarray]:
    """Return conditions and depths of training cells, as they occur together.

    Of every combination of categories some cells are kept, so that a batch of six cells among a million
    still has its own depths. Each stands for as many as there are of its combination per cell kept.
    """
    at = _combinations({name: values[rows] for name, values in source.columns.items()}, len(rows))
    n_cells = np.bincount(at)
    least = max(1, min(LEAST, 2 * KEPT // len(n_cells)))
    wanted = np.minimum(n_cells, np.maximum(least, np.round(KEPT * n_cells / len(rows)))).astype(
        int
    )
    order = np.argsort(rng.numpy("remember").permutation(len(rows)), kind="stable")
    order = order[np.argsort(at[order], kind="stable")]  # by combination, shuffled within
    place = np.arange(len(rows)) - np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    kept = np.sort(order[place < np.repeat(wanted, n_cells)])
    table = {name: values[rows[kept]] for name, values in source.columns.items()}
    table[WEIGHT] = (n_cells / wanted)[at[kept]]
    if "counts" in source.matrices:
        table["library"] = np.concatenate(
            [b.sparse("counts").sum().numpy() for b in source.batches(rows[kept])]
        )
    return table


def joined(first: Table, second: Table) -> dict[str, np.ndarray]:
    """Return the cells of `first`, and those of `second` whose combination of categories is not there.

    Raises
    ------
    ConfigError
        If they know other things of their cells.
    """
    if set(first) != set(second):
        odd = ", ".join(sorted(set(first) ^ set(second)))
        raise ConfigError(
            f"The fit to start from and this one must read the same roles; one lacks {odd}."
        )
    n = len(first[WEIGHT])
    both = {name: np.concatenate(_as_wide(first[name], second[name])) for name in first}
    at = _combinations(
        {k: v for k, v in both.items() if k not in (WEIGHT, "library")}, n + len(second[WEIGHT])
    )
    kept = np.concatenate([np.arange(n), n + np.flatnonzero(~np.isin(at[n:], at[:n]))])
    return {name: values[kept] for name, values in both.items()}


def _as_wide(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two columns, as wide as the wider one where they are of sets."""
    if a.shape[1:] == b.shape[1:]:
        return a, b
    width = max(a.shape[1], b.shape[1])
    return widened(a, width), widened(b, width)


def _combinations(columns: Table, n: int) -> Int[np.ndarray, " n"]:
    """Return the number of each cell's combination of categories: 0, 1, …."""
    codes = [
        v.reshape(n, -1) for k, v in columns.items() if k == "categorical" or k in CATEGORY_ROLES
    ]
    stacked = np.concatenate([*codes, np.zeros((n, 1), np.int64)], axis=1)
    return np.unique(stacked, axis=0, return_inverse=True)[1].reshape(n)
