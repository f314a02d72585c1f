"""Open a data object and find the places a schema names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from ..config.arguments import checked
from ..errors import ConfigError, SchemaError, StoreError, near
from ..schema import MATRIX_ROLES, Place, Schema
from .disk import DiskMatrix, by_rows, refuse_elsewhere_in
from .files import OnDisk, open_file, stack, stored_bytes
from .memory import in_memory

Data: TypeAlias = AnnData | MuData | OnDisk

#: Bytes of a file, uncompressed, up to which a path is read into memory.
IN_MEMORY = 2**30


@checked
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
    """Return the cells; a path is opened.

    What roles name is read into memory once it is asked for, or left in a file larger than `IN_MEMORY`.

    Raises
    ------
    StoreError
        If the file is absent, cut short, of another kind, or takes data from other files.
    """
    if isinstance(data, AnnData) and data.isbacked and data.is_view:
        raise StoreError(
            "This is a part of data on disk. Give the whole and choose cells with rows=…, "
            "or load the part first: data.to_memory()."
        )
    if isinstance(data, AnnData | MuData):
        _refuse_elsewhere(data)
    if isinstance(data, AnnData | MuData | OnDisk):
        return data
    if not isinstance(data, str | Path):
        raise StoreError(f"Expected an AnnData, a MuData or a path, got {type(data).__name__}.")
    path = Path(data)
    return open_file(path, light=stored_bytes(path) <= IN_MEMORY)


def refuse_over(data: Data, into: str | Path | None) -> None:
    """Refuse to write a result over the file that its cells are read from, or into its folder."""
    if into is None:
        return
    for part in (data, *getattr(data, "mod", {}).values()):
        held = getattr(part, "filename", None) or getattr(part, "path", None)
        for file in getattr(part, "files", ()) or filter(None, [held]):
            if Path(into).resolve().is_relative_to(Path(file).resolve()):
                raise ConfigError(
                    f"into={str(into)!r} is where the cells are read from. Choose another."
                )


def _refuse_elsewhere(data: AnnData | MuData) -> None:
    for part in (data, *getattr(data, "mod", {}).values()):
        if isinstance(part, AnnData):
            raw = []
            with suppress(AttributeError):  # of an open file that lost it: who names it is told
                raw = [part.raw.X] if part.raw is not None else []
            for values in (part.X, *raw, *part.layers.values(), *part.obsm.values()):
                refuse_elsewhere_in(values)


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
            f"Where it has {role}, say the place alone, as '{replace(place, modality='')}'."
        )
    if place.modality not in modalities:
        raise SchemaError(
            f"{role}={str(place)!r}: there is no modality {place.modality!r}."
            f"{near(place.modality, modalities)}"
        )
    return modalities[place.modality]


def matrix(data: Data, place: Place, role: str) -> tuple[Any, pd.Index]:
    """Return the matrix at `place` (CSR, dense or on disk) and the names of its features.

    Raises
    ------
    SchemaError
        If there is none.
    DataError, StoreError
        If it is damaged.
    """
    owner: Any = holder(data, place, role)
    said = f"{role} ({place})" if role else str(place)
    values, names = _found(owner, place, role)
    if names is None:
        names = _obsm_names(values, place.key)
    values = by_rows(values)
    if not isinstance(values, DiskMatrix):
        values = in_memory(values, said)
    if len(values.shape) != 2:
        raise SchemaError(f"{said}: expected cells x features, got {values.shape}.")
    if values.shape != (owner.n_obs, len(names)):  # of a file that anndata opened without a look
        raise StoreError(
            f"{said} is {values.shape[0]:,} x {values.shape[1]:,}, beside {owner.n_obs:,} cells and "
            f"{len(names):,} features: its file is damaged. Copy or download it again."
        )
    light = isinstance(values, DiskMatrix) and getattr(owner, "light", False)
    return in_memory(values.whole, said) if light else values, names


def _found(owner: Any, place: Place, role: str) -> tuple[Any, pd.Index | None]:
    """Return what stands at a place, as it is, and the names of its features where they are the owner's."""
    named = f"{role}={str(place)!r}"
    _refuse_unreadable(owner, place, role)
    if place.slot == "raw":
        try:
            values = None if owner.raw is None else owner.raw.X
        except AttributeError as error:
            raise StoreError(f"{named}: {error} Copy or download the file again.") from error
        if values is None:
            raise SchemaError(f"{named}: the data has no raw.")
        return values, owner.raw.var_names
    if place.slot == "X":
        if owner.X is None:
            raise SchemaError(f"{named}: the data has no X.")
        return owner.X, owner.var_names
    table = getattr(owner, place.slot)
    if place.key not in table:
        raise SchemaError(
            f"{named}: there is no {place.key!r} in {place.slot}.{near(place.key, table)}"
        )
    return table[place.key], owner.var_names if place.slot == "layers" else None


def _refuse_unreadable(owner: Any, place: Place, role: str) -> None:
    slot = f"{place.slot}/{place.key}" if place.key else place.slot
    why = getattr(owner, "unreadable", {}).get(slot)
    if why is not None:
        raise StoreError(
            f"{role}={str(place)!r}: {slot} of {owner.path} cannot be read ({why}). Copy or download the "
            "file again, or write this slot anew; slots that no role names may stay as they are."
        )


def _obsm_names(values: Any, key: str) -> pd.Index:
    if isinstance(values, pd.DataFrame):
        return values.columns.astype(str)
    shape: Any = getattr(values, "shape", ())
    return pd.Index([f"{key}_{i}" for i in range(shape[1] if len(shape) == 2 else 0)])


