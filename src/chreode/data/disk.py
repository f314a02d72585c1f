"""Matrices that stay in a file and are read by rows: sparse or dense, of HDF5 or zarr."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset
from jaxtyping import Int, Shaped

from ..errors import ChreodeError, StoreError
from .source import Csr, in_order

#: Stored values that a block holds at the least and, where chunks are large, at the most.
BLOCK_VALUES = (2**13, 2**16)
#: Values that are read and dropped rather than asked around.
_GAP_VALUES = 2**12
#: Values in one read where there are gaps in it.
_READ_VALUES = 2**20

Array: TypeAlias = h5py.Dataset | zarr.Array


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever a storage library raises into a `StoreError` that names the file."""
    try:
        yield
    except ChreodeError:
        raise
    except Exception as error:
        raise StoreError(
            f"{name} cannot be read ({type(error).__name__}: {error}). It may be cut short, moved, or "
            "not be what its name says: copy or download it again, compare its size, and open it anew."
        ) from error


class DiskMatrix:
    """What all matrices on disk share: rows in any order, from rows in rising order."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    block: int
    sparse: bool

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> Csr | np.ndarray:
        wanted = np.unique(rows)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.shape[0]:
            raise IndexError(f"rows of {self.name} go from 0 to {self.shape[0] - 1}")
        held = self._read(wanted)
        return held if np.array_equal(wanted, rows) else held[np.searchsorted(wanted, rows)]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Return the whole, dense."""
        whole: Any = self[np.arange(self.shape[0])]
        return np.asarray(whole.toarray() if sp.issparse(whole) else whole, dtype)

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:
        raise NotImplementedError

    def _block(self, chunk: int, width: float) -> int:
        """Return the rows of a block, for chunks of so many values and rows of so many.

        A smaller block would be mixed better, but most of every chunk would be read in vain.
        """
        return max(2, round(float(np.clip(chunk / 2, *BLOCK_VALUES)) / max(width, 1)))


class DiskDense(DiskMatrix):
    """A dense matrix in a file."""

    sparse = False

    def __init__(self, array: Any) -> None:
        self._array, self.name = array, _name(array)
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self._width = math.prod(self.shape[1:])
        self.block = self._block((array.chunks or (0,))[0] * self._width, self._width)

    def _read(self, rows: Int[np.ndarray, " r"]) -> np.ndarray:
        first, last = _runs(rows)
        return _gather(self.name, self._array, first, last, max(self._width, 1))


class DiskSparse(DiskMatrix):
    """A CSR matrix in a file: `indptr` in memory, `indices` and `data` on disk."""

    sparse = True

    def __init__(self, dataset: CSRDataset) -> None:
        group: Any = dataset.group
        self._indptr_array, self._indices, self._data = (
            group[part] for part in ("indptr", "indices", "data")
        )
        self.name = _name(self._data)
        self.shape, self.dtype = tuple(map(int, dataset.shape)), self._data.dtype
        mean = self._data.shape[0] / max(self.shape[0], 1)
        self.block = self._block((self._data.chunks or (0,))[0], mean)

    @cached_property
    def _indptr(self) -> Int[np.ndarray, " ends"]:
        """Where each row begins, and where the last one ends."""
        with readable(self.name):
            ends = self._indptr_array[:].astype(np.int64)
        stored = min(self._data.shape[0], self._indices.shape[0])
        falls = len(ends) > 1 and bool((np.diff(ends) < 0).any())
        if len(ends) != self.shape[0] + 1 or ends[0] != 0 or ends[-1] > stored or falls:
            raise StoreError(
                f"{self.name} is damaged: its indptr does not describe {self.shape[0]:,} rows of "
                f"{stored:,} stored values. Copy or write the file again."
            )
        lacking = _lacking(self._indices)
        if lacking and stored > self.shape[0]:  # so they cannot all be those of the first column
            raise StoreError(
                f"{self.name} is damaged: {lacking:,} pieces of its zarr array are absent, and would "
                "be read as zeros. Copy or write the folder again."
            )
        return ends

    def _read(self, rows: Int[np.ndarray, " r"]) -> sp.csr_matrix:
        first, last = _runs(rows)
        begin, end = self._indptr[first], self._indptr[last]
        indices = _gather(self.name, self._indices, begin, end)
        width = self.shape[1]
        if len(indices) and not 0 <= indices.min() <= indices.max() < width:
            raise StoreError(
                f"{self.name} is damaged: column {int(indices.max()):,} in a matrix of {width:,} "
                "features. Copy or write the file again."
            )
        # positions as int32 where they fit: scipy would look through all of them to find out
        kind = np.int32 if max(len(indices), width) < 2**31 else np.int64
        ends = np.concatenate([[0], np.cumsum(self._indptr[rows + 1] - self._indptr[rows])])
        found = sp.csr_matrix(
            (_gather(self.name, self._data, begin, end), indices.astype(kind), ends.astype(kind)),
            (len(rows), width),
        )
        found.sum_duplicates()  # and sorted; does nothing where a file is in order
        return found


