"""Open a data object and find the places a schema names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from .errors import SchemaError, StoreError, near
from .schema import Place

Data: TypeAlias = AnnData | MuData


def read(data: Data | str | Path) -> Data:
    """Return an AnnData or MuData; read it if a path is given.

    Raises
    ------
    StoreError
        If the file is absent, cut short or of another kind.
    """
    if isinstance(data, (AnnData, MuData)):
        if getattr(data, "isbacked", False):
            raise StoreError("The data is backed by its file; load it first: data.to_memory().")
        return data
    if not isinstance(data, (str, Path)):
        raise StoreError(f"Expected an AnnData, a MuData or a path, got {type(data).__name__}.")
    path = Path(data)
    if not path.is_file():
        raise StoreError(f"There is no file {str(path)!r}.")
    if path.suffix not in (".h5ad", ".h5mu"):
        raise StoreError(f"{str(path)!r}: expected a file that ends in .h5ad or .h5mu.")
    try:
        if path.suffix == ".h5ad":
            import anndata

            return anndata.read_h5ad(path)
        return _read_mudata(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}). It may be cut short or "
            "not be what its name says: copy or download it again, and compare its size."
        ) from error


def _read_mudata(path: Path) -> MuData:
    import mudata

    try:
        with mudata.set_options(pull_on_update=False):
            return mudata.read_h5mu(path)
    except ValueError:
        # mudata 0.3 cannot join modalities whose obs index has a name; its older way can
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return mudata.read_h5mu(path)


def holder(data: Data, place: Place, role: str) -> AnnData | MuData:
    """Return the object whose slots `place` speaks of."""
    if not place.modality:
        if isinstance(data, MuData) and place.slot != "obs" and place.slot != "obsm":
            raise SchemaError(
                f"{role}={str(place)!r}: in a MuData say which modality, "
                f"as in '{next(iter(data.mod), 'rna')}:{place}'. There is: {', '.join(data.mod)}."
            )
        return data
    if not isinstance(data, MuData):
        raise SchemaError(
            f"{role}={str(place)!r} names a modality, but the data is an AnnData. "
            f"Say '{str(place).partition(':')[2]}'."
        )
    if place.modality not in data.mod:
        raise SchemaError(
            f"{role}={str(place)!r}: there is no modality {place.modality!r}."
            f"{near(place.modality, data.mod)}"
        )
    return data.mod[place.modality]


def matrix(data: Data, place: Place, role: str) -> tuple[Any, pd.Index]:
    """Return the matrix at `place` (CSR or dense) and the names of its features."""
    owner = holder(data, place, role)
    if place.slot == "raw":
        if getattr(owner, "raw", None) is None:
            raise SchemaError(f"{role}={str(place)!r}: the data has no raw.")
        values, names = owner.raw.X, owner.raw.var_names
    elif place.slot == "X":
        values, names = owner.X, owner.var_names
        if values is None:
            raise SchemaError(f"{role}={str(place)!r}: the data has no X.")
    else:
        table = getattr(owner, place.slot)
        if place.key not in table:
            raise SchemaError(
                f"{role}={str(place)!r}: there is no {place.key!r} in {place.slot}."
                f"{near(place.key, table)}"
            )
        values = table[place.key]
        names = owner.var_names if place.slot == "layers" else _obsm_names(values, place.key)
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if sp.issparse(values):
        values = values.tocsr()
        if not values.has_canonical_format:
            values = values.copy()  # the user's own stays as it is
            values.sum_duplicates()
        return values, names
    values = np.asarray(values)
    if values.ndim != 2:
        raise SchemaError(f"{role}={str(place)!r}: expected cells x features, got {values.shape}.")
    return values, names


def _obsm_names(values: Any, key: str) -> pd.Index:
    if isinstance(values, pd.DataFrame):
        return values.columns.astype(str)
    return pd.Index([f"{key}_{i}" for i in range(values.shape[1])])


def column(data: Data, place: Place, role: str) -> pd.Series:
    """Return the obs column at `place`, one value per cell of `data`."""
    owner = holder(data, place, role)
    if place.key not in owner.obs:
        raise SchemaError(
            f"{role}={str(place)!r}: there is no column {place.key!r} in obs.{near(place.key, owner.obs)}"
        )
    values = owner.obs[place.key]
    return values if owner is data else values.reindex(data.obs_names)


def where(data: Data, place: Place) -> np.ndarray | None:
    """Return the row of each cell in its modality (-1: absent), or None where rows are the cells."""
    if not place.modality or not isinstance(data, MuData):
        return None
    rows = data.mod[place.modality].obs_names.get_indexer(data.obs_names)
    return None if np.array_equal(rows, np.arange(len(rows))) else rows


def positions(data: Data, rows: Any) -> np.ndarray:
    """Return row numbers from a mask, positions, or names of cells (None: all).

    Raises
    ------
    SchemaError
        If a row is out of range, unknown or named twice.
    """
    n = data.n_obs
    if rows is None:
        return np.arange(n)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (n,):
            raise SchemaError(f"rows: the mask has shape {rows.shape}, expected ({n},).")
        return np.flatnonzero(rows)
    if rows.dtype.kind not in "iu":
        found = data.obs_names.get_indexer(pd.Index(rows))
        if (found < 0).any():
            raise SchemaError(f"rows: {rows[found < 0][:5].tolist()} are not among the cells.")
        rows = found
    if len(rows) and (rows.min() < 0 or rows.max() >= n):
        raise SchemaError(f"rows: expected positions from 0 to {n - 1}.")
    if len(np.unique(rows)) != len(rows):
        raise SchemaError("rows: some cells are named twice.")
    return rows.astype(np.int64)
