"""Cells larger than memory: tables in memory, matrices left in an .h5ad, .h5mu or .zarr."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, sparse_dataset

from .. import store
from ..errors import SchemaError, StoreError, counted, near
from .disk import Array, DiskDense, Selected, absent, by_rows, left_out, readable
from .foreign import refuse_foreign, refuse_other_formats


@dataclass(eq=False)
class OnDisk:
    """What `chreode.open` returns: an AnnData or a MuData whose matrices stay in their files.

    Attributes
    ----------
    path
        The file, or several.
    obs, var
        Tables, in memory.
    X
        The main matrix, or None.
    layers, obsm
        Further matrices by name. What verbs return is put into `obsm`, in memory.
    raw
        What an AnnData keeps as `raw`.
    uns
        Where results came from, as verbs wrote it.
    mod
        Modalities of an .h5mu.
    unreadable
        Why a place, such as ``obs/batch``, cannot be read; an error where a role names it.
    files
        Paths of the files, where these are several as one.
    light
        Whether a matrix is read into memory when it is first asked for, as of small files.
    """

    path: str
    obs: pd.DataFrame
    var: pd.DataFrame
    X: Any = None
    layers: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    raw: OnDisk | None = None
    uns: dict[str, Any] = field(default_factory=dict)
    mod: dict[str, OnDisk] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    light: bool = False

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Names of the features."""
        return self.var.index

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Number of features."""
        return len(self.var)

    def copy(self) -> OnDisk:
        """Return the same cells; what is written to the copy is not written here."""
        return dataclasses.replace(
            self, obs=self.obs.copy(), obsm=dict(self.obsm), uns=dict(self.uns)
        )

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: Any) -> OnDisk:
        """Return some features: ``data[:, genes]``. Cells are chosen where they are read, by `rows`.

        Parameters
        ----------
        index
            All cells (``:``), and features by name, position, mask or slice.

        Raises
        ------
        SchemaError
            If there is no such feature, or cells are asked for.
        """
        cells, names = index if isinstance(index, tuple) and len(index) == 2 else (index, None)
        if not isinstance(cells, slice) or cells != slice(None) or names is None:
            raise SchemaError(
                "On disk, data[:, genes] chooses features. To choose cells, give rows=… where they are "
                "learned from, or read them first: anndata.read_h5ad(FILE)[cells]."
            )
        known = unique_names(self)
        try:
            if isinstance(names, slice) or np.asarray(names).dtype.kind in "biu":
                names = known[names]
            names = pd.Index([names] if isinstance(names, str) else names)
            columns = known.get_indexer(names)
        except (IndexError, TypeError, ValueError) as error:
            raise SchemaError(
                f"data[:, genes]: expected names, positions, a mask or a slice of "
                f"{counted(self.n_vars, 'feature')} ({error})."
            ) from error
        if (columns < 0).any():
            unknown = str(names[columns < 0][0])
            raise SchemaError(f"There is no feature {unknown!r}.{near(unknown, self.var_names)}")
        return dataclasses.replace(
            self,
            var=self.var.iloc[columns],
            X=None if self.X is None else Selected(self.X, columns),
            layers={name: Selected(layer, columns) for name, layer in self.layers.items()},
        )

    def __repr__(self) -> str:
        features = f"{counted(self.n_vars, 'feature')}"
        if self.mod:
            features = ", ".join(f"{part.n_vars:,} {name}" for name, part in self.mod.items())
        return f"{counted(self.n_obs, 'cell')} x {features} on disk in {self.path}"


def open_file(path: Path, *, light: bool = False) -> OnDisk:
    """Return the cells of an .h5ad, .h5mu or .zarr, with their matrices left there (see `OnDisk.light`).

    Raises
    ------
    StoreError
        If it is absent, cut short or of another kind.
    """
    root = open_root(path)
    with readable(str(path)):
        parts: Any = root.get("mod", {})
        order = parts.attrs.get("mod-order", parts) if parts else parts
        mod = {name: _cells(path, parts[name], light=light) for name in order}
        return dataclasses.replace(_cells(path, root, light=light), mod=mod)


def open_root(path: Path) -> Any:
    """Open a file, or a folder of zarr, to read.

    Raises
    ------
    StoreError
        If it is absent, cut short, of another kind (see `refuse_other_formats`), or takes data from
        elsewhere (see `refuse_foreign`).
    """
    if not path.exists():
        raise StoreError(f"There is no file {str(path)!r}.")
    if not (path.is_file() or path.is_dir()):  # to open a pipe waits until somebody writes
        raise StoreError(f"{str(path)!r} is a pipe or a device: write the cells to a file first.")
    refuse_other_formats(path)
    with readable(str(path)):
        refuse_foreign(path)
        if path.suffix != ".zarr":
            return h5py.File(path, "r")
        # what the folder holds, and not what a copy of its metadata lists
        return zarr.open_group(path, mode="r", use_consolidated=False)


def unstructured(path: Path, key: str) -> tuple[Any, list[str]]:
    """Return an entry of ``uns``, None if it is absent, and the names of all.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    root = open_root(path)
    with readable(f"uns/{key} of {path}"):
        names = list(_keys(root, "uns"))
        return read_elem(root["uns"][key]) if key in names else None, names


