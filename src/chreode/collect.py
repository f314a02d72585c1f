"""Gather new cells chunk by chunk, in memory or straight into an .h5ad file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem

from . import store
from .data.files import editable
from .errors import DataError, StoreError

#: Dense bytes that a result may have in memory.
MEMORY_LIMIT = 2 * 2**30
#: Values of one piece of a sparse matrix in a file; HDF5's own guess for an empty one is 30 times slower.
_STORED = 2**16


def refuse_what_cannot_be_kept(n: int, width: int, into: str | Path | None) -> None:
    """Say at once, before anything is computed, that a result has no place to go.

    Raises
    ------
    DataError
        If n x width float32 are too large for memory and `into` is not given.
    StoreError
        If `into` does not end in .h5ad.
    """
    size = 4 * n * width
    if into is None and size > MEMORY_LIMIT:
        raise DataError(
            f"{n:,} cells x {width:,} features are {size / 2**30:.1f} GiB dense, more than "
            f"the {MEMORY_LIMIT / 2**30:.0f} GiB built in memory. Stream them: into='out.h5ad'."
        )
    if into is not None and Path(into).suffix != ".h5ad":
        raise StoreError(f"into={str(into)!r}: expected a name that ends in .h5ad.")


def collect_cells(
    chunks: Iterable[np.ndarray],
    obs: pd.DataFrame,
    var_names: Iterable[str],
    uns: dict[str, Any],
    *,
    counts: bool,
    into: str | Path | None,
) -> AnnData | Path:
    """Return the cells of `chunks` as an AnnData, or write them to the file `into` and return its path.

    Parameters
    ----------
    chunks
        Dense blocks of cells x features, in the order of `obs`.
    counts
        Store whole numbers as sparse int32; otherwise dense float32.

    Raises
    ------
    StoreError
        If `into` cannot be written.
    """
    var = pd.DataFrame(index=pd.Index(list(var_names), dtype=object))
    if into is None:
        blocks = [_whole(c) if counts else c.astype(np.float32) for c in chunks]
        x: Any = np.zeros((0, len(var)), np.float32)
        if counts:
            x = (
                sp.vstack(blocks, format="csr")
                if blocks
                else sp.csr_matrix((0, len(var)), dtype=np.int32)
            )
        elif blocks:
            x = np.concatenate(blocks)
        return AnnData(x, obs=obs, var=var, uns=uns)
    into = Path(into)
    with store.aside(into) as path:
        cells = AnnData(obs=obs, var=var, uns=uns)
        cells.strings_to_categoricals()
        with store.hdf5(path) as (file, while_there_is_room):
            write_elem(file, "/", cells)
            append = _append_sparse if counts else _append_dense
            append(file, while_there_is_room(chunks), len(obs), len(var))
    return into


def copy_with(
    file: Path, target: Path, obsm: Mapping[str, np.ndarray], records: Mapping[str, str]
) -> None:
    """Write a copy of a data file with further slots: the rest is copied as it is, and not read.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr. It may be `target` itself.
    obsm
        Arrays by the name of their slot, a row per cell.
    records
        Entries of ``uns["chreode"]``.

    Raises
    ------
    StoreError
        If `target` cannot be written.
    """
    with store.aside(target) as made:
        (shutil.copytree if file.is_dir() else shutil.copyfile)(file, made)
        with editable(made) as root:
            for slot, items in (("obsm", obsm), ("uns", {}), ("uns/chreode", records)):
                if slot not in root:
                    write_elem(root, slot, {})
                for key, value in items.items():
                    write_elem(root[slot], key, value)


def _whole(block: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(np.rint(block).astype(np.int32))


def _append_sparse(file: h5py.File, chunks: Iterable[np.ndarray], n: int, width: int) -> None:
    empty: Any = sp.csr_matrix((0, width), dtype=np.int32)
    write_elem(file, "X", empty, dataset_kwargs={"chunks": (_STORED,)})
    stored = anndata.io.sparse_dataset(file["X"])
    for chunk in chunks:
        stored.append(_whole(chunk))
    assert stored.shape[0] == n


def _append_dense(file: h5py.File, chunks: Iterable[np.ndarray], n: int, width: int) -> None:
    x = file.create_dataset("X", (n, width), dtype="f4", chunks=(min(n, 256) or 1, width or 1))
    x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for chunk in chunks:
        x[start : start + len(chunk)] = chunk
        start += len(chunk)
