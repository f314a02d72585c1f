"""From a data object and a schema to a `Source`: learn a `Spec` once, then follow it for every query."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, SchemaError, near, warn
from ..schema import CATEGORY_ROLES, MATRIX_ROLES, NUMBER_ROLES, UNIT_ROLES, Place, Spec
from .cells import Cells
from .check import findings, merging, require, unit
from .source import Source

#: A query whose shared features carry less than this share of the model's weight is refused.
MIN_WEIGHT = 0.5


class MissingFeatures(UserWarning):
    """A query lacks features that the model was trained on."""


def learn_spec(
    cells: Cells, roles: Collection[str], rows: np.ndarray, old: Spec | None = None
) -> Spec:
    """Return the names and sizes of `roles`, seen on `rows` alone.

    Parameters
    ----------
    old
        The spec of the fit to start from: its features and units are kept, and categories it does
        not know become a new block behind its own.
    """
    features: dict[str, tuple[str, ...]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    units: dict[str, tuple[float, float]] = {}
    covariates: dict[str, list[str]] = {"categorical": [], "continuous": []}
    for role in _wanted(cells, roles):
        base, _, name = role.partition("/")
        if base in MATRIX_ROLES:
            features[role] = tuple(str(n) for n in cells.matrix(role).names)
        if base in covariates:
            covariates[base].append(name)
        if base in (*UNIT_ROLES, "continuous"):
            before = old.numbers.get(name or role) if old else None
            units[name or role] = before or unit(cells.numbers(role)[rows])
        if base in CATEGORY_ROLES or base == "categorical":
            key = name or role
            values = cells.categories(role).iloc[rows].dropna()
            known = old.categories.get(key, ()) if old else ()
            fresh = tuple(sorted(set(values) - set(known)))
            categories[key] = (*known, *fresh)
            blocks[key] = (
                *(old.blocks.get(key, ()) if old else ()),
                *([len(fresh)] if fresh else []),
            )
    spec = Spec(
        tuple(roles), features, categories, blocks,
        tuple(covariates["categorical"]), tuple(covariates["continuous"]), len(rows), units,
    )  # fmt: skip
    return replace(spec, features=old.features) if old else spec


def match_features(
    cells: Cells,
    spec: Spec,
    roles: Collection[str],
    weight: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return, for each matrix role whose features are not the spec's own, the column of each (-1: missing).

    Missing ones are reported with their share of `weight` (per role, one non-negative value per
    feature), and refused when too much of it is missing.

    Raises
    ------
    DataError
        If too much of the model's weight is missing.
    """
    take: dict[str, np.ndarray] = {}
    for role in _wanted(cells, roles):
        if role.partition("/")[0] in MATRIX_ROLES:
            names = cells.matrix(role).names
            if not names.is_unique:
                continue  # the check of the values, which follows, says so
            found = names.astype(str).get_indexer(pd.Index(spec.features[role]))
            if not np.array_equal(found, np.arange(len(names))):
                take[role] = found
                _report_missing(
                    role, cells.places[role], found, names, spec, (weight or {}).get(role)
                )
    return take


def open_source(
    cells: Cells,
    spec: Spec,
    roles: Collection[str],
    take: Mapping[str, np.ndarray],
    rows: np.ndarray | None = None,
) -> Source:
    """Return the cells aligned to `spec`, with `roles` alone.

    Parameters
    ----------
    take
        What `match_features` returned.
    rows
        Cells whose categories must be known, and numbers told apart (default: all).

    Raises
    ------
    DataError
        If categories are unknown on `rows`, or numbers too close to be told apart.
    """
    matrices: dict[str, Any] = {}
    places: dict[str, np.ndarray] = {}
    columns: dict[str, Any] = {}
    for role in _wanted(cells, roles):
        base, _, name = role.partition("/")
        if base in MATRIX_ROLES:
            matrices[role] = cells.matrix(role).matrix
            at = cells.rows(role)
            if at is not None:
                places[role] = at
        elif base in CATEGORY_ROLES or base == "categorical":
            key = name or role
            columns[role] = _codes(cells.categories(role), key, spec, rows)
        elif base in NUMBER_ROLES or base == "continuous":
            columns[role] = cells.numbers(role)
            if base != "size_factor":
                _refuse_merging(role, columns[role] if rows is None else columns[role][rows], spec)
    for stacked in ("categorical", "continuous"):
        names_ = getattr(spec, stacked)
        if names_ and any(r.startswith(f"{stacked}/") for r in columns):
            columns[stacked] = np.stack([columns.pop(f"{stacked}/{n}") for n in names_], axis=1)
    control = None
    if "perturbation" in columns and cells.schema.control is not None:
        control = (cells.categories("perturbation") == cells.schema.control).to_numpy()
    return Source(spec, cells.names.to_numpy(), matrices, places, take, columns, control)


