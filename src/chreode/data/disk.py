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

from ..config.sparse import refuse_ends
from ..errors import ChreodeError, StoreError, counted
from .foreign import refuse_codecs, refuse_elsewhere
from .memory import rows_of
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

    @cached_property
    def whole(self) -> Csr | np.ndarray:
        """All rows, in memory from the first time they are asked for."""
        return self[np.arange(self.shape[0])]

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
    """A dense matrix in a file; pieces of zarr that are absent count as lost."""

    sparse = False

    def __init__(self, array: Any) -> None:
        self._array, self.name = array, _name(array)
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self._width = math.prod(self.shape[1:])
        self.block = self._block((array.chunks or (0,))[0] * self._width, self._width)

    @cached_property
    def _intact(self) -> bool:
        if absent(self._array):
            raise _lost(self.name, self._array, len(absent(self._array)))
        return True

    def _read(self, rows: Int[np.ndarray, " r"]) -> np.ndarray:
        first, last = _runs(rows)
        assert self._intact
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
            ends = self._indptr_array[:]
        stored = self._data.shape[0], self._indices.shape[0]
        refuse_ends(self.name, ends, self.shape[0], stored, StoreError)
        ends = ends.astype(np.int64)
        refuse_absent(self.name, ends, self._indptr_array, self._indices, self._data)
        return ends

    def _read(self, rows: Int[np.ndarray, " r"]) -> sp.csr_matrix:
        first, last = _runs(rows)
        begin, end = self._indptr[first], self._indptr[last]
        indices, data = (_gather(self.name, a, begin, end) for a in (self._indices, self._data))
        ends = np.concatenate([[0], np.cumsum(self._indptr[rows + 1] - self._indptr[rows])])
        return rows_of(self.name, data, indices, ends, (len(rows), self.shape[1]), error=StoreError)


