"""The places of a data object: each function looks one up, in memory or on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import SchemaError, StoreError, counted, near
from ..schema import Place
from .disk import DiskMatrix, by_rows
from .files import OnDisk, unstructured
from .memory import in_memory
from .read import Data


def holder(data: Data, place: Place, role: str) -> Data:
    """Return the object whose slots `place` speaks of."""
    modalities = getattr(data, "mod", {})
    if not place.modality:
        if modalities and place.slot not in ("obs", "obsm"):
            raise SchemaError(
                f"{role}={str(place)!r}: in a MuData name the modality, "
                f"as in '{next(iter(modalities))}:{place}'. Available: {', '.join(modalities)}."
            )
        return data
    if not modalities:
        raise SchemaError(
            f"{role}={str(place)!r} names a modality, but the data is an AnnData. "
            f"Where it has {role}, give the place alone, as '{replace(place, modality='')}'."
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
    slot = f"{role} ({place})" if role else str(place)
    values, names = _found(owner, place, role)
    if names is None:
        names = _obsm_names(values, place.key)
    values = by_rows(values)
    if not isinstance(values, DiskMatrix):
        values = in_memory(values, slot)
    if len(values.shape) != 2:
        raise SchemaError(f"{slot}: expected cells x features, got {values.shape}.")
    if values.shape != (owner.n_obs, len(names)):  # of a file that anndata opened without a look
        raise StoreError(
            f"{slot} is {values.shape[0]:,} x {values.shape[1]:,}, beside {counted(owner.n_obs, 'cell')} and "
            f"{counted(len(names), 'feature')}: its file is damaged. Copy or download it again."
        )
    light = isinstance(values, DiskMatrix) and getattr(owner, "light", False)
    return in_memory(values.whole, slot) if light else values, names


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
        others = near(place.key, table) if len(table) else f" The data has no {place.slot} at all."
        raise SchemaError(f"{named}: there is no {place.key!r} in {place.slot}.{others}")
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
            f"{role}={str(place)!r}: obs has several columns of that name. Rename all but one."
        )
    if values.dtype.kind == "V":
        raise SchemaError(f"{role} ({place}) holds records, which are neither numbers nor names.")
    return values if owner is data else _for_all(values, data, owner, place)


def _for_all(values: pd.Series, data: Data, owner: Any, place: Place) -> pd.Series:
    """Return a column of a modality with a row per cell of the whole, whole numbers and truths as such."""
    cells = _own_cells(owner, place)
    nullable = {"i": "Int64", "u": "UInt64", "b": "boolean"}.get(values.dtype.kind)
    if nullable and not data.obs_names.isin(cells).all():
        values = values.astype(nullable)
    return values.reindex(data.obs_names)


def obs_of(data: Data, named: Iterable[Place]) -> pd.DataFrame:
    """Return the columns of cells, with those of the modalities in which places are `named`.

    The name of one that several have, or that the whole has with other values, begins as ``rna:``.
    """
    modalities = getattr(data, "mod", {})
    within = {place.modality: place for place in named if place.modality in modalities}
    owners: dict[str, Any] = {name: modalities[name] for name in within}
    if not owners:
        return data.obs
    often = Counter(name for owner in owners.values() for name in owner.obs)
    copies, further = [], {}
    for modality, owner in owners.items():
        for name, values in owner.obs.loc[:, ~owner.obs.columns.duplicated()].items():
            if name in data.obs and agree(data.obs[name], values):
                continue
            copies.append(prefixed := f"{modality}:{name}")  # MuData made one, if the user let it
            plain = name not in data.obs and often[name] == 1
            own = _for_all(values, data, owner, within[modality])
            further[name if plain else prefixed] = own
    whole = data.obs.drop(columns=copies, errors="ignore")
    return pd.concat([whole, pd.DataFrame(further, data.obs_names)], axis=1)


def agree(whole: Any, part: pd.Series) -> bool:
    """Return whether a column of a modality is a copy of one of the whole."""
    if isinstance(whole, pd.DataFrame) or not whole.index.is_unique:
        return False
    return bool((whole.reindex(part.index).astype(str) == part.astype(str)).all())


def entry(data: Data, key: str, role: str) -> Any:
    """Return an entry of ``uns``; of several files as one the first that has it.

    Raises
    ------
    SchemaError
        If there is none.
    StoreError
        If it cannot be read.
    """
    found, names = None, list(map(str, data.uns))
    if isinstance(data, OnDisk):
        for file in data.files or (data.path,):
            found, names = unstructured(Path(file), key)
            if found is not None:
                break
    else:
        found = data.uns.get(key)
    if found is None:
        raise SchemaError(f"{role}='uns/{key}': there is no {key!r} in uns.{near(key, names)}")
    return found


def as_numbers(values: pd.Series, place: Place, role: str) -> np.ndarray:
    """Return a column as float64, NaN where there is no value.

    Raises
    ------
    SchemaError
        If it holds no numbers.
    """
    if values.dtype.kind in "fiub":
        found = values.to_numpy(np.float64, na_value=np.nan)
        _refuse_rounded(values, found, f"{role} ({place})")
        return found
    text, name = f"{role} ({place}) holds {values.dtype}", f"data.obs[{place.key!r}]"
    if values.dtype.kind in "mM":
        since = f"({name} - {name}.min())" if values.dtype.kind == "M" else name
        raise SchemaError(
            f"{text}, expected numbers. Convert it, to days for example, and note their start: "
            f"{name} = {since} / pandas.Timedelta(days=1)."
        )
    words = values.dropna().astype(str)
    numbers = pd.to_numeric(words, errors="coerce").notna().all()
    taken = "" if numbers else r".astype(str).str.extract(r'(\d+\.?\d*)', expand=False)"
    example = f" (such as {words.iloc[0]!r})" if len(words) else ""
    raise SchemaError(
        f"{role} ({place}) holds text{example}, expected numbers: {name} = {name}{taken}.astype(float). If "
        "it spells dates, convert it with pandas.to_datetime first. See docs/with-scanpy.md."
    )


def _refuse_rounded(values: pd.Series, found: np.ndarray, column: str) -> None:
    """Refuse whole numbers that are distinct, and one once they are 64-bit floats."""
    beyond = values.dtype.kind in "iu" and np.nanmax(np.abs(found), initial=0) >= 2**53
    if beyond and len(np.unique(found[~np.isnan(found)])) < values.nunique():
        raise SchemaError(
            f"{column} holds whole numbers beyond 2**53, some of which become one as numbers with a decimal "
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


def as_category(values: pd.Series, missing: Sequence[str]) -> pd.Series:
    """Return strings, with None where a value is NaN, empty or declared missing."""
    text = values.astype(object)
    known = values.notna().to_numpy() & ~values.astype(str).isin(("", *missing)).to_numpy()
    return text.astype(str).where(known, None)
