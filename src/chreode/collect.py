"""Gather new cells chunk by chunk, in memory or straight into an .h5ad file."""

from __future__ import annotations

from collections.abc import Iterable
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
from .errors import DataError, StoreError

#: Dense bytes that a result may have in memory.
MEMORY_LIMIT = 2 * 2**30


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
        empty: Any = sp.csr_matrix((len(obs), len(var)), dtype=np.int32)
        AnnData(empty if counts else None, obs=obs, var=var, uns=uns).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            (_append_sparse if counts else _append_dense)(file, chunks, len(obs), len(var))
    return into


def _whole(block: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(np.rint(block).astype(np.int32))


def _append_sparse(file: h5py.File, chunks: Iterable[np.ndarray], n: int, width: int) -> None:
    del file["X"]
    write_elem(file, "X", sp.csr_matrix((0, width), dtype=np.int32))
    stored = anndata.io.sparse_dataset(file["X"])
    for chunk in chunks:
        stored.append(_whole(chunk))
    assert stored.shape[0] == n


def _append_dense(file: h5py.File, chunks: Iterable[np.ndarray], n: int, width: int) -> None:
    if "X" in file:
        del file["X"]
    x = file.create_dataset("X", (n, width), dtype="f4", chunks=(min(n, 256) or 1, width or 1))
    x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for chunk in chunks:
        x[start : start + len(chunk)] = chunk
        start += len(chunk)
