"""Matrices in memory, whatever they came as: CSR or NumPy, and sound before C code reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Shaped

from ..config.sparse import refuse_ends, refuse_outside
from ..errors import ChreodeError, DataError, SchemaError
from .source import Csr


def in_memory(values: Any, name: str) -> Csr | np.ndarray:
    """Return a matrix as CSR, sorted and without duplicates, or as a NumPy array; the user's own is kept.

    A dask array is computed. What is masked is NaN: not measured.

    Raises
    ------
    DataError
        If a sparse matrix is damaged.
    SchemaError
        If this is no matrix.
    """
    if hasattr(values, "compute") and hasattr(values, "dask"):
        values = values.compute()
    if sp.issparse(values):
        return _sparse(values, name)
    if isinstance(values, pd.DataFrame):
        values = _table(values)
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, np.asarray(values.data))
    try:
        array = np.asarray(values)
    except Exception as error:
        raise SchemaError(
            f"{name} holds a {type(values).__name__}, which is no matrix ({error}). Make it a NumPy array "
            "or scipy.sparse.csr_matrix."
        ) from error
    if array.ndim != 2:
        raise SchemaError(f"{name}: expected cells x features, got {array.shape}.")
    return array


def _table(values: pd.DataFrame) -> np.ndarray:
    if all(kind.kind in "fiub" for kind in values.dtypes):
        extended = any(not isinstance(kind, np.dtype) for kind in values.dtypes)
        return values.to_numpy(np.float64, na_value=np.nan) if extended else values.to_numpy()
    return values.to_numpy()


def _sparse(values: Any, name: str) -> Csr:
    if values.format not in ("csr", "csc"):
        try:
            found = values.tocoo()  # made anew, which raises where an index is out of range
            values = sp.coo_matrix((found.data, (found.row, found.col)), found.shape).tocsr()
        except ValueError as error:
            raise DataError(f"{name} is damaged ({error}). Make it again.") from error
    data, indices, indptr = map(np.asarray, (values.data, values.indices, values.indptr))
    made = rows_of(name, data, indices, indptr, values.shape, columns=values.format == "csc")
    return sp.csr_array(made) if isinstance(values, sp.sparray) else made


def rows_of(
    name: str,
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    shape: tuple[int, ...],
    *,
    columns: bool = False,
    error: type[ChreodeError] = DataError,
) -> sp.csr_matrix:
    """Return the CSR matrix of these parts, or of those of a CSC (`columns`), once they are sound.

    Indices and ends have one type, which SciPy would otherwise make anew for every few rows.
    """
    major, minor = shape[::-1] if columns else shape
    refuse_ends(name, indptr, major, (len(data), len(indices)), error)
    if data.ndim != 1:
        raise error(
            f"{name} is damaged: its stored values have the shape {data.shape}. Make it again."
        )
    # rows, which SciPy need not turn, are refused elsewhere
    if columns and data.dtype.kind not in "fiubc":
        raise error(f"{name} holds {data.dtype}, expected numbers.")
    end = int(indptr[-1])
    data, indices = computable(data[:end]), indices[:end]
    refuse_outside(name, indices, minor, error)
    kind = np.int32 if max(end, *shape) < 2**31 else np.int64
    parts = data, indices.astype(kind, copy=False), indptr.astype(kind, copy=False)
    made = sp.csc_matrix(parts, shape).tocsr() if columns else sp.csr_matrix(parts, shape)
    if data.dtype.kind in "fiub" and not made.has_canonical_format:
        made = made.copy()  # the user's own stays as it is
        made.sum_duplicates()
    return made


def computable(data: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return stored values in a type that SciPy computes with: of this machine's order, and no half."""
    kind = np.dtype(np.float32) if data.dtype == np.float16 else data.dtype.newbyteorder("=")
    return data.astype(kind, copy=False)
