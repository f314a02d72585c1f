"""Some cells of a data object, as an object of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from .disk import DiskMatrix
from .files import OnDisk
from .read import Data


def some_cells(data: Any, rows: np.ndarray) -> Data:
    """Return some cells; of data on disk, in memory."""
    if isinstance(data, AnnData):
        return data[rows].to_memory()  # no view: an objective may write to it
    if isinstance(data, MuData):
        return data[rows]

    def part(values: Any) -> Any:
        if isinstance(values, pd.DataFrame):
            return values.iloc[rows]
        # single rows of a matrix by columns can be read where the whole is
        light = data.light and isinstance(values, DiskMatrix)
        return (values.whole if light else values)[rows]

    def of(slot: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part(values) for name, values in slot.items()}

    names = data.obs_names[rows]
    mod = {m: some_cells(d, np.flatnonzero(d.obs_names.isin(names))) for m, d in data.mod.items()}
    return dataclasses.replace(
        data, obs=part(data.obs), X=None if data.X is None else part(data.X),
        layers=of(data.layers), obsm=of(data.obsm), raw=data.raw and some_cells(data.raw, rows), mod=mod,
    )  # fmt: skip


def is_in_memory(data: OnDisk) -> bool:
    """Return whether no matrix of what was read from a file is in that file still."""
    matrices = (data.X, *data.layers.values(), *data.obsm.values())
    parts = [part for part in (data.raw, *data.mod.values()) if part is not None]
    return not any(isinstance(m, DiskMatrix) for m in matrices) and all(map(is_in_memory, parts))
