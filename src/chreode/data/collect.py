"""Gather new cells chunk by chunk, in memory or straight into an .h5ad file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem

from .. import store
from ..errors import ChreodeError, DataError, StoreError, counted, warn
from .disk import readable
from .files import editable, names_of
from .foreign import refuse_foreign
from .read import Data

#: A few cells: a dense block by modality.
Blocks: TypeAlias = Mapping[str, np.ndarray]
#: Dense bytes that a result may have in memory.
MEMORY_LIMIT = 2 * 2**30
#: Values of one piece of a sparse matrix in a file; HDF5's own guess for an empty one is 30 times slower.
_STORED = 2**16


def refuse_what_cannot_be_kept(
    n: int, width: int, into: str | Path | None, suffix: str = ".h5ad"
) -> None:
    """Say at once, before anything is computed, that a result has no place to go.

    Raises
    ------
    DataError
        If n x width float32 are too large for memory and `into` is not given.
    StoreError
        If `into` does not end in `suffix`, is a folder, or is a file of cells that chreode did not write.
    """
    size = 4 * n * width
    if into is None and size > MEMORY_LIMIT:
        raise DataError(
            f"{counted(n, 'cell')} x {counted(width, 'feature')} take {size / 2**30:.1f} GiB, more than "
            f"the {MEMORY_LIMIT / 2**30:.0f} GiB built in memory. Stream them: into='out{suffix}'."
        )
    if into is not None and Path(into).suffix != suffix:
        kinds = " for cells of several modalities" if suffix == ".h5mu" else ""
        raise StoreError(f"{str(into)!r}: expected a name that ends in {suffix}{kinds}.")
    if into is not None:
        store.refuse_folder(Path(into))
        refuse_to_replace_cells(Path(into))


def refuse_to_replace_cells(target: Path) -> None:
    """Refuse to replace a file of cells that chreode did not write: it may be the user's own data.

    Raises
    ------
    StoreError
        If one is at `target`. An empty file or folder is none.
    """
    if target.is_dir():
        ours = not any(target.iterdir()) or (target / "uns" / "chreode").is_dir()
    else:
        ours = not target.exists() or not target.stat().st_size or _is_ours(target)
    if not ours:
        raise StoreError(
            f"{target} is there already, and chreode did not write it (it has no uns['chreode']): it may "
            "be your data. Choose another name, or move this file away first."
        )


def _is_ours(file: Path) -> bool:
    try:
        with h5py.File(file, "r") as root:
            return "uns/chreode" in root
    except OSError:  # no HDF5, or cut short: chreode writes whole files alone
        return False


def collect_cells(
    chunks: Iterable[Blocks],
    obs: pd.DataFrame,
    features: Mapping[str, pd.DataFrame],
    uns: dict[str, Any],
    *,
    counts: bool,
    into: str | Path | None,
) -> Data | Path:
    """Return the cells of `chunks` as new data, or write them to the file `into` and return its path.

    Parameters
    ----------
    chunks
        Dense blocks of cells x features by modality, in the order of `obs`.
    features
        The ``var`` of each modality. One alone makes an AnnData with it in ``X``, several a MuData of such.
    counts
        Store whole numbers as sparse int64; otherwise dense float32.

    Raises
    ------
    StoreError
        If `into` cannot be written.
    DataError
        If counts are no finite numbers that 64 bits hold.
    """
    if into is not None:
        obs = storable(obs)
        features = {name: storable(var, "var") for name, var in features.items()}
    empty = {name: AnnData(obs=obs, var=var) for name, var in features.items()}
    if into is None:
        gathered: dict[str, list[Any]] = {name: [] for name in features}
        for chunk in chunks:
            for name, block in chunk.items():
                gathered[name].append(_whole(block) if counts else block.astype(np.float32))
        for name, blocks in gathered.items():
            empty[name].X = _stacked(blocks, len(empty[name].var), counts=counts)
        return _joined(empty, obs, uns)
    into = Path(into)
    with store.aside(into) as path:
        cells: Any = _joined(empty, obs, uns)
        for part in empty.values():
            part.strings_to_categoricals()
        if len(empty) > 1:
            import mudata

            # as in `_joined`
            with mudata.set_options(pull_on_update=False), writable(into):
                cells.write(path)
        with store.hdf5(path, "r+" if len(empty) > 1 else "w") as (file, until_full):
            if len(empty) == 1:
                with writable(into):
                    write_elem(file, "/", cells)
            places = {name: f"mod/{name}/X" if len(empty) > 1 else "X" for name in empty}
            shapes = {places[name]: part.shape for name, part in empty.items()}
            placed = ({places[k]: v for k, v in c.items()} for c in until_full(chunks))
            (_append_sparse if counts else _append_dense)(file, placed, shapes)
    return into


def storable(obs: pd.DataFrame, slot: str = "obs") -> pd.DataFrame:
    """Return a table that a file can hold: what is neither text nor numbers becomes text.

    Periods, dates, intervals, lists and columns of several types have no form in an .h5ad. A warning
    names the columns that were turned.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     storable(pd.DataFrame({"age": [3.0], "day": pd.period_range("2020-01-01", periods=1, freq="D")}))
       age         day
    0  3.0  2020-01-01
    """
    for name in map(str, obs.columns):
        if "\0" in name or not name.strip("."):
            raise DataError(f"{slot} has a column {name!r}, which a file cannot hold: rename it.")
    turned = [i for i in range(obs.shape[1]) if not _has_a_form(obs.iloc[:, i])]
    out = obs.set_axis(_storable_names(obs.columns), axis=1)
    out.index = out.index.astype(object)  # anndata refuses names of pandas' own text
    for i in range(obs.shape[1]):
        out.isetitem(i, _plain(obs.iloc[:, i]))
    if out.index.name in out:  # anndata takes such a column for the names, and refuses another
        out = out.rename_axis(index=None)
    for i in turned:
        values = obs.iloc[:, i].astype(object)
        out.isetitem(i, values.map(str).where(values.notna(), None))
    if turned:
        names = ", ".join(repr(out.columns[i]) for i in turned)
        warn(f"{slot}: {names} written as text, for a file holds text and numbers.")
    changed = [f"{a!r} as {b!r}" for a, b in zip(map(str, obs), out, strict=True) if a != b]
    if changed:
        warn(
            f"{slot}: {', '.join(changed)}, for a file holds no name twice, takes a slash for a "
            "path, and keeps '_index' for itself."
        )
    return out


def _storable_names(columns: pd.Index) -> list[str]:
    """Return names that the columns of a table in a file can have."""
    found: list[str] = []
    for name in map(str, columns):
        free = name.replace("/", "_")
        while free in found or free == "_index":
            free += "_"
        found.append(free)
    return found


def _plain(values: pd.Series) -> pd.Series:
    """Return numbers and empty columns in a form that anndata writes, with the same values."""
    if isinstance(values.dtype, pd.SparseDtype):
        return values.sparse.to_dense()
    if values.dtype == object and values.isna().all():
        return pd.Series(np.nan, values.index)
    if pd.api.types.is_extension_array_dtype(values) and values.dtype.kind == "f":
        return values.astype(np.float64)
    return values


@contextmanager
def writable(into: Path) -> Iterator[None]:
    """Turn whatever anndata raises of what it cannot write into a `StoreError`."""
    try:
        yield
    except (ChreodeError, OSError):  # which `store.aside` explains
        raise
    except Exception as error:
        raise StoreError(
            f"{into} cannot be written: anndata has no form for something in these cells ({error}). Turn the "
            "column into numbers or plain text, or leave it out."
        ) from error


def _has_a_form(values: pd.Series | pd.Index) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return _has_a_form(values.dtype.categories)
    if values.dtype == object:
        return pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty")
    known = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_string_dtype(values)
    return known and not pd.api.types.is_complex_dtype(values)


def copy_with(
    file: Path,
    names: pd.Index,
    target: Path,
    slots: Mapping[str, Mapping[str, Any]],
    records: Mapping[str, str],
) -> None:
    """Write a copy of a data file with further slots: the rest is copied as it is, and not read.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr. It may be `target` itself.
    names
        Those of the cells that were read from it.
    slots
        What to write into ``obsm`` (arrays) and ``obs`` (columns), by name: a row per cell.
    records
        Entries of ``uns["chreode"]``.

    Raises
    ------
    StoreError
        If `target` cannot be written, or `file` holds other cells by now.
    """
    with readable(str(file)):
        refuse_foreign(file)
    store.refuse_folder(target)
    with store.aside(target) as made:
        if file.is_dir():
            shutil.copytree(file, made, symlinks=True)  # none is followed
        else:
            shutil.copyfile(file, made)
        with editable(made) as root:
            if not names.equals(names_of(root, "obs")):
                raise StoreError(
                    f"{file} was replaced while it was read: it holds other cells now. Run this again."
                )
            for slot, items in (*slots.items(), ("uns", {}), ("uns/chreode", records)):
                if slot not in root:
                    write_elem(root, slot, {})
                for key, value in items.items():
                    write_elem(root[slot], key, value)
            if "obs" in slots:
                order = root["obs"].attrs["column-order"]
                known = [name.decode() if isinstance(name, bytes) else str(name) for name in order]
                root["obs"].attrs["column-order"] = [*dict.fromkeys([*known, *slots["obs"]])]


def _joined(parts: Mapping[str, AnnData], obs: pd.DataFrame, uns: dict[str, Any]) -> Data:
    if len(parts) == 1:
        (cells,) = parts.values()
        cells.uns.update(uns)
        return cells
    import mudata

    with mudata.set_options(pull_on_update=False):  # 0.3 would copy columns, and warn of 0.4
        cells = mudata.MuData(dict(parts))
    cells.obs = obs
    cells.uns.update(uns)
    return cells


def _stacked(blocks: list[Any], width: int, *, counts: bool) -> Any:
    if not blocks:
        return (
            sp.csr_matrix((0, width), dtype=np.int64)
            if counts
            else np.zeros((0, width), np.float32)
        )
    return sp.vstack(blocks, format="csr") if counts else np.concatenate(blocks)


def _whole(block: np.ndarray) -> sp.csr_matrix:
    if not bool((np.abs(block) < 2.0**63).all()):  # false where there is NaN, too
        raise DataError(
            "The model drew counts that are not finite, or above 9.2e18. Look at the depths of the cells "
            "it learned from, and at the conditions asked for."
        )
    return sp.csr_matrix(np.rint(block).astype(np.int64))


def _append_sparse(file: h5py.File, chunks: Iterable[Blocks], shapes: Mapping[str, Any]) -> None:
    stored = {}
    for place, (_, width) in shapes.items():
        empty: Any = sp.csr_matrix((0, width), dtype=np.int64)
        write_elem(file, place, empty, dataset_kwargs={"chunks": (_STORED,)})
        stored[place] = anndata.io.sparse_dataset(file[place])
    for chunk in chunks:
        for place, block in chunk.items():
            stored[place].append(_whole(block))
    assert all(stored[place].shape == shape for place, shape in shapes.items())


def _append_dense(file: h5py.File, chunks: Iterable[Blocks], shapes: Mapping[str, Any]) -> None:
    for place, (n, width) in shapes.items():
        x = file.create_dataset(
            place, (n, width), dtype="f4", chunks=(min(n, 256) or 1, width or 1)
        )
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for chunk in chunks:
        for place, block in chunk.items():
            file[place][start : start + len(block)] = block
        start += len(next(iter(chunk.values())))