def open_query(
    cells: Cells,
    spec: Spec,
    roles: Collection[str],
    weight: Mapping[str, np.ndarray] | None = None,
    *,
    progress: bool | None = None,
) -> Source:
    """Check the values of `roles`, then return the cells aligned to `spec`.

    Raises
    ------
    SchemaError, DataError
        If a role is absent or its values are wrong.
    """
    cells = cells.narrowed(roles)
    take = match_features(cells, spec, roles, weight)
    require(findings(cells, query=True, progress=progress))
    return open_source(cells, spec, roles, take)


def condition_code(spec: Spec, key: str, value: Any) -> tuple[str, int | None, Any]:
    """Return (column of a batch, position in it, code) of a condition such as ``batch="p3"``.

    `key` is a role, or the column name of a categorical or continuous covariate. Numbers stay in the
    user's units.

    Raises
    ------
    SchemaError
        If the model was not fitted with it, or never saw the value.
    """
    if key in spec.continuous:
        return "continuous", spec.continuous.index(key), _number(spec, key, value)
    if key in NUMBER_ROLES and key in spec.roles:
        return key, None, _number(spec, key, value)
    if key not in spec.categories:
        known = near(key, spec.conditions)
        raise SchemaError(f"This model was not fitted with a condition {key!r}.{known}")
    names = spec.categories[key]
    if str(value) not in names:
        raise SchemaError(f"{key}={value!r} was never seen in the fit.{near(str(value), names)}")
    code = names.index(str(value))
    if key in spec.categorical:
        return "categorical", spec.categorical.index(key), code
    return key, None, code


def gene_positions(spec: Spec, name: str, value: str) -> tuple[int, ...]:
    """Return the positions of a gene, or of several as ``A+B``, that an argument called `name` holds.

    Raises
    ------
    SchemaError
        If the model was not fitted with one of them.
    """
    genes = spec.features[spec.either("expression", "counts")]
    named = [value] if value in genes else value.split("+")  # the name of a gene may have a plus
    unknown = [gene for gene in named if gene not in genes]
    if unknown:
        raise SchemaError(f"{name}: there is no gene {unknown[0]!r}.{near(unknown[0], genes)}")
    return tuple(genes.index(gene) for gene in named)


def _number(spec: Spec, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not np.isfinite(spec.narrowed(key, np.array(number))):
        raise SchemaError(f"{key}={value!r}: expected a finite number.")
    return number


def _refuse_merging(role: str, values: np.ndarray, spec: Spec) -> None:
    name = role.partition("/")[2] or role
    for found in merging(role, values, spec.numbers.get(name, (0.0, 1.0))):
        if found.level == "error":
            raise DataError(found.text)


def _wanted(cells: Cells, roles: Collection[str]) -> list[str]:
    return [role for role in cells.places if role.partition("/")[0] in roles]


def _codes(text: pd.Series, key: str, spec: Spec, rows: np.ndarray | None) -> np.ndarray:
    codes = pd.Index(spec.categories[key]).get_indexer(pd.Index(text)).astype(np.int64)
    if key == "label":
        return codes  # an unknown label is an unlabelled cell: nothing is decoded from it
    checked = text if rows is None else text.iloc[rows]
    unknown = sorted(set(checked.dropna()) - set(spec.categories[key]))
    if unknown:
        raise DataError(
            f"{key}: the model never saw {unknown[:5]}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}. It knows "
            f"{', '.join(spec.categories[key][:10])}. Map the new cells first: "
            "fitted.model.fit(query, schema, from_=fitted)."
        )
    return codes


def _report_missing(
    role: str,
    place: Place,
    found: np.ndarray,
    names: pd.Index,
    spec: Spec,
    weight: np.ndarray | None,
) -> None:
    missing = found < 0
    if not missing.any():
        return
    trained = spec.features[role]
    share = missing.mean() if weight is None else weight[missing].sum() / max(weight.sum(), 1e-30)
    said = (
        f"{role} ({place}): {int(missing.sum()):,} of {len(trained):,} trained features are missing "
        f"(such as {trained[int(np.argmax(missing))]!r}); they carry {share:.0%} of the model's weight."
    )
    if missing.all() or share > 1 - MIN_WEIGHT:
        if missing.all():
            said += (
                f" No feature is shared: the model knows names such as {trained[0]!r}, the query has "
                f"{str(names[0])!r}. Put names of the same kind (symbols or Ensembl ids) in var_names."
            )
        raise DataError(said + f" At least {MIN_WEIGHT:.0%} of the weight must be found.")
    warn(said, MissingFeatures)
