"""Several files as one: their cells one behind the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..errors import SchemaError, StoreError, counted
from .disk import Stacked
from .files import OnDisk, unique_names


def stack(parts: Sequence[OnDisk], join: Literal["same", "inner"]) -> OnDisk:
    """Return the cells of several files as one; see `chreode.open`.

    Raises
    ------
    SchemaError
        If their features differ.
    """
    if any(part.mod for part in parts):
        raise StoreError("Several files as one: .h5ad or .zarr. Open .h5mu files one by one.")
    names = [part.obs_names for part in parts]
    if pd.Index(np.concatenate(names)).has_duplicates:
        names = [index.astype(str) + f"-{number}" for number, index in enumerate(names)]
    obs = pd.concat([part.obs.set_axis(n) for part, n in zip(parts, names, strict=True)])
    raws = [part.raw for part in parts if part.raw is not None]
    raw = _one(raws, obs, join) if len(raws) == len(parts) else None
    return dataclasses.replace(_one(parts, obs, join), raw=raw)


def _one(parts: Sequence[OnDisk], obs: pd.DataFrame, join: Literal["same", "inner"]) -> OnDisk:
    """Return matrices that all parts have, with the features of the first one, or those of all."""
    names = unique_names(parts[0])
    shared = names[np.all([names.isin(unique_names(part)) for part in parts], axis=0)]
    for part in parts:
        lacking = part.var_names.symmetric_difference(names)
        if join == "same" and len(lacking):
            raise SchemaError(
                f"{part.path} and {parts[0].path} do not have the same features "
                f"({counted(len(lacking), 'feature')} in one alone, such as {str(lacking[0])!r}). To keep "
                "those that all files have: open(…, join='inner')."
            )
    parts = [p if p.var_names.equals(shared) else p[:, shared] for p in parts]
    return OnDisk(
        " + ".join(part.path for part in parts), obs, parts[0].var,
        _stacked([part.X for part in parts]),
        layers=_in_all([part.layers for part in parts]),
        obsm=_in_all([part.obsm for part in parts]),
        unreadable={k: f"{p.path}: {why}" for p in parts for k, why in p.unreadable.items()},
        files=tuple(part.path for part in parts),
    )  # fmt: skip


def _in_all(slots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {key: _stacked([slot.get(key) for slot in slots]) for key in slots[0]}
    return {key: matrix for key, matrix in found.items() if matrix is not None}


def _stacked(parts: Sequence[Any]) -> Any:
    """Return the rows of all parts; None where one lacks them, or has others."""
    tables = {isinstance(part, pd.DataFrame) for part in parts}
    lacking = any(part is None for part in parts)
    if lacking or len(tables) > 1 or len({part.shape[1:] for part in parts}) > 1:
        return None
    return pd.concat(parts) if True in tables else Stacked(parts)
