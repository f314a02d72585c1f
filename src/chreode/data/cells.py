"""The cells of one data object, with every place that a schema names looked up once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int

from ..errors import SchemaError, listed
from ..schema import MATRIX_ROLES, Place, Schema
from . import places
from .look import rows_of_nan
from .read import Data, read
from .rows import rows_where
from .source import Matrix


class Values(NamedTuple):
    """A matrix of a role.

    Attributes
    ----------
    matrix
        Cells x features: CSR, dense or on disk.
    names
        Names of its features.
    """

    matrix: Matrix
    names: pd.Index


@dataclass(frozen=True, eq=False)
class Cells:
    """What is read of a data object: values by role, as they are stored.

    Attributes
    ----------
    data
        The object, to which results are written.
    schema
        Where each role lives.
    """

    data: Data
    schema: Schema
    _found: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, data: Data | str | Path, schema: Schema) -> Cells:
        """Return the cells of an object, or of a file that is opened.

        Raises
        ------
        StoreError
            If the file is absent, cut short, of another kind, or takes data from other files.
        """
        return cls(read(data), schema)

    def __len__(self) -> int:
        return self.data.n_obs

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""
        return self.data.obs_names

    @property
    def obs(self) -> pd.DataFrame:
        """The columns of the cells, with those of the modalities that the schema names."""
        return places.obs_of(self.data, self.places.values())

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each role lives that is named; tuples as ``categorical/donor``."""
        return dict(self.schema.places())

    def narrowed(self, roles: Collection[str]) -> Cells:
        """Return the same cells with these roles alone; what was looked up is kept."""
        kept = {f for f in self.schema.as_dict() if f in roles or f in ("missing", "fractional")}
        narrow = Schema().with_(**{f: getattr(self.schema, f) for f in kept})
        return replace(self, schema=narrow)

    def matrix(self, role: str) -> Values:
        """Return the matrix of a role.

        Raises
        ------
        SchemaError
            If there is none.
        DataError, StoreError
            If it is damaged.
        """
        return self.matrix_at(self.places[role], role)

    def matrix_at(self, place: Place, role: str = "") -> Values:
        """Return the matrix at a place, for messages that speak of `role`."""
        if str(place) not in self._found:
            self._found[str(place)] = Values(*places.matrix(self.data, place, role))
        found: Values = self._found[str(place)]
        return found

    def rows(self, role: str) -> Int[np.ndarray, " cells"] | None:
        """Return the row of each cell in a role's matrix (-1: none), or None where rows are the cells.

        A cell of which no protein was measured, NaN in all, has no row of proteins.
        """
        at = places.where(self.data, self.places[role])
        if role != "protein":
            return at
        key = f"rows of {self.places[role]}"
        if key not in self._found:
            values = self.matrix(role).matrix
            blank = rows_of_nan(values, np.arange(values.shape[0]))
            self._found[key] = _without(at, blank, len(self))
        found: Int[np.ndarray, " cells"] | None = self._found[key]
        return found

    def var(self, role: str, names: Sequence[str]) -> pd.DataFrame:
        """Return the ``var`` of a role's features, in the order of `names`; empty where there is none."""
        place = self.places.get(role)
        found: Any = pd.DataFrame(index=pd.Index([], dtype=object))
        if place is not None and place.slot != "obsm":
            owner: Any = places.holder(self.data, place, role)
            found = (owner.raw if place.slot == "raw" else owner).var
        found = found.loc[:, ~found.columns.duplicated()]
        index = pd.Index(list(names), dtype=object)
        if not found.index.is_unique or not index.isin(found.index).any():
            return pd.DataFrame(index=index)
        if not index.isin(found.index).all():  # whole numbers and truths, of which some are missing
            whole = found.select_dtypes([bool, np.integer])
            found = found.astype(whole.convert_dtypes().dtypes.to_dict())
        return found.reindex(index)

    def column(self, role: str) -> pd.Series:
        """Return the obs column of a role, one value per cell.

        Raises
        ------
        SchemaError
            If there is none.
        """
        return self.column_at(self.places[role], role)

    def column_at(self, place: Place, role: str) -> pd.Series:
        """Return the obs column at a place, for messages that speak of `role`."""
        if str(place) not in self._found:
            self._found[str(place)] = places.column(self.data, place, role)
        found: pd.Series = self._found[str(place)]
        return found

    def categories(self, role: str) -> pd.Series:
        """Return the categories of a role as strings, None where a cell has none."""
        return places.as_category(self.column(role), self.schema.missing)

    def control(self, role: str) -> str:
        """Return the value of a role that means that nothing was done ("": none is named)."""
        return (self.schema.control or "") if role == "perturbation" else ""

    def entry(self, key: str, role: str) -> Any:
        """Return an entry of ``uns``, for messages that speak of `role`.

        Raises
        ------
        SchemaError
            If there is none.
        """
        return places.entry(self.data, key, role)

    def numbers(self, role: str) -> Float64[np.ndarray, " cells"]:
        """Return the numbers of a role, NaN where a cell has none.

        Raises
        ------
        SchemaError
            If the column holds no numbers.
        """
        return places.as_numbers(self.column(role), self.places[role], role)

    def measured(self) -> Bool[np.ndarray, " cells"]:
        """Return which cells have a row in a matrix that the schema names (all, where it names none)."""
        matrices = {r: p for r, p in self.places.items() if r.partition("/")[0] in MATRIX_ROLES}
        known = [r for r, p in matrices.items() if p.modality in getattr(self.data, "mod", {})]
        if len(known) < len(matrices) or not matrices:
            return np.ones(len(self), bool)
        rows = [self.rows(role) for role in known]
        return np.any([np.ones(len(self), bool) if at is None else at >= 0 for at in rows], axis=0)

    def positions(self, rows: Any, name: str = "rows") -> Int[np.ndarray, " n"]:
        """Return row numbers from a condition, a mask, positions, or names of cells (None: all).

        A condition is text, such as ``'obs.cell_type != "nan"'`` (see `rows_where`).

        Parameters
        ----------
        name
            What the argument is called, for messages.

        Raises
        ------
        SchemaError
            If it is nothing of the kind, or a row is out of range, unknown or named twice.
        """
        if isinstance(rows, str):
            rows = rows_where(rows, self.data.obs, name)
        return _positions(self.names, rows, name)


