"""Open a data object and find the places a schema names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from .data.disk import DiskMatrix, by_rows, readable
from .data.files import OnDisk, open_file, stack, stored_bytes
from .errors import SchemaError, StoreError, near
from .schema import Place

Data: TypeAlias = AnnData | MuData | OnDisk

#: Bytes of a file, uncompressed, up to which a path is read into memory.
IN_MEMORY = 2**30


def open(  # noqa: A001 (called as ch.open)
    paths: str | Path | Sequence[str | Path], *, join: Literal["same", "inner"] = "same"
) -> OnDisk:
    """Open cells that are larger than memory: tables are read, matrices stay in their files.

    What comes back is taken wherever an AnnData is. Nothing is ever written to the files.

    Parameters
    ----------
    paths
        An .h5ad, .h5mu or .zarr; or several .h5ad and .zarr, whose cells are taken as one. The cells
        get the number of their file behind their names (``-0``, ``-1``) if a name occurs twice.
    join
        What several files must share: ``"same"`` features, in any order, or ``"inner"``: those that
        all of them have. The order is that of the first file.

    Raises
    ------
    StoreError
        If a file is absent, cut short or of another kind.
    SchemaError
        If features are not the same.
    """
    if isinstance(paths, str | Path):
        return open_file(Path(paths))
    if not paths:
        raise StoreError("open() was given no file.")
    return stack([open_file(Path(path)) for path in paths], join)


def read(data: Data | str | Path) -> Data:
    """Return the cells; read them if a path is given, or open it if it is larger than `IN_MEMORY`.

    Raises
    ------
    StoreError
        If the file is absent, cut short or of another kind.
    """
    if isinstance(data, AnnData) and data.isbacked and data.is_view:
        raise StoreError(
            "This is a part of data on disk. Give the whole and choose cells with rows=…, "
            "or load the part first: data.to_memory()."
        )
    if isinstance(data, AnnData | MuData | OnDisk):
        return data
    if not isinstance(data, str | Path):
        raise StoreError(f"Expected an AnnData, a MuData or a path, got {type(data).__name__}.")
    path = Path(data)
    if stored_bytes(path) > IN_MEMORY:
        return open_file(path)
    with readable(str(path)):
        if path.suffix == ".h5mu":
            return _read_mudata(path)
        import anndata

        return (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)


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


def holder(data: Data, place: Place, role: str) -> Data:
    """Return the object whose slots `place` speaks of."""
    modalities = getattr(data, "mod", {})
    if not place.modality:
        if modalities and place.slot not in ("obs", "obsm"):
            raise SchemaError(
                f"{role}={str(place)!r}: in a MuData say which modality, "
                f"as in '{next(iter(modalities))}:{place}'. There is: {', '.join(modalities)}."
            )
        return data
    if not modalities:
        raise SchemaError(
            f"{role}={str(place)!r} names a modality, but the data is an AnnData. "
            f"Say '{str(place).partition(':')[2]}'."
        )
    if place.modality not in modalities:
        raise SchemaError(
            f"{role}={str(place)!r}: there is no modality {place.modality!r}."
            f"{near(place.modality, modalities)}"
        )
    return modalities[place.modality]


def matrix(data: Data, place: Place, role: str) -> tuple[Any, pd.Index]:
    """Return the matrix at `place` (CSR, dense or on disk) and the names of its features."""
    owner: Any = holder(data, place, role)
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
        return _alike(values), names
    values = by_rows(values)
    if not isinstance(values, DiskMatrix):
        values = np.asarray(values)
    if len(values.shape) != 2:
        raise SchemaError(f"{role}={str(place)!r}: expected cells x features, got {values.shape}.")
    return values, names


def _alike(values: sp.csr_matrix | sp.csr_array) -> sp.csr_matrix | sp.csr_array:
    """Give indices and indptr the same integers: else SciPy converts all indices for a few rows."""
    kind = values.indices.dtype
    if values.indptr.dtype == kind:
        return values
    if values.nnz > np.iinfo(kind).max:
        kind = values.indptr.dtype
    parts = values.data, values.indices.astype(kind, copy=False), values.indptr.astype(kind)
    return type(values)(parts, shape=values.shape)


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


def numbers(data: Data, place: Place, role: str) -> np.ndarray:
    """Return the obs column at `place` as float64, NaN where there is no value.

    Raises
    ------
    SchemaError
        If it holds no numbers.
    """
    values = column(data, place, role)
    if values.dtype.kind in "fiub":
        return values.to_numpy(np.float64, na_value=np.nan)
    said, name = f"{role} ({place}) holds {values.dtype}", f"data.obs[{place.key!r}]"
    if values.dtype.kind in "mM":
        since = f"({name} - {name}.min())" if values.dtype.kind == "M" else name
        raise SchemaError(
            f"{said}, expected numbers. Tell it in days, say, and remember since when: "
            f"{name} = {since} / pandas.Timedelta(days=1)."
        )
    raise SchemaError(f"{said}, expected numbers: convert it with pandas.to_numeric.")


def where(data: Data, place: Place) -> np.ndarray | None:
    """Return the row of each cell in its modality (-1: absent), or None where rows are the cells."""
    modalities = getattr(data, "mod", {})
    if not place.modality or not modalities:
        return None
    rows = modalities[place.modality].obs_names.get_indexer(data.obs_names)
    return None if np.array_equal(rows, np.arange(len(rows))) else rows


def positions(data: Data, rows: Any, name: str = "rows") -> np.ndarray:
    """Return row numbers from a mask, positions, or names of cells (None: all).

    Parameters
    ----------
    name
        What the argument is called, for messages.

    Raises
    ------
    SchemaError
        If it is nothing of the kind, or a row is out of range, unknown or named twice.
    """
    n = data.n_obs
    if rows is None:
        return np.arange(n)
    try:
        given = np.asarray(rows)
    except ValueError:  # lists of unlike lengths
        given = np.zeros((0, 0))
    if given.ndim != 1:
        raise SchemaError(
            f"{name}={str(rows)[:60]!r}: expected a mask, positions or names of cells, as a list or array."
        )
    if given.dtype == bool:
        if given.shape != (n,):
            raise SchemaError(f"{name}: the mask has shape {given.shape}, expected ({n},).")
        return np.flatnonzero(given)
    if len(given) and given.dtype.kind not in "iu":
        found = data.obs_names.get_indexer(pd.Index(given))
        if (found < 0).any():
            raise SchemaError(f"{name}: {given[found < 0][:5].tolist()} are not among the cells.")
        given = found
    if len(given) and (given.min() < 0 or given.max() >= n):
        raise SchemaError(f"{name}: expected positions from 0 to {n - 1}.")
    if len(np.unique(given)) != len(given):
        raise SchemaError(f"{name}: some cells are named twice.")
    return given.astype(np.int64)
