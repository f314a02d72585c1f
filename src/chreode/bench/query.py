"""Which cells are the query of a probe, and which the reference: whole batches, checked before any fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from ..data.cells import Cells
from ..errors import ConfigError, DataError, SchemaError, counted, listed, near
from ..metrics.space import log_cp10k
from ..schema import MATRIX_ROLES, TUPLE_ROLES, Schema

#: Labelled cells that a held-out batch must have.
FEWEST = 10
#: Batches that are held out where none is named.
_BATCHES = 2


@dataclass(frozen=True, eq=False)
class Split:
    """The cells of both sides.

    Attributes
    ----------
    held_out
        The batches of the query.
    fitted_on
        Positions of the cells that models learn from: all of the reference, labelled or not.
    reference, query
        Positions of the cells that are classified, which have a label and are placed by every method.
    names
        Types: those of the reference, then those that it lacks.
    codes
        Number of each cell's type in `names`, -1 where it has none.
    """

    held_out: tuple[str, ...]
    fitted_on: Int[np.ndarray, " f"]
    reference: Int[np.ndarray, " n"]
    query: Int[np.ndarray, " m"]
    names: tuple[str, ...]
    n_known: int
    codes: Int[np.ndarray, " cells"]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Types of the query that the reference lacks."""
        return self.names[self.n_known :]


def split(
    label: pd.Series,
    batch: pd.Series,
    usable: Bool[np.ndarray, " cells"],
    held_out: Sequence[str] | None,
    *,
    typed: bool = True,
) -> Split:
    """Divide cells into reference and query.

    Parameters
    ----------
    label, batch
        Of every cell, None where it has none.
    usable
        Cells to use, which every method can place.
    held_out
        Batches of the query. By default the two smallest ones that can be: of ten labelled cells or more,
        with two types that are in other batches too.
    typed
        Whether types are told: else cells need no label.

    Raises
    ------
    ConfigError
        If a batch does not exist, or all are held out.
    DataError
        If there is one batch only, a held-out batch has too few labelled cells, or the reference has fewer
        than two types.
    """
    in_use = pd.Series(np.where(usable, batch.to_numpy(object), None), index=batch.index)
    batches = [str(name) for name in in_use.value_counts(ascending=True, sort=True).index]
    if len(batches) < 2:
        raise DataError(
            f"The cells are of {counted(len(batches), 'batch')}: a query is a whole batch, and a reference "
            "is at least one other. Give cells of two batches or more."
        )
    labelled = (usable & label.notna() & batch.notna()).to_numpy()
    told = label[labelled] if typed else in_use.dropna().map(lambda _: "any")
    every = [str(name) for name in batch.dropna().unique()]
    sizes = in_use[told.index].value_counts().reindex(every, fill_value=0)
    what = "labelled cell" if typed else "cell"
    chosen = (
        _named(held_out, sizes, what) if held_out else _smallest(told, in_use[told.index], what)
    )
    if {*chosen} >= {*batches}:
        raise ConfigError(
            f"held_out names all {counted(len(chosen), 'batch')}, so no reference is left. Name fewer."
        )
    of_query = in_use.isin(chosen).to_numpy()
    reference, query = (np.flatnonzero(labelled & side) for side in (~of_query, of_query))
    known, theirs = ({*label.iloc[rows]} for rows in (reference, query))
    if typed and len(known) < 2:
        raise DataError(
            f"The reference has {counted(len(known), 'type')} without {listed(chosen)}, and a classifier "
            "tells two at the least. Hold out other batches."
        )
    names = (*sorted(known), *sorted(theirs - known))
    codes = pd.Index(names).get_indexer(pd.Index(label)).astype(np.int64)
    fitted_on = np.flatnonzero(in_use.notna().to_numpy() & ~of_query)
    return Split(tuple(chosen), fitted_on, reference, query, names, len(known), codes)


def refuse_unknown(held_out: Sequence[str], known: Collection[str]) -> None:
    """Refuse batches that there are not.

    Raises
    ------
    ConfigError
        It names the nearest.
    """
    for name in map(str, held_out):
        if name not in known:
            raise ConfigError(f"held_out: there is no batch {name!r}.{near(name, known)}")


def _named(held_out: Sequence[str], sizes: pd.Series, what: str) -> list[str]:
    chosen = [*dict.fromkeys(map(str, held_out))]
    refuse_unknown(chosen, sizes.index)
    for name in chosen:
        if sizes[name] < FEWEST:
            raise DataError(
                f"held_out: batch {name!r} has {counted(int(sizes[name]), what)} that every "
                f"method can place, and scores take {FEWEST} at the least. Hold out another one."
            )
    return chosen


def _smallest(label: pd.Series, batch: pd.Series, what: str) -> list[str]:
    """Return the smallest batches that can be a query, two at the most, such that a reference is left."""
    table = pd.crosstab(batch, label)
    least = min(2, table.shape[1])
    order = table.sum(axis=1).sort_values(kind="stable").index
    chosen: list[str] = []
    for name in order:
        rest = table.drop(index=[*chosen, name])
        shared = (table.loc[name] > 0) & (rest.sum() > 0)
        if table.loc[name].sum() >= FEWEST and shared.sum() >= least and len(chosen) < _BATCHES:
            chosen.append(str(name))
    if not chosen:
        shared = " and two types that other batches have too" if least > 1 else ""
        raise ConfigError(
            f"No batch can be the query: none has {counted(FEWEST, what)}{shared}. Give cells of more "
            "batches, or ask for correction alone."
        )
    return chosen


