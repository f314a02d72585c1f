"""Rows of a data set, read a few cells at a time; sparse until the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..schema import Spec
from .batch import CellBatch, SparseRows

Csr: TypeAlias = sp.csr_matrix | sp.csr_array

#: Dense values that one streamed chunk may hold (32 MiB of float32 per matrix).
CHUNK_VALUES = 2**23
#: Blocks of neighbouring rows that are read together, and mixed, where a matrix is on disk.
WINDOW_BLOCKS = 256


@runtime_checkable
class Matrix(Protocol):
    """Cells x features: a CSR matrix, a NumPy array, or anything on disk that is sliced by rows alike.

    One on disk has an attribute `block` too: how many neighbouring rows are cheap to read together.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells, features."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of the numbers."""
        ...

    def __getitem__(self, rows: np.ndarray) -> Csr | np.ndarray:
        """Return the rows asked for, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """The cells of one data object, aligned to a `Spec`.

    Attributes
    ----------
    spec
        Names of the features and categories that the tensors follow.
    obs_names
        Names of the cells, for messages and results.
    matrices
        Matrix role -> cells x features, as stored.
    where
        For roles that some cells lack: row of each cell in its matrix, -1 where it has none.
    take
        For roles whose features differ from the spec: column of each trained feature, -1 if missing.
    columns
        Codes, and numbers in the user's units, one row per cell.
    control
        Which cells are unperturbed, where the schema says what `perturbation` that is.
    """

    spec: Spec
    obs_names: np.ndarray
    matrices: Mapping[str, Matrix]
    where: Mapping[str, Int[np.ndarray, " cells"]] = field(default_factory=dict)
    take: Mapping[str, Int[np.ndarray, " g"]] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    control: Bool[np.ndarray, " cells"] | None = None

    def __len__(self) -> int:
        return len(self.obs_names)

    @cached_property
    def block(self) -> int:
        """Neighbouring cells that are cheap to read together: 1 in memory.

        The heaviest of several matrices on disk decides: it fills most of a window.
        """
        blocks = [getattr(matrix, "block", 1) for matrix in self.matrices.values()]
        return min((b for b in blocks if b > 1), default=1)

    @cached_property
    def _chunk(self) -> int:
        """Cells whose dense values are few enough to be held at once."""
        widest = max((len(self.spec.features[role]) for role in self.matrices), default=1)
        return int(np.clip(CHUNK_VALUES // max(widest, 1), 16, 4096))

    def measured(self, role: str) -> Bool[np.ndarray, " cells"]:
        """Return which cells have a row in the matrix of `role`."""
        return self.where[role] >= 0 if role in self.where else np.ones(len(self), bool)

    def scaled(self, role: str) -> Float64[np.ndarray, " cells"]:
        """Return the numbers of a role, such as ``time``, centred and scaled as modules see them."""
        return self.spec.inside(role, self.columns[role])

    def batch(self, rows: Int[np.ndarray, " b"], device: str = "cpu") -> CellBatch:
        """Return the cells at `rows`, in that order, as tensors on `device`."""
        views = {role: self._view(role, rows, device) for role in self.matrices}
        present = {r: torch.from_numpy(w[rows] >= 0).to(device) for r, w in self.where.items()}
        observed = {r: torch.from_numpy(t >= 0).to(device) for r, t in self.take.items()}
        observed = {r: mask for r, mask in observed.items() if not bool(mask.all())}
        narrowed = {k: self.spec.narrowed(k, v[rows]) for k, v in self.columns.items()}
        columns = {k: torch.from_numpy(v).to(device) for k, v in narrowed.items()}
        return CellBatch(torch.from_numpy(rows).to(device), views, present, observed, columns)

    def pieces(self, rows: Int[np.ndarray, " n"] | None = None) -> list[Int[np.ndarray, " _"]]:
        """Cut `rows` (default: all cells), in order, into chunks of bounded size."""
        rows = np.arange(len(self)) if rows is None else rows
        return [rows[start : start + self._chunk] for start in range(0, len(rows), self._chunk)]

    def batches(
        self, rows: Int[np.ndarray, " n"] | None = None, device: str = "cpu"
    ) -> Iterator[CellBatch]:
        """Yield `rows` (default: all cells) in order, in chunks of bounded size."""
        return self.minibatches(self.pieces(rows), device)

    def minibatches(
        self, rows: Iterable[Int[np.ndarray, " _"]], device: str = "cpu"
    ) -> Iterator[CellBatch]:
        """Yield the cells of each item of `rows`, as `batch` does.

        Some items are gathered together, which takes as long as one alone. From disk, those of a
        window (see `in_windows`) are read together in the order of the file, and the next window is
        read while this one is consumed.
        """
        if self.block == 1:
            for together in in_windows(rows, self._chunk // 4):
                sizes = [len(some) for some in together]
                yield from self.batch(np.concatenate(together), device).split(sizes)
            return
        ahead: tuple[list[np.ndarray], Future[Source]] | None = None
        with ThreadPoolExecutor(max_workers=1) as reader:
            for window in chain(in_windows(rows, WINDOW_BLOCKS * self.block), [None]):
                now = ahead
                ahead = (window, reader.submit(self._holding, window)) if window else None
                if now is not None:
                    yield from now[1].result().minibatches(now[0], device)

    def _holding(self, window: list[np.ndarray]) -> Source:
        """Return this source with the cells of `window` in memory, and no others."""
        cells = np.unique(np.concatenate(window))
        matrices = dict(self.matrices)
        for role, matrix in self.matrices.items():
            if getattr(matrix, "block", 1) > 1:
                at = self.where[role][cells] if role in self.where else cells
                rows = np.unique(at[at >= 0])
                matrices[role] = _Held(rows, matrix[rows])
        return replace(self, matrices=matrices)

    def _view(self, role: str, rows: Int[np.ndarray, " b"], device: str) -> Tensor | SparseRows:
        width, take, where = (
            len(self.spec.features[role]),
            self.take.get(role),
            self.where.get(role),
        )
        n, into = len(rows), np.arange(len(rows))
        if where is not None:
            into = np.flatnonzero(where[rows] >= 0)
            rows = where[rows[into]]
        block: Any = self.matrices[role][rows]
        if sp.issparse(block):
            block = block.tocsr() if take is None else in_order(block.tocsr(), take)
            return _as_rows(block, into, n).to(device)
        out = torch.zeros((n, width), device=device)
        columns = slice(None) if take is None else take >= 0
        dense = torch.from_numpy(
            np.asarray(block if take is None else block[:, take[columns]], np.float32)
        )
        out[torch.from_numpy(into)[:, None], torch.arange(width)[columns]] = dense.to(device)
        return out


@dataclass(frozen=True, eq=False)
class _Held:
    """Some rows of a matrix, asked for by their numbers in the whole of it."""

    rows: Int[np.ndarray, " held"]
    values: Csr | np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> Csr | np.ndarray:
        return self.values[np.searchsorted(self.rows, rows)]


def in_windows(
    minibatches: Iterable[Int[np.ndarray, " _"]], size: int
) -> Iterator[list[Int[np.ndarray, " _"]]]:
    """Group minibatches that follow each other: as many as hold `size` rows, and at least one.

    Samplers mix within the same groups as readers read, so every row is read once.
    """
    window: list[np.ndarray] = []
    n = 0
    for rows in minibatches:
        if window and n + len(rows) > size:
            yield window
            window, n = [], 0
        window.append(rows)
        n += len(rows)
    if window:
        yield window


def in_order(block: Csr, take: Int[np.ndarray, " g"]) -> Csr:
    """Return the columns `take` (-1: an empty one)."""
    position = np.full(block.shape[1], -1)
    position[take[take >= 0]] = np.flatnonzero(take >= 0)
    column = position[block.indices]
    kept = column >= 0
    ends = np.concatenate([[0], np.cumsum(kept)])[block.indptr]
    found = sp.csr_matrix((block.data[kept], column[kept], ends), (block.shape[0], len(take)))
    found.sort_indices()
    return found


def _as_rows(block: Csr, into: Int[np.ndarray, " r"], n: int) -> SparseRows:
    """Return `n` rows, of which `into` are those of `block` and the others are empty."""
    indptr = np.zeros(n + 1, np.int64)
    indptr[into + 1] = np.diff(block.indptr)
    return SparseRows(
        torch.from_numpy(np.cumsum(indptr)),
        torch.from_numpy(block.indices.astype(np.int64)),
        torch.from_numpy(block.data.astype(np.float32)),
        block.shape[1],
    )
