"""Rows of a data set, read a few cells at a time; sparse until the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..schema import Spec
from .batch import CellBatch, SparseRows

Csr: TypeAlias = sp.csr_matrix | sp.csr_array

#: Dense values that one streamed chunk may hold (32 MiB of float32 per matrix).
CHUNK_VALUES = 2**23


@runtime_checkable
class Matrix(Protocol):
    """Cells x features: a CSR matrix, a NumPy array, or anything on disk that is sliced by rows alike."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells, features."""
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
        Codes and numbers, one row per cell.
    """

    spec: Spec
    obs_names: np.ndarray
    matrices: Mapping[str, Matrix]
    where: Mapping[str, Int[np.ndarray, " cells"]] = field(default_factory=dict)
    take: Mapping[str, Int[np.ndarray, " g"]] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.obs_names)

    def measured(self, role: str) -> Bool[np.ndarray, " cells"]:
        """Return which cells have a row in the matrix of `role`."""
        return self.where[role] >= 0 if role in self.where else np.ones(len(self), bool)

    def batch(self, rows: Int[np.ndarray, " b"], device: str = "cpu") -> CellBatch:
        """Return the cells at `rows`, in that order, as tensors on `device`."""
        views = {role: self._view(role, rows, device) for role in self.matrices}
        present = {r: torch.from_numpy(w[rows] >= 0).to(device) for r, w in self.where.items()}
        observed = {r: torch.from_numpy(t >= 0).to(device) for r, t in self.take.items()}
        observed = {r: mask for r, mask in observed.items() if not bool(mask.all())}
        columns = {k: torch.from_numpy(v[rows]).to(device) for k, v in self.columns.items()}
        return CellBatch(torch.from_numpy(rows).to(device), views, present, observed, columns)

    def pieces(self, rows: Int[np.ndarray, " n"] | None = None) -> list[Int[np.ndarray, " b"]]:
        """Cut `rows` (default: all cells), in order, into chunks of bounded size."""
        rows = np.arange(len(self)) if rows is None else rows
        widest = max((len(self.spec.features[role]) for role in self.matrices), default=1)
        size = int(np.clip(CHUNK_VALUES // max(widest, 1), 16, 4096))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def batches(
        self, rows: Int[np.ndarray, " n"] | None = None, device: str = "cpu"
    ) -> Iterator[CellBatch]:
        """Yield `rows` (default: all cells) in order, in chunks of bounded size."""
        return self.minibatches(self.pieces(rows), device)

    def minibatches(
        self, rows: Iterable[Int[np.ndarray, " b"]], device: str = "cpu"
    ) -> Iterator[CellBatch]:
        """Yield the cells of each item of `rows`."""
        for some in rows:
            yield self.batch(some, device)

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
            block = block.tocsr() if take is None else _in_order(block.tocsr(), take)
            return _as_rows(block, into, n).to(device)
        out = torch.zeros((n, width), device=device)
        columns = slice(None) if take is None else take >= 0
        dense = torch.from_numpy(
            np.asarray(block if take is None else block[:, take[columns]], np.float32)
        )
        out[torch.from_numpy(into)[:, None], torch.arange(width)[columns]] = dense.to(device)
        return out


def _in_order(block: Csr, take: Int[np.ndarray, " g"]) -> Csr:
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