def column(data: Data, place: Place, role: str) -> pd.Series:
    """Return the obs column at `place`, one value per cell of `data`."""
    owner = holder(data, place, role)
    _refuse_unreadable(owner, place, role)
    if place.key not in owner.obs:
        raise SchemaError(
            f"{role}={str(place)!r}: there is no column {place.key!r} in obs.{near(place.key, owner.obs)}"
        )
    values = owner.obs[place.key]
    if isinstance(values, pd.DataFrame):
        raise SchemaError(
            f"{role}={str(place)!r}: obs has {values.shape[1]} columns of that name. Rename all but one."
        )
    if values.dtype.kind == "V":
        raise SchemaError(f"{role} ({place}) holds records, which are neither numbers nor names.")
    if owner is data:
        return values
    cells = _own_cells(owner, place)
    if values.dtype.kind in "iu" and not data.obs_names.isin(cells).all():
        values = values.astype("UInt64" if values.dtype.kind == "u" else "Int64")  # no floats
    return values.reindex(data.obs_names)


def numbers(data: Data, place: Place, role: str) -> np.ndarray:
    """Return the obs column at `place` as float64, NaN where there is no value.

    Raises
    ------
    SchemaError
        If it holds no numbers.
    """
    values = column(data, place, role)
    if values.dtype.kind in "fiub":
        found = values.to_numpy(np.float64, na_value=np.nan)
        _refuse_rounded(values, found, f"{role} ({place})")
        return found
    said, name = f"{role} ({place}) holds {values.dtype}", f"data.obs[{place.key!r}]"
    if values.dtype.kind in "mM":
        since = f"({name} - {name}.min())" if values.dtype.kind == "M" else name
        raise SchemaError(
            f"{said}, expected numbers. Tell it in days, say, and remember since when: "
            f"{name} = {since} / pandas.Timedelta(days=1)."
        )
    raise SchemaError(
        f"{said}, expected numbers: convert it with pandas.to_numeric (text that spells dates: with "
        "pandas.to_datetime, first)."
    )


def _refuse_rounded(values: pd.Series, found: np.ndarray, said: str) -> None:
    """Refuse whole numbers that are distinct, and one once they are 64-bit floats."""
    beyond = values.dtype.kind in "iu" and np.nanmax(np.abs(found), initial=0) >= 2**53
    if beyond and len(np.unique(found[~np.isnan(found)])) < values.nunique():
        raise SchemaError(
            f"{said} holds whole numbers beyond 2**53, some of which become one as numbers with a decimal "
            "point. Subtract the least of them first, or divide."
        )


def where(data: Data, place: Place) -> np.ndarray | None:
    """Return the row of each cell in its modality (-1: absent), or None where rows are the cells."""
    modalities = getattr(data, "mod", {})
    if not place.modality or not modalities:
        return None
    rows = _own_cells(modalities[place.modality], place).get_indexer(data.obs_names)
    return None if np.array_equal(rows, np.arange(len(rows))) else rows


def _own_cells(modality: Any, place: Place) -> pd.Index:
    """Return the names of the cells of a modality, which are how it is joined with the others."""
    names: pd.Index = modality.obs_names
    if not names.is_unique:
        raise SchemaError(
            f"Cell names of {place.modality} are not unique ({names[names.duplicated()][0]!r}), so its "
            f"cells cannot be told apart: data.mod[{place.modality!r}].obs_names_make_unique(), "
            "then data.update()."
        )
    return names


def measured(data: Data, schema: Schema) -> np.ndarray:
    """Return which cells have a row in a matrix that `schema` names (all, where it names none)."""
    modalities = getattr(data, "mod", {})
    found = np.zeros(data.n_obs, bool)
    places = [p for role, p in schema.places() if role.partition("/")[0] in MATRIX_ROLES]
    for place in places:
        at = where(data, place) if place.modality in modalities else None
        found |= True if at is None else at >= 0
    return found if places else ~found


def _in_other_order(index: pd.Index, names: pd.Index) -> bool:
    return not index.equals(names) and bool(index.isin(names).all()) and index.is_unique


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
    except (ValueError, TypeError):  # lists of unlike lengths, or an object of its own
        given = np.zeros((0, 0))
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "biuOUST"):
        raise SchemaError(
            f"{name}={str(rows)[:60]!r}: expected a mask, positions or names of cells, as a list or array."
        )
    if given.dtype == bool:
        if given.shape != (n,):
            raise SchemaError(f"{name}: the mask has shape {given.shape}, expected ({n},).")
        if isinstance(rows, pd.Series) and _in_other_order(rows.index, data.obs_names):
            raise SchemaError(
                f"{name}: the mask is a column with the cells in another order. Sort it as the cells are: "
                f"{name}=mask.reindex(data.obs_names)."
            )
        return np.flatnonzero(given)
    if len(given) and given.dtype.kind not in "iu":
        if not data.obs_names.is_unique:
            raise SchemaError(
                f"{name}: names of cells are not unique, so none can be chosen by name. Give positions or "
                "a mask, or say data.obs_names_make_unique() first."
            )
        names = [str(v) if isinstance(v, str) else None for v in given]
        found = data.obs_names.get_indexer(pd.Index(names, dtype=object))
        if (found < 0).any():
            raise SchemaError(f"{name}: {given[found < 0][:5].tolist()} are not among the cells.")
        given = found
    if len(given) and (given.min() < 0 or given.max() >= n):
        raise SchemaError(f"{name}: expected positions from 0 to {n - 1}.")
    if len(np.unique(given)) != len(given):
        raise SchemaError(f"{name}: some cells are named twice.")
    return given.astype(np.int64)