def _positions(names: pd.Index, rows: Any, name: str) -> Int[np.ndarray, " n"]:
    n = len(names)
    if rows is None:
        return np.arange(n)
    try:
        given = np.asarray(rows)
    except (ValueError, TypeError):  # lists of unlike lengths, or an object of its own
        given = np.zeros((0, 0))
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "biuOUST"):
        raise SchemaError(
            f"{name}={str(rows)[:60]!r}: expected a mask, positions or names of cells, as a list or array."
        )
    if given.dtype == bool:
        if given.shape != (n,):
            raise SchemaError(f"{name}: the mask has shape {given.shape}, expected ({n},).")
        if isinstance(rows, pd.Series) and _in_other_order(rows.index, names):
            raise SchemaError(
                f"{name}: the mask is a column with the cells in another order. Sort it as the cells are: "
                f"{name}=mask.reindex(data.obs_names)."
            )
        return np.flatnonzero(given)
    if len(given) and given.dtype.kind not in "iu":
        if not names.is_unique:
            raise SchemaError(
                f"{name}: names of cells are not unique, so none can be chosen by name. Give positions or "
                "a mask, or call data.obs_names_make_unique() first."
            )
        texts = [str(v) if isinstance(v, str) else None for v in given]
        found = names.get_indexer(pd.Index(texts, dtype=object))
        if (found < 0).any():
            raise SchemaError(
                f"{name}: not among the cells: {listed(map(repr, given[found < 0].tolist()))}."
            )
        given = found
    if len(given) and (given.min() < 0 or given.max() >= n):
        raise SchemaError(f"{name}: expected positions from 0 to {n - 1}.")
    if len(np.unique(given)) != len(given):
        raise SchemaError(f"{name}: some cells are named twice.")
    return given.astype(np.int64)


def _in_other_order(index: pd.Index, names: pd.Index) -> bool:
    return not index.equals(names) and bool(index.isin(names).all()) and index.is_unique


def _without(
    at: Int[np.ndarray, " cells"] | None, blank: Int[np.ndarray, " k"], n: int
) -> Int[np.ndarray, " cells"] | None:
    """Return the rows of cells, of which those that hold nothing are none."""
    if not len(blank):
        return at
    found = np.arange(n) if at is None else at
    return np.where(np.isin(found, blank), -1, found)
