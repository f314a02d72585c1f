"""More cells of the classes that have few, real and generated ones in one object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from . import read
from .arguments import checked
from .check import as_category
from .collect import refuse_what_cannot_be_kept
from .errors import ConfigError, SchemaError, near
from .read import Data

if TYPE_CHECKING:
    from .fitted import Fitted


@checked
def augment(
    data: Data | str | Path,
    fitted: Fitted,
    *,
    by: str = "label",
    floor: int | None = None,
    rows: object = None,
    seed: int = 0,
    progress: bool | None = None,
) -> AnnData:
    """Return the cells with generated ones beside them, until no class is smaller than it should be.

    Parameters
    ----------
    data
        Cells to add to, with the roles where the model found them in its fit.
    fitted
        A model that generates counts given `by`.
    by
        Role or covariate whose classes are filled up. Other attributes of the new cells are drawn as
        they occur within the class.
    floor
        Cells that each class shall have at the least (default: as many as the largest has).
    rows
        Cells of `data` to take (default: all).
    seed
        Seed of the draws.

    Returns
    -------
    A new AnnData: raw counts of the trained features in ``X``, the attributes in ``obs``, and
    ``obs["generated"]`` (bool) which is True for the new cells. They follow the real ones.

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
    if by not in fitted.spec.categories:
        raise SchemaError(
            f"The model was not fitted with classes of {by!r}.{near(by, fitted.spec.categories)}"
        )
    data = read.read(data)
    kept = read.positions(data, rows)
    real = _real(data, fitted, kept)
    classes = real.obs[fitted.column(by)]
    sizes = classes.value_counts().reindex(list(fitted.spec.categories[by]), fill_value=0)
    wanted = (max(floor, 0) if floor is not None else sizes.max()) - sizes
    wanted = wanted[wanted > 0]
    n = int(wanted.sum())
    refuse_what_cannot_be_kept(n, real.n_vars, None)
    real.obs["generated"] = False
    if n == 0:
        return real
    told = {by: np.repeat(wanted.index.to_numpy(object), wanted.to_numpy())}
    made: Any = fitted.generate(n, given=told, seed=seed, progress=progress)
    if not isinstance(made, AnnData):  # of several modalities, of which the counts are added
        place = dict(fitted.schema.places())["counts"]
        made = AnnData(made[place.modality or "counts"].X, obs=made.obs, var=real.var)
    made.obs["generated"] = True
    made.obs_names = _unheard(made.obs_names, real.obs_names)
    both = anndata.concat([real, made], join="inner", merge="first")
    both.obs = pd.concat([real.obs, made.obs])[both.obs.columns]
    for name in both.obs.select_dtypes(object).columns:
        both.obs[name] = both.obs[name].astype("category")
    return both


def _real(data: Data, fitted: Fitted, rows: np.ndarray) -> AnnData:
    """Return the raw counts and attributes of cells, with the model's features."""
    from .align import match_features

    places = dict(fitted.schema.places())
    roles = [r for r in ("counts",) if r in fitted.spec.roles]
    if not roles:
        raise SchemaError("augment adds counts; this model was not fitted on any.")
    values, _ = read.matrix(data, places["counts"], "counts")
    at = read.where(data, places["counts"])
    if at is not None:
        rows = rows[at[rows] >= 0]
    counts = sp.csr_matrix(values[rows if at is None else at[rows]])
    take = match_features(data, fitted.schema, fitted.spec, roles).get("counts")
    if take is not None:
        padded = sp.hstack([counts, sp.csr_matrix((counts.shape[0], 1))], format="csr")
        counts = padded[:, np.where(take < 0, counts.shape[1], take)]
    obs = pd.DataFrame(index=data.obs_names[rows])
    for name, place in places.items():
        key = name.removeprefix("categorical/").removeprefix("continuous/")
        if key in fitted.spec.categories:
            values = as_category(read.column(data, place, name), fitted.schema.missing)
            obs[fitted.column(key)] = values.iloc[rows].to_numpy(object)
        elif key in fitted.spec.continuous:
            obs[key] = read.column(data, place, name).iloc[rows].to_numpy()
    var = pd.DataFrame(index=pd.Index(list(fitted.spec.features["counts"]), dtype=object))
    return AnnData(
        counts if fitted.schema.fractional else counts.astype(np.int64), obs=obs, var=var
    )


def _unheard(names: pd.Index, known: pd.Index) -> pd.Index:
    """Return the names, numbered on where some are known already, as after an earlier augmentation."""
    if not names.isin(known).any():
        return names
    rounds = 1 + sum(known.str.startswith(f"{names[0]}"))
    return names + f"_{rounds}"