@contextmanager
def editable(path: Path) -> Iterator[Any]:
    """Open a file, or a folder of zarr, to write further slots into it."""
    with readable(str(path)):
        refuse_foreign(path)
    if path.suffix != ".zarr":
        with store.hdf5(path, "r+") as (file, _):
            _refuse_old(path, file)
            yield file
        return
    yield zarr.open_group(path, mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no part of zarr 3 yet, but anndata writes it
        zarr.consolidate_metadata(path)


def stored_bytes(path: Path) -> int:
    """Return the size of everything in a file once it is in memory, without its strings.

    Where a part cannot be read it is not known: as if it were too large.
    """
    root = open_root(path)
    items: list[Any] = []
    try:
        if isinstance(root, h5py.Group):
            root.visititems(lambda _, item: items.append(item))
        else:
            items = [item for _, item in root.members(max_depth=None)]
        arrays = [item for item in items if isinstance(item, Array) and item.shape]
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
    except Exception:  # noqa: BLE001 (of a damaged item, which may be one that nobody asks for)
        return sys.maxsize


def _cells(path: Path, root: Any, *, light: bool) -> OnDisk:
    _refuse_old(path, root)
    lost: dict[str, str] = {}
    obs, var = (_table(root, name, lost) for name in ("obs", "var"))
    shape = len(obs), len(var)
    return OnDisk(
        str(path), obs, var, _slots(root, "X", lost, shape).get("X"),
        _slots(root, "layers", lost, shape), _slots(root, "obsm", lost, shape[:1]),
        _raw(path, root, obs, lost, light=light), _records(root, lost),
        unreadable=lost, light=light,
    )  # fmt: skip


def _raw(
    path: Path, root: Any, obs: pd.DataFrame, lost: dict[str, str], *, light: bool
) -> OnDisk | None:
    """Return what an AnnData keeps as `raw`; None where there is none, or it cannot be read."""
    if "X" not in _keys(root, "raw"):
        return None
    inside: dict[str, str] = {}
    try:
        var = _table(root["raw"], "var", {})
        found = _slots(root["raw"], "X", inside, (len(obs), len(var)))
    except Exception as error:  # noqa: BLE001 (whatever a storage library raises)
        inside["X"] = f"{type(error).__name__}: {error}"
    if "X" in inside:
        lost["raw"] = inside["X"]
        return None
    return OnDisk(str(path), obs, var, found.get("X"), light=light)


def _records(root: Any, lost: dict[str, str]) -> dict[str, Any]:
    """Return where results came from, as verbs wrote it."""
    try:
        records = read_elem(root["uns/chreode"]) if "chreode" in _keys(root, "uns") else {}
    except Exception as error:  # noqa: BLE001 (whatever a storage library raises)
        lost["uns/chreode"] = f"{type(error).__name__}: {error}"
        return {}
    return {"chreode": records} if records else {}


def _refuse_old(path: Path, root: Any) -> None:
    if any(isinstance(root.get(slot), Array) for slot in ("obs", "var", "obsm", "uns")):
        raise StoreError(
            f"{path.name} was written by an anndata older than 0.7. Rewrite it once, in memory: "
            "anndata.read_h5ad(FILE).write_h5ad(FILE)."
        )


def _slots(root: Any, name: str, lost: dict[str, str], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what can be read of a slot, by key, and begins with `shape`; other keys are listed in `lost`."""
    found: dict[str, Any] = {}
    places = {"X": "X"} if name == "X" else {key: f"{name}/{key}" for key in _keys(root, name)}
    for key, place in places.items():
        try:
            values = _slot(root[place]) if place in root else None
            if values is not None and values.shape[: len(shape)] != shape:
                raise ValueError(f"its shape is {values.shape}, beside tables of {shape}")
        except Exception as error:  # noqa: BLE001 (whatever a storage library raises)
            lost[place] = f"{type(error).__name__}: {error}"
            continue
        if values is not None:
            found[key] = values
        elif place in root and root[place].attrs.get("encoding-type") != "null":
            lost[place] = f"it is stored as {root[place].attrs.get('encoding-type', 'no array')!r}"
    return found


def _keys(root: Any, name: str) -> Any:
    """Return the keys of a slot; anndata writes one that is None as an array of nothing."""
    slot = root.get(name)
    return () if slot is None or isinstance(slot, Array) else slot


def _slot(item: Any) -> Any:
    """Return a matrix on disk, or a table in memory; None for what no role can name."""
    if isinstance(item, Array):
        return DiskDense(item) if item.shape else None
    if "indptr" in item:
        return by_rows(sparse_dataset(item))
    return read_elem(item) if item.attrs.get("encoding-type") == "dataframe" else None


def names_of(root: Any, table: str) -> pd.Index:
    """Return the names of the rows of a table, as text: numbers would be taken for positions."""
    group = root[table]
    return pd.Index(read_elem(group[str(group.attrs["_index"])])).astype(str)


def _table(root: Any, name: str, lost: dict[str, str]) -> pd.DataFrame:
    """Return the columns of a table that can be read; the others are listed in `lost`.

    A column of a zarr of which pieces are absent is listed there too, unless there is one category alone.
    Masks are taken as they are read: zarr leaves out that of every column that lacks no value.
    """
    group = root[name]
    if group.attrs.get("encoding-type") != "dataframe":
        raise StoreError(
            f"{name} is no table as anndata writes one. Write the file anew with anndata, if it holds cells."
        )
    if group.attrs.get("encoding-version") != "0.2.0":
        table = read_elem(group)
        lost |= {f"{name}/{key}": why for key in group if (why := _pieces_lost(group[key]))}
        return table.set_axis(table.index.astype(str))
    index = str(group.attrs["_index"])
    if absent(group[index]):
        raise StoreError(f"{name}: pieces of the names are absent. Copy the folder again.")
    names, columns = names_of(root, name), dict[str, Any]()
    for key in map(str, group.attrs["column-order"]):
        try:
            values = read_elem(group[key])
            if values.shape != names.shape or values.dtype.kind == "V":
                raise ValueError(
                    f"{values.dtype} of shape {values.shape} for {counted(len(names), 'name')}"
                )
            columns[key] = values
            if why := _pieces_lost(group[key]):
                lost[f"{name}/{key}"] = why
        except Exception as error:  # noqa: BLE001 (whatever a storage library raises)
            lost[f"{name}/{key}"] = f"{type(error).__name__}: {error}"
    table = pd.DataFrame(columns, index=names)
    table.index.name = None if index == "_index" else index
    return table


def _pieces_lost(item: Any) -> str:
    """Say which pieces of a column are absent; nothing if none are, or nothing is lost by it."""
    if isinstance(item, Array):
        return left_out(item, len(absent(item))) if absent(item) else ""
    several = "categories" in item and item["categories"].shape[0] > 1
    parts = ("categories", "codes") if several else ("categories", "values")
    for array in (item[part] for part in parts if part in item):
        if absent(array):
            of = "the first category" if several and array.basename == "codes" else ""
            return left_out(array, len(absent(array)), of)
    return ""


def unique_names(part: OnDisk) -> pd.Index:
    """Return the names of the features, which are refused where they are not unique."""
    if not part.var_names.is_unique:
        twice = part.var_names[part.var_names.duplicated()][0]
        raise SchemaError(f"{part.path}: feature names are not unique ({twice!r}).")
    return part.var_names
