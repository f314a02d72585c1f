"""More cells of the classes that have few, real and generated ones in one object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ..config.arguments import checked
from ..data.align import match_features
from ..data.cells import Cells
from ..data.check import findings, require
from ..data.collect import refuse_what_cannot_be_kept
from ..data.read import Data
from ..errors import ConfigError, SchemaError, listed, near, warn
from ..run import Run
from ..schema import Schema, members, written
from .answering import uns
from .cells import generate
from .conditions import condition_named
from .state import FittedState


@checked
def augment(
    data: Data | str | Path,
    fitted: FittedState,
    *,
    by: str = "label",
    floor: int | None = None,
    rows: object = None,
    seed: int = 0,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> AnnData:
    """Return the cells with generated ones beside them, until no class is smaller than it should be.

    Parameters
    ----------
    data
        Cells to add to.
    fitted
        A model that generates counts given `by`.
    by
        Role, covariate or obs column whose classes are filled up. Other attributes of the new cells are
        drawn as they occur within the class.
    floor
        Cells that each class shall have at the least (default: as many as the largest has).
    rows
        Cells of `data` to take: mask, positions, names, or a condition as in `Model.fit` (default: all).
    seed
        Seed of the draws.
    schema
        Where the counts and the attributes live in `data`, if not where they lived in the fit.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    A new AnnData: raw counts of the trained features in ``X``; ``var`` and ``obs`` of the real cells, of
    which new ones have the attributes alone; and ``obs["generated"]`` (bool), True for the new cells, as
    for those of an earlier augmentation. They follow the cells of `data`.
    ``uns["chreode"]["augment"]`` : JSON of model, version, configuration, spec and seed of the fit.

    Warns
    -----
    UserWarning
        Of classes that are smaller than they should be, and that the model does not know.

    Raises
    ------
    SchemaError
        If the model does not know `by`.
    ConfigError
        If `floor` is no number of cells.
    DataError
        If the result is too large for memory: ask `Fitted.generate` for the new cells alone, ``into`` a file.
    """
    if floor is not None and (
        isinstance(floor, bool) or not isinstance(floor, (int, np.integer)) or floor < 1
    ):
        raise ConfigError(f"floor={floor!r}: expected a whole number of at least 1.")
    try:
        by = condition_named(fitted, by)
    except SchemaError as error:
        raise SchemaError(f"by={by!r}: {error}") from None
    if by not in fitted.spec.categories:
        raise SchemaError(
            f"The model was not fitted with classes of {by!r}.{near(by, fitted.spec.categories)}"
        )
    cells, run = Cells.of(data, schema or fitted.schema), run.with_(**settings)
    kept = cells.positions(rows)
    roles = {role.partition("/")[2] or role: role for role in cells.places}
    columns = {c: roles[c] for c in fitted.spec.conditions if c in roles}
    if by not in columns:
        raise SchemaError(f"augment needs the place of {by}: Schema({by}='obs/COLUMN').")
    real = _real(cells, fitted, kept, columns)
    classes = real.obs[cells.places[columns[by]].key]
    wanted = _wanted(fitted, by, classes, floor)
    n = int(wanted.sum())
    refuse_what_cannot_be_kept(n, real.n_vars, None)
    before = real.obs.get("generated")
    real.obs["generated"] = (
        False if before is None else before.eq(True).to_numpy(bool, na_value=False)
    )
    if n == 0:
        return real
    given = {by: np.repeat(wanted.index.to_numpy(object), wanted.to_numpy())}
    made: Any = generate(fitted, n, given=given, seed=seed, run=run)
    if not isinstance(made, AnnData):  # of several modalities, of which the counts are added
        place = dict(fitted.schema.places())["counts"]
        made = AnnData(made[place.modality or "counts"].X, obs=made.obs, var=real.var)
    made.obs["generated"] = True
    made.obs_names = _unique(made.obs_names, real.obs_names)
    made.obs = made.obs.rename(
        columns={fitted.column(c): cells.places[role].key for c, role in columns.items()}
    )
    both = anndata.concat([real, made], join="inner", merge="first", uns_merge="first")
    both.obs = _joined(real.obs, made.obs)
    return both


def _wanted(fitted: FittedState, by: str, classes: pd.Series, floor: int | None) -> pd.Series:
    """Return how many cells to add to each class that is too small."""
    known = list(fitted.spec.categories[by])
    if by in fitted.spec.sets:  # in whatever order their names are, they are the same class
        control = fitted.spec.sets[by]
        classes = classes.map(lambda value: written(members(value, control), control))
        known = sorted({*classes})
    sizes = classes.value_counts()
    target = sizes.max() if floor is None else floor
    _warn_of_unknown(by, [*sizes.index[(sizes < target) & ~sizes.index.isin(known)]])
    wanted: pd.Series = target - sizes.reindex(known, fill_value=0)
    return wanted[wanted > 0]


def _warn_of_unknown(by: str, names: list[Any]) -> None:
    """Warn of classes that are smaller than they should be, and that the model cannot fill up."""
    if names:
        warn(
            f"{by}: the model does not know {listed(map(repr, names))} and adds no cells there. "
            "Fit it on such cells too, or augment without them."
        )


def _joined(real: pd.DataFrame, made: pd.DataFrame) -> pd.DataFrame:
    """Return the table of real cells with new ones below, which lack most of it."""
    # as floats, whole numbers beyond 2**53 would be others
    whole = real.select_dtypes([bool, np.integer]).convert_dtypes()
    lacking = {c: dtype for c, dtype in whole.dtypes.items() if c not in made}
    unknown = {c: pd.array([pd.NA] * len(made), dtype) for c, dtype in lacking.items()}
    made = pd.concat([made, pd.DataFrame(unknown, made.index)], axis=1)
    both = pd.concat([real.astype(lacking), made])[real.columns]
    for name in real:
        texts = isinstance(real[name].dtype, pd.CategoricalDtype) or name in made
        if texts and both[name].dtype == object:
            both[name] = both[name].astype("category")
    return both


def _real(
    cells: Cells, fitted: FittedState, rows: np.ndarray, columns: Mapping[str, str]
) -> AnnData:
    """Return the raw counts of cells, with the model's features, and their obs."""
    schema = cells.schema
    if "counts" not in fitted.spec.roles:
        raise SchemaError("augment adds counts; this model was not fitted on any.")
    if "counts" not in cells.places:
        raise SchemaError("augment needs the place of counts: Schema(counts='layers/counts').")
    values, _ = cells.matrix("counts")
    at = cells.rows("counts")
    if at is not None:
        rows = rows[at[rows] >= 0]
    require(findings(cells.narrowed(["counts"]), rows))
    counts = sp.csr_matrix(values[rows if at is None else at[rows]])
    take = match_features(cells, fitted.spec, ["counts"]).get("counts")
    if take is not None:
        padded = sp.hstack([counts, sp.csr_matrix((counts.shape[0], 1))], format="csr")
        counts = padded[:, np.where(take < 0, counts.shape[1], take)]
    obs = cells.obs.iloc[rows].copy()
    if not obs.columns.is_unique:
        twice = obs.columns[obs.columns.duplicated()][0]
        raise SchemaError(f"obs has several columns {twice!r}: rename all but one.")
    for name, role in columns.items():
        known = name in fitted.spec.categories
        column = cells.categories(role).astype(object) if known else cells.column(role)
        obs[cells.places[role].key] = column.iloc[rows].to_numpy()
    var = cells.var("counts", fitted.spec.features["counts"])
    counts = counts if schema.fractional else counts.astype(np.int64)
    return AnnData(counts, obs=obs, var=var, uns=uns(fitted, "augment"))


def _unique(names: pd.Index, known: pd.Index) -> pd.Index:
    """Return the names, numbered on where some are known already, as after an earlier augmentation."""
    free, rounds = names, 1
    while free.isin(known).any():
        rounds += 1
        free = names + f"_{rounds}"
    return free