# what is read of the cells


def category(cells: Cells, role: str) -> pd.Series:
    """Return the categories of a role that a probe needs.

    Raises
    ------
    SchemaError
        If the schema names none.
    """
    if getattr(cells.schema, role) is None:
        raise SchemaError(f"bench.probe needs {role}: Schema({role}='obs/…').")
    return cells.categories(role)


def expression_role(cells: Cells) -> str:
    """Return the role that models read of RNA.

    Raises
    ------
    SchemaError
        If the schema names none.
    """
    role = next((role for role in ("expression", "counts") if role in cells.places), "")
    if not role:
        raise SchemaError("bench.probe needs counts or expression: Schema(counts='layers/…').")
    return role


def rows_at(cells: Cells, role: str, rows: np.ndarray) -> Any:
    """Return the values of some cells, all of which must have them, as they are stored."""
    at = cells.rows(role)
    return cells.matrix(role).matrix[rows if at is None else at[rows]]


def log_expression(cells: Cells, rows: np.ndarray) -> sp.csr_matrix:
    """Return sparse log-expression of some cells: as it is named, or of counts."""
    role = expression_role(cells)
    values = sp.csr_matrix(rows_at(cells, role, rows))
    return values if role == "expression" else log_cp10k(values)


def proteins(
    cells: Cells, usable: Bool[np.ndarray, " cells"], of_query: Bool[np.ndarray, " cells"]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the reference and the query cells that have proteins, and which of these all of them have.

    Raises
    ------
    SchemaError
        If the schema names no protein.
    DataError
        If no cell of a side has any, both sides have none in common, or values are negative.
    """
    if "protein" not in cells.places:
        raise SchemaError("tasks: 'missing' needs protein: Schema(protein='obsm/…').")
    at = cells.rows("protein")
    there = usable if at is None else usable & (at >= 0)
    rows = np.flatnonzero(there)
    values = protein_values(cells, rows)
    if values.size and np.nanmin(values) < 0:
        raise DataError(
            "protein holds negative values, which look normalised: name the place of raw counts. What is "
            "foretold is their log1p."
        )
    rows, values = rows[~np.isnan(values).all(1)], values[~np.isnan(values).all(1)]
    sides = {"reference": ~of_query[rows], "query": of_query[rows]}
    for name, side in sides.items():
        if not side.any():
            raise DataError(
                f"No {name} cell has RNA and protein, so that nothing can be "
                f"{'learned' if name == 'reference' else 'compared'}. Hold out other batches, or leave "
                "'missing' out of tasks."
            )
    common = np.flatnonzero(~np.isnan(values).any(0))
    if len(common) < 2:
        raise DataError(
            "Correlations take two proteins that were measured in every cell that has any: choose cells of "
            "one panel with rows."
        )
    return rows[sides["reference"]], rows[sides["query"]], common.tolist()


def protein_values(cells: Cells, rows: np.ndarray) -> Float[np.ndarray, "n p"]:
    """Return the proteins of some cells, dense; NaN where one was not measured."""
    values = rows_at(cells, "protein", rows)
    return np.asarray(values.toarray() if sp.issparse(values) else values, np.float32)


def without_proteins(cells: Cells, rows: np.ndarray) -> tuple[AnnData, Schema]:
    """Return some cells with their counts, as if no protein of theirs had been measured."""
    made, schema = with_fewer_counts(cells, rows, lambda counts: counts)
    made.obsm["protein"].loc[:] = np.nan
    return made, schema


def with_fewer_counts(
    cells: Cells, rows: np.ndarray, fewer: Callable[[sp.csr_matrix], sp.csr_matrix]
) -> tuple[AnnData, Schema]:
    """Return some cells with what `fewer` leaves of their counts and proteins, and where the roles are then.

    Log-expression and size factors are left out: they are not of these counts.
    """
    kept = {name: getattr(cells.schema, name) for name in ("missing", "fractional", "control")}
    roles: dict[str, Any] = {"counts": "X", **kept}
    counts = fewer(sp.csr_matrix(rows_at(cells, "counts", rows)))
    made = AnnData(counts, obs=pd.DataFrame(index=cells.names[rows]))
    made.var_names = cells.matrix("counts").names
    for role, place in cells.places.items():
        base = role.partition("/")[0]
        if role == "protein":
            at = cells.rows(role)
            known = np.ones(len(rows), bool) if at is None else at[rows] >= 0
            names = cells.matrix(role).names
            values = np.full((len(rows), len(names)), np.nan, np.float32)
            whole = protein_values(cells, rows[known])
            left = fewer(sp.csr_matrix(np.nan_to_num(whole))).toarray()
            values[known] = np.where(np.isnan(whole), np.nan, left)
            made.obsm[role] = pd.DataFrame(values, index=made.obs_names, columns=names)
            roles[role] = f"obsm/{role}"
        elif base not in (*MATRIX_ROLES, "size_factor"):
            made.obs[place.key] = cells.column(role).to_numpy()[rows]
            where = f"obs/{place.key}"
            roles[base] = (*roles.get(base, ()), where) if base in TUPLE_ROLES else where
    return made, Schema(**roles)
