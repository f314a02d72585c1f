"""Minibatches: tensors of a few cells, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import DataError, counted


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Some rows of a sparse matrix, as tensors on one device.

    Attributes
    ----------
    indptr
        Where each row begins in `columns` and `values`, and where the last one ends.
    columns
        Feature of each stored value; rising within a row as cells are read, in any order once augmented.
    values
        What is stored, float32.
    n_features
        Width of the matrix.
    """

    indptr: Int[Tensor, " ends"]
    columns: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    n_features: int

    @classmethod
    def of(cls, x: Float[Tensor, "b g"]) -> SparseRows:
        """Keep what is not 0 (NaN is kept) of a dense block."""
        cells, columns = x.nonzero(as_tuple=True)
        counts = torch.bincount(cells, minlength=len(x))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(indptr, columns, x[cells, columns], x.shape[1])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def cells(self) -> Int[Tensor, " n"]:
        """Row of each stored value."""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.indptr.device),
            self.indptr.diff(),
            output_size=len(self.values),
        )

    def map(self, values: Float[Tensor, " n"]) -> SparseRows:
        """Return other values at the same places, as log1p of these."""
        return self.moved(self.columns, values)

    def without(self, empty: Bool[Tensor, " b"]) -> SparseRows:
        """Return the other rows; `empty` ones store nothing."""
        return replace(self, indptr=torch.cat([self.indptr[:-1][~empty], self.indptr[-1:]]))

    def permuted(self, order: Int[Tensor, " b"]) -> SparseRows:
        """Return the rows in another order, each once."""
        sizes = self.indptr.diff()[order]
        indptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        at = _shifted(sizes, self.indptr[order] - indptr[:-1], len(self.values))
        columns, values = self.columns.index_select(0, at), self.values.index_select(0, at)
        return SparseRows(indptr, columns, values, self.n_features)

    def beside(self, other: SparseRows) -> SparseRows:
        """Return rows that store what both store; no entry may be in both."""
        n = len(self.values) + len(other.values)
        columns, values = self.columns.new_empty(n), self.values.new_empty(n)
        for part, shift in ((self, other.indptr[:-1]), (other, self.indptr[1:])):
            at = _shifted(part.indptr.diff(), shift, len(part.values))
            columns.scatter_(0, at, part.columns)
            values.scatter_(0, at, part.values)
        return SparseRows(self.indptr + other.indptr, columns, values, self.n_features)

    def where(self, kept: Bool[Tensor, " n"]) -> SparseRows:
        """Return rows without the other stored values."""
        ends = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        at = kept.nonzero()[:, 0]
        columns, values = self.columns.index_select(0, at), self.values.index_select(0, at)
        return SparseRows(ends[self.indptr], columns, values, self.n_features)

    def moved(self, columns: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> SparseRows:
        """Return as many values in each row, elsewhere."""
        other = replace(self, columns=columns, values=values)
        if "cells" in self.__dict__:
            other.__dict__["cells"] = self.cells  # not to be made again
        return other

    def split(self, sizes: Sequence[int]) -> list[SparseRows]:
        """Return so many rows each, without copying what is stored."""
        ends = np.cumsum([0, *sizes])
        starts = self.indptr[torch.from_numpy(ends)].tolist()
        return [
            SparseRows(
                self.indptr[ends[i] : ends[i + 1] + 1] - starts[i],
                self.columns[starts[i] : starts[i + 1]],
                self.values[starts[i] : starts[i + 1]],
                self.n_features,
            )
            for i in range(len(sizes))
        ]

    def sum(self) -> Float[Tensor, " b"]:
        """Return the sum of each row."""
        return torch.segment_reduce(self.values, "sum", offsets=self.indptr, unsafe=True)

    def dense(self) -> Float[Tensor, "b g"]:
        """Return the block with its zeros."""
        out = self.values.new_zeros(len(self), self.n_features)
        out.view(-1).scatter_(0, self.cells * self.n_features + self.columns, self.values)
        return out

    def to(self, device: str | torch.device) -> SparseRows:
        """Return the same rows on `device`."""
        indptr, columns, values = (
            t.to(device, non_blocking=True) for t in (self.indptr, self.columns, self.values)
        )
        return SparseRows(indptr, columns, values, self.n_features)


def _shifted(sizes: Int[Tensor, " b"], by: Int[Tensor, " b"], n: int) -> Int[Tensor, " n"]:
    """Return the places 0 … n − 1, those of each row shifted by its own number."""
    shifts = torch.repeat_interleave(by, sizes, output_size=n)
    return shifts.add_(torch.arange(n, device=by.device))


@dataclass(frozen=True, eq=False)
class CellBatch:
    """Some cells, one tensor per role: ``batch["counts"]`` is dense, ``batch.sparse("counts")`` is not.

    Attributes
    ----------
    rows
        Positions of the cells in their source, shape (b,).
    views
        Matrix roles, float32, shape (b, features), dense or sparse as they are stored. NaN: not
        measured.
    present
        For each matrix role that some cells lack altogether: which cells have it, shape (b,).
    observed
        For each matrix role of a query that lacks features: which features it has, shape (features,).
    columns
        Codes (``batch``, ``label`` with -1 for unlabelled, …) and numbers, shape (b,);
        ``categorical`` and ``continuous`` of shape (b, columns). Numbers are centred and scaled (see
        `Spec.numbers`), but for ``size_factor``. Roles that are read as sets: float32 of shape (b, names),
        1 for each name in the set of a cell and 0 else.
    """

    rows: Int[Tensor, " b"]
    views: Mapping[str, Tensor | SparseRows]
    present: Mapping[str, Bool[Tensor, " b"]] = field(default_factory=dict)
    observed: Mapping[str, Bool[Tensor, " g"]] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    _dense: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, role: str) -> Tensor:
        if role not in self.views:
            return self.columns[role]
        view = self.views[role]
        if isinstance(view, Tensor):
            return view
        if role not in self._dense:  # models read a role several times
            self._dense[role] = view.dense()
        return self._dense[role]

    def __contains__(self, role: str) -> bool:
        return role in self.views or role in self.columns

    def sparse(self, role: str) -> SparseRows:
        """Return what is stored of a matrix role, without its zeros."""
        view = self.views[role]
        return SparseRows.of(view) if isinstance(view, Tensor) else view

    def split(self, sizes: Sequence[int]) -> list[CellBatch]:
        """Return so many cells each, in order."""

        def parts(table: Mapping[str, Any]) -> list[dict[str, Any]]:
            cut = {name: value.split(sizes) for name, value in table.items()}
            return [{name: pieces[i] for name, pieces in cut.items()} for i in range(len(sizes))]

        views, present, columns = parts(self.views), parts(self.present), parts(self.columns)
        return [
            CellBatch(rows, views[i], present[i], self.observed, columns[i])
            for i, rows in enumerate(self.rows.split(sizes))
        ]

    def aligned(self, k: int) -> list[CellBatch]:
        """Return k batches whose i-th cells belong together: the anchors, then their partners.

        Raises
        ------
        DataError
            If the cells are not so many for each anchor: a sampler draws them (see `Sampler`).
        """
        if len(self) % k:
            raise DataError(
                f"A minibatch of {counted(len(self), 'cell')} does not hold {k} for each anchor. Take a "
                f"sampler that draws {counted(k - 1, 'partner')}, as Paired does."
            )
        return self.split([len(self) // k] * k)

    def with_columns(self, **columns: Tensor) -> CellBatch:
        """Return the same cells under other conditions."""
        return replace(self, columns={**self.columns, **columns})

    def extremes(self, names: np.ndarray) -> str:
        """Say how large the values are, and the names of the cells that hold most."""
        largest = {role: float(self[role].nan_to_num().abs().max()) for role in self.views}
        heavy = torch.zeros(len(self), device=self.rows.device)
        for role in self.views:
            heavy = heavy + self[role].nan_to_num().abs().sum(1)
        cells = names[self.rows[heavy.argsort(descending=True)[:3]].cpu().numpy()]
        listed = ", ".join(map(str, cells))
        return f"Largest input values: {largest}; heaviest cells of the minibatch: {listed}"

    def conditions(self) -> Int[Tensor, "b c"]:
        """Return codes of `batch` and of the categorical covariates, ordered as `Spec.condition_blocks`."""
        parts = [self.columns["batch"][:, None]] if "batch" in self.columns else []
        if "categorical" in self.columns:
            parts.append(self.columns["categorical"])
        return torch.cat(parts, 1) if parts else self.rows.new_zeros((len(self), 0))

    def amounts(self, role: str) -> Float[Tensor, "b p"]:
        """Return how much of each name there is in the sets of a role: 1, or the cell's `dose` if it is read.

        The dose is a share of the largest of the fit.
        """
        held = self.columns[role]
        return held * self.columns["dose"][:, None] if "dose" in self.columns else held

    def log_expression(self) -> Float[Tensor, "b g"]:
        """Return `expression` if the schema names it, otherwise log1p of counts per 10,000."""
        if "expression" in self.views:
            return self["expression"]
        x = self.stored_expression()
        return x if isinstance(x, Tensor) else x.dense()

    def stored_expression(self) -> Tensor | SparseRows:
        """Return what `log_expression` does, sparse where it is stored so.

        10,000 is the sum over the features that are read, not over all that the cell once had.
        """
        if "expression" in self.views:
            return self.views["expression"]
        if "counts" not in self.views:
            raise DataError("There is neither expression nor counts in this batch.")
        x = self.sparse("counts")
        scale = 1e4 / x.sum().clamp_min(torch.finfo(x.values.dtype).tiny)
        return x.map(torch.log1p(x.values * scale[x.cells]))

    def measured(self, role: str) -> tuple[Float[Tensor, "b g"], Float[Tensor, "#b #g"]]:
        """Return the values of a matrix role, 0 where they were not measured, and which were: 1 or 0.

        Not measured: in cells without the modality, of features that a query lacks, and where there is
        NaN. The mask has one row where all cells were measured for the same features, one column where
        every cell was for all or none, and one entry where all is there.
        """
        return self._without_nan(self[role], role)

    def measured_expression(self) -> tuple[Float[Tensor, "b g"], Float[Tensor, "#b #g"]]:
        """Return `log_expression` as `measured` returns a role: with which entries were measured."""
        role = "expression" if "expression" in self.views else "counts"
        return self._without_nan(self.log_expression(), role)

    def _without_nan(
        self, x: Float[Tensor, "b g"], role: str
    ) -> tuple[Float[Tensor, "b g"], Float[Tensor, "#b #g"]]:
        mask = torch.ones(1, 1).to(x)
        if role in self.present and not bool(self.present[role].all()):
            mask = mask * self.present[role][:, None]
        if role in self.observed:
            mask = mask * self.observed[role]
        lacking = x.isnan()
        return (x.nan_to_num(), mask * ~lacking) if bool(lacking.any()) else (x, mask)