class DiskByColumns(DiskMatrix):
    """A CSC matrix in a file: read as a whole, and refused when some rows are asked for."""

    sparse = True

    def __init__(self, dataset: CSCDataset) -> None:
        group: Any = dataset.group
        self._parts = [group[part] for part in ("data", "indices", "indptr")]
        self.name = _name(group["data"])
        self.shape, self.dtype = tuple(map(int, dataset.shape)), group["data"].dtype
        self.block = 2

    @cached_property
    def whole(self) -> Csr:
        """All rows, in memory from the first time they are asked for."""
        with readable(self.name):
            data, indices, indptr = (part[:] for part in self._parts)
        refuse_ends(self.name, indptr, self.shape[1], (len(data), len(indices)), StoreError)
        refuse_absent(self.name, indptr.astype(np.int64), *reversed(self._parts))
        return rows_of(self.name, data, indices, indptr, self.shape, columns=True, error=StoreError)

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:  # noqa: ARG002 (nothing can be read)
        raise StoreError(
            f"{self.name} is stored by columns (CSC), so that single cells cannot be read from it. Rewrite "
            "it once by rows, on a machine with the memory: a = anndata.read_h5ad(FILE); a.X = a.X.tocsr(); "
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
    """Some columns of a matrix on disk or in memory, in another order."""

    def __init__(self, matrix: Any, columns: Int[np.ndarray, " g"]) -> None:
        self._matrix, self._columns, self.name = matrix, columns, _name(matrix)
        self.shape, self.dtype = (matrix.shape[0], len(columns)), matrix.dtype
        self.block, self.sparse = getattr(matrix, "block", 1), is_sparse(matrix)

    @cached_property
    def whole(self) -> Csr | np.ndarray:
        """All rows, in memory from the first time they are asked for."""
        return self._chosen(getattr(self._matrix, "whole", self._matrix))

    def _read(self, rows: Int[np.ndarray, " r"]) -> Any:
        return self._chosen(self._matrix[rows])

    def _chosen(self, found: Any) -> Any:
        return in_order(found, self._columns) if self.sparse else found[:, self._columns]


def by_rows(values: Any) -> Any:
    """Return the `Matrix` of what stands in a slot; what is in memory is returned as it is."""
    if isinstance(values, Array):
        return DiskDense(values)
    if isinstance(values, CSRDataset):
        return DiskSparse(values)
    return DiskByColumns(values) if isinstance(values, CSCDataset) else values


def refuse_elsewhere_in(values: Any) -> None:
    """Refuse what stands in a slot if it is of a file that takes data from others, or runs code."""
    group = values.group if isinstance(values, CSRDataset | CSCDataset) else values
    if isinstance(group, h5py.Group | h5py.Dataset):
        refuse_elsewhere(group.file)
    elif isinstance(group, zarr.Array):
        refuse_codecs(_name(group), group.metadata.to_dict())
    elif isinstance(group, zarr.Group):
        for part in group.array_values():
            refuse_codecs(_name(part), part.metadata.to_dict())


def is_sparse(values: Any) -> bool:
    """Return whether the zeros of a matrix are not stored, in memory or on disk."""
    return values.sparse if isinstance(values, DiskMatrix) else sp.issparse(values)


def _name(values: Any) -> str:
    if isinstance(values, h5py.Dataset):
        return f"{values.file.filename}:{values.name}"
    if isinstance(values, zarr.Array):
        return f"{getattr(values.store, 'root', values.store)}:{values.name}"
    return getattr(values, "name", "memory")


def absent(array: Any) -> list[tuple[int, ...]]:
    """Return which pieces (chunks, or shards) of a zarr array in a folder are absent.

    zarr leaves out a piece that holds its fill value alone, and reads one that a copy lost as if it did.
    """
    root = getattr(getattr(array, "store", None), "root", None)
    if not isinstance(array, zarr.Array) or not isinstance(root, Path):
        return []
    folder, size = root / array.path, array.shards or array.chunks
    stored = {str(Path(at, name)) for at, _, names in os.walk(folder) for name in names}
    grid = [math.ceil(n / s) for n, s in zip(array.shape, size, strict=True)]
    key = array.metadata.encode_chunk_key
    return [at for at in np.ndindex(*grid) if str(folder / key(at)) not in stored]


def left_out(array: Any, n: int, of: str = "") -> str:
    """Say that `n` pieces are absent, what they may be, and what helps; they hold `of`, if not a value."""
    of = of or repr(getattr(array.fill_value, "item", lambda: array.fill_value)())
    return (
        f"Its zarr array lacks {counted(n, 'piece')}. zarr leaves out pieces of {of} alone and keeps no "
        f"record of it, so these may as well be lost. If all of them hold {of} alone, write them: "
        "anndata.read_zarr(FILE).write_h5ad(NEW), or mudata.read_zarr(FILE).write_h5mu(NEW)"
    )


def refuse_absent(
    name: str, ends: Int[np.ndarray, " ends"], indptr: Any, indices: Any, data: Any
) -> None:
    """Refuse a sparse matrix that lost pieces, unless they must be what zarr reads in their place.

    Those are pieces behind the last row, and pieces of indices in which every row has one value at the most,
    so that all may be of the first column.
    """
    stored = int(ends[-1])
    if data.shape[0] and absent(indptr):
        raise _lost(name, indptr, len(absent(indptr)))
    lost = [at for at in absent(data) if at[0] * _piece(data) < stored]
    if lost:
        raise _lost(name, data, len(lost))
    inside = np.unique(ends)
    for at in absent(indices):
        begin, end = at[0] * _piece(indices), min((at[0] + 1) * _piece(indices), stored)
        if ((inside > begin) & (inside < end)).sum() < end - begin - 1:
            lost.append(at)
    if lost:
        raise _lost(name, indices, len(lost))


def _piece(array: Any) -> int:
    return int((array.shards or array.chunks)[0])


def _lost(name: str, array: Any, n: int) -> StoreError:
    return StoreError(f"{name}: {left_out(array, n)}. If not, copy or download the folder again.")


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