class DiskByColumns(DiskMatrix):
    """A CSC matrix in a file: it is refused when rows are asked for."""

    sparse = True

    def __init__(self, dataset: CSCDataset) -> None:
        group: Any = dataset.group
        self.name = _name(group["data"])
        self.shape, self.dtype = tuple(map(int, dataset.shape)), group["data"].dtype
        self.block = 2

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:  # noqa: ARG002 (nothing can be read)
        raise StoreError(
            f"{self.name} is stored by columns (CSC), of which no few rows can be read. Rewrite it once "
            "by rows, on a machine with the memory: a = anndata.read_h5ad(FILE); a.X = a.X.tocsr(); "
            "a.write_h5ad(FILE), and so for layers."
        )


class Stacked(DiskMatrix):
    """Rows of several matrices, one behind the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts, self.name = parts, " + ".join(_name(p) for p in parts[:3])
        self._ends = np.cumsum([p.shape[0] for p in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = np.result_type(*(p.dtype for p in parts))
        self.sparse = any(is_sparse(p) for p in parts)
        self.block = min((b for b in (getattr(p, "block", 1) for p in parts) if b > 1), default=1)

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:
        owner = np.searchsorted(self._ends, rows, "right")
        begin = self._ends - [p.shape[0] for p in self._parts]
        blocks = [
            self._parts[i][rows[owner == i] - begin[i]]
            for i in (np.unique(owner) if len(rows) else [0])
        ]
        if self.sparse:
            return sp.vstack([sp.csr_matrix(block) for block in blocks], format="csr")
        return np.concatenate(blocks)


class Selected(DiskMatrix):
    """Some columns of a matrix, in another order."""

    def __init__(self, matrix: Any, columns: Int[np.ndarray, " g"]) -> None:
        self._matrix, self._columns, self.name = matrix, columns, _name(matrix)
        self.shape, self.dtype = (matrix.shape[0], len(columns)), matrix.dtype
        self.block, self.sparse = getattr(matrix, "block", 1), is_sparse(matrix)

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:
        found = self._matrix[rows]
        return in_order(found, self._columns) if self.sparse else found[:, self._columns]


def by_rows(values: Any) -> Any:
    """Return the `Matrix` of what stands in a slot; what is in memory is returned as it is."""
    if isinstance(values, Array):
        return DiskDense(values)
    if isinstance(values, CSRDataset):
        return DiskSparse(values)
    return DiskByColumns(values) if isinstance(values, CSCDataset) else values


def is_sparse(values: Any) -> bool:
    """Return whether the zeros of a matrix are not stored, in memory or on disk."""
    return values.sparse if isinstance(values, DiskMatrix) else sp.issparse(values)


def _name(values: Any) -> str:
    if isinstance(values, h5py.Dataset):
        return f"{values.file.filename}:{values.name}"
    if isinstance(values, zarr.Array):
        return f"{getattr(values.store, 'root', values.store)}:{values.name}"
    return getattr(values, "name", "memory")


def _lacking(array: Any) -> int:
    """Return how many chunks of a zarr array are absent: of zeros alone, or lost by a copy."""
    return array.nchunks - array.nchunks_initialized if isinstance(array, zarr.Array) else 0


def _runs(
    rows: Int[np.ndarray, " r"],
) -> tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]]:
    """Return where each run of neighbouring rows begins and ends; `rows` rise."""
    breaks = np.flatnonzero(np.diff(rows) > 1)
    first, last = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(rows) - 1]])
    return (rows[first], rows[last] + 1) if len(rows) else (rows, rows)


def _gather(
    name: str,
    array: Any,
    begin: Int[np.ndarray, " runs"],
    end: Int[np.ndarray, " runs"],
    width: int = 1,
) -> Shaped[np.ndarray, "n ..."]:
    """Return ``array[begin[0]:end[0]]``, ``array[begin[1]:end[1]]``, … one behind the other.

    Runs that lie near each other, or in one chunk, are one read. `width` is how many values an item holds.
    """
    chunk = (array.chunks or (1,))[0]
    most = max(_READ_VALUES, 2 * chunk * width)
    out = np.empty((int((end - begin).sum()), *array.shape[1:]), array.dtype)
    starts, stops = begin.tolist(), end.tolist()
    i = filled = 0
    with readable(name):
        while i < len(starts):
            j = i + 1
            while (
                j < len(starts)
                and (
                    (starts[j] - stops[j - 1]) * width <= _GAP_VALUES
                    or starts[j] // chunk == (stops[j - 1] - 1) // chunk
                )
                and (stops[j] - starts[i]) * width <= most
            ):
                j += 1
            origin = starts[i]
            part = array[origin : stops[j - 1]]
            for start, stop in zip(starts[i:j], stops[i:j], strict=True):
                out[filled : filled + stop - start] = part[start - origin : stop - origin]
                filled += stop - start
            i = j
        _refuse_lost(array)
    return out


def _refuse_lost(array: Any) -> None:
    """Refuse what went missing while it was open: HDF5 and zarr read it as zeros."""
    if isinstance(array, zarr.Array):
        folder = getattr(array.store, "root", None)
        lost = isinstance(folder, Path) and not folder.exists()
    else:
        file, handle = array.file, array.file.id
        local = file.driver == "sec2" and file.mode == "r"
        lost = local and os.fstat(handle.get_vfd_handle()).st_size < handle.get_filesize()
    if lost:
        raise EOFError("it was removed, or lost its end, while it was open")
