"""From a data object and a schema to a `Source`: learn a `Spec` once, then follow it for every query."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ..errors import DataError, SchemaError, counted, listed, near, warn
from ..schema import CATEGORY_ROLES, MATRIX_ROLES, NUMBER_ROLES, UNIT_ROLES, Place, Spec
from .cells import Cells
from .check import MAY_LACK, findings, merging, require, unit
from .look import any_nan
from .sets import (
    as_codes,
    code_of,
    is_amount,
    refuse_negative,
    shares,
    single_names,
    vectors_of,
)
from .source import Source

#: A query whose shared features carry less than this share of the model's weight is refused.
MIN_WEIGHT = 0.5
_VERSION = r"\.\d+$"

#: Turns names of features into others.
_Renamed: TypeAlias = Callable[[pd.Index], pd.Index]
#: How names of one feature differ: what makes both alike, and lines that may make one of them the other.
_DIFFERENCES: tuple[tuple[str, _Renamed, Mapping[str, _Renamed]], ...] = (
    (
        "the version behind Ensembl ids", lambda names: names.str.replace(_VERSION, "", regex=True),
        {f"replace(r'{_VERSION}', '', regex=True)": lambda n: n.str.replace(_VERSION, "", regex=True)},
    ),
    (
        "upper and lower case, as genes of mouse and human do", lambda names: names.str.upper(),
        {
            "upper()": lambda names: names.str.upper(), "lower()": lambda names: names.str.lower(),
            "capitalize()": lambda names: names.str.capitalize(),
        },
    ),
)  # fmt: skip


class MissingFeatures(UserWarning):
    """A query lacks features that the model was trained on."""


def learn_spec(
    cells: Cells,
    roles: Collection[str],
    rows: np.ndarray,
    old: Spec | None = None,
    *,
    sets: Collection[str] = (),
) -> Spec:
    """Return the names and sizes of `roles`, seen on `rows` alone.

    Parameters
    ----------
    old
        The spec of the fit to start from: its features and units are kept, and categories it does
        not know become a new block behind its own.
    sets
        Roles whose values are sets of names, as ``A+B``: what is known of them are single names. A dose
        that says how much there was of them is a share of the largest, so that none is 0.

    Raises
    ------
    DataError
        If a value is no set of names, or a name has no vector where others have.
    """
    features: dict[str, tuple[str, ...]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    units: dict[str, tuple[float, float]] = {}
    covariates: dict[str, list[str]] = {"categorical": [], "continuous": []}
    controls = {role: cells.control(role) for role in roles if role in sets}
    vectors = vectors_of(cells, controls, old)
    for role in _wanted(cells, roles):
        base, _, name = role.partition("/")
        if base in MATRIX_ROLES:
            features[role] = tuple(str(n) for n in cells.matrix(role).names)
        if base in covariates:
            covariates[base].append(name)
        if base in (*UNIT_ROLES, "continuous"):
            before = old.numbers.get(name or role) if old else None
            measured = shares if base == "dose" and controls else unit
            units[name or role] = before or measured(cells.numbers(role)[rows])
        if base in CATEGORY_ROLES or base == "categorical":
            key = name or role
            values = set(cells.categories(role).iloc[rows].dropna())
            if role in controls:
                values = single_names(role, values, controls[role], vectors)
            known, sizes = (
                (old.categories.get(key, ()), old.blocks.get(key, ())) if old else ((), ())
            )
            fresh = tuple(sorted(values - set(known)))
            categories[key] = (*known, *fresh)
            blocks[key] = (*sizes, len(fresh)) if fresh else sizes
    spec = Spec(
        tuple(roles), features, categories, blocks,
        tuple(covariates["categorical"]), tuple(covariates["continuous"]), len(rows), units,
        controls, vectors,
    )  # fmt: skip
    if old is None:
        return spec
    further = {k: v for k, v in features.items() if k.partition("/")[0] not in old.roles}
    return replace(spec, features={**old.features, **further})


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
        If on `rows` categories are unknown, numbers too close to be told apart, or amounts negative.
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
            key, read = name or role, as_codes if role in spec.sets else _codes
            columns[role], unknown = read(cells.categories(role), key, spec, rows)
            _refuse_unknown(key, unknown, spec)
        elif base in NUMBER_ROLES or base == "continuous":
            columns[role] = cells.numbers(role)
            looked_at = columns[role] if rows is None else columns[role][rows]
            if base != "size_factor":
                _refuse_merging(role, looked_at, spec)
            if is_amount(spec, role):
                refuse_negative(looked_at)
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


def refuse_missing(
    source: Source, rows: np.ndarray, tolerates: Collection[str], model: str
) -> None:
    """Refuse entries that are read and were not measured, in roles where a model does not understand them.

    Raises
    ------
    DataError
        If there are any.
    """
    for role, values in source.matrices.items():
        base = role.partition("/")[0]  # NaN in counts was refused before
        at = source.where[role][rows] if role in source.where else rows
        columns = source.take[role][source.take[role] >= 0] if role in source.take else None
        if base in MAY_LACK and base not in tolerates and any_nan(values, at[at >= 0], columns):
            raise DataError(
                f"{role} holds NaN (not measured), which {model} does not understand. PPCA and "
                "FactorAnalysis do; or remove these cells or features."
            )


def condition_code(spec: Spec, key: str, value: Any) -> tuple[str, int | None, Any]:
    """Return (column of a batch, position in it, code) of a condition such as ``batch="p3"``.

    `key` is a role, or the column name of a categorical or continuous covariate. Numbers stay in the
    user's units; of a set it is the codes of its names, in any combination.

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
    if key in spec.sets:
        return key, None, code_of(spec, key, str(value))
    names = spec.categories[key]
    if str(value) not in names:
        raise SchemaError(f"{key}={value!r} was never seen in the fit.{near(str(value), names)}")
    code = names.index(str(value))
    if key in spec.categorical:
        return "categorical", spec.categorical.index(key), code
    return key, None, code


def gene_positions(spec: Spec, name: str, value: Any) -> tuple[int, ...]:
    """Return the positions of a gene, or of several as ``A+B``, that an argument called `name` holds.

    Raises
    ------
    SchemaError
        If it is no text, or the model was not fitted with one of them.
    """
    if not isinstance(value, str):
        raise SchemaError(f"{name}={value!r}: expected a gene, or several as text: 'A+B'.")
    genes = spec.features[spec.either("expression", "counts")]
    named = [value] if value in genes else value.split("+")  # the name of a gene may have a plus
    unknown = [gene for gene in named if gene not in genes]
    if unknown:
        # a gene of a similar name is another gene
        same = [gene for gene in genes if gene.casefold() == unknown[0].casefold()]
        hint = f" Did you mean {same[0]!r}?" if same else " The fit can say nothing of it."
        known = counted(len(genes), "gene")
        raise SchemaError(f"{name}: {unknown[0]!r} is not among the {known} of the fit.{hint}")
    return tuple(genes.index(gene) for gene in named)


def _number(spec: Spec, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not np.isfinite(spec.narrowed(key, np.array(number))):
        raise SchemaError(f"{key}={value!r}: expected a finite number.")
    if is_amount(spec, key) and number < 0:
        raise SchemaError(f"{key}={number:g}: an amount is not negative. Ask for 0 or more.")
    return number


def _refuse_merging(role: str, values: np.ndarray, spec: Spec) -> None:
    name = role.partition("/")[2] or role
    for found in merging(role, values, spec.numbers.get(name, (0.0, 1.0))):
        if found.level == "error":
            raise DataError(found.text)


def _wanted(cells: Cells, roles: Collection[str]) -> list[str]:
    return [role for role in cells.places if role.partition("/")[0] in roles]


def _codes(
    text: pd.Series, key: str, spec: Spec, rows: np.ndarray | None
) -> tuple[np.ndarray, set[str]]:
    """Return a code per cell, and the names on `rows` that the fit never saw."""
    codes = pd.Index(spec.categories[key]).get_indexer(pd.Index(text)).astype(np.int64)
    if key == "label":
        return codes, set()  # an unknown label is an unlabelled cell: nothing is decoded from it
    checked = text if rows is None else text.iloc[rows]
    return codes, set(checked.dropna()) - set(spec.categories[key])


def _refuse_unknown(key: str, names: Collection[str], spec: Spec) -> None:
    unknown = sorted(names)
    if unknown:
        raise DataError(
            f"{key}: the model never saw {listed(map(repr, unknown))}. It knows "
            f"{', '.join(spec.categories[key][:10])}. Map the new cells first: "
            "fitted.model.fit(query, schema, from_=fitted)."
        )


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
    trained = pd.Index(spec.features[role])
    weight = np.ones(len(trained)) if weight is None else weight

    def share(these: np.ndarray) -> float:
        return float(weight[these].sum() / max(weight.sum(), 1e-30))

    message = (
        f"{role} ({place}) lacks {int(missing.sum()):,} of {counted(len(trained), 'trained feature')} "
        f"(such as {trained[int(np.argmax(missing))]!r}), which carry {share(missing):.0%} of the "
        "model's weight."
    )
    if missing.all() or share(missing) > 1 - MIN_WEIGHT:
        if missing.all():
            message += (
                f" No feature is shared: the model knows names such as {trained[0]!r}, the query has "
                f"{str(names[0])!r}. Put names of the same kind (symbols or Ensembl ids) in var_names."
            )
        message += f" At least {MIN_WEIGHT:.0%} of the weight must be found."
        raise DataError(message + _renaming(place, trained, names.astype(str), share))
    warn(message, MissingFeatures)


def _renaming(
    place: Place, own: pd.Index, names: pd.Index, share: Callable[[np.ndarray], float]
) -> str:
    """Say how names differ from those of the fit, where enough would match if they did not.

    A line that renames them is given only if it was found to do so.
    """

    def enough(known: pd.Index, found: pd.Index) -> bool:
        there = known.isin(found)
        return bool(there.any()) and share(~there) <= 1 - MIN_WEIGHT

    for what, alike, mends in _DIFFERENCES:
        if not enough(alike(own), alike(names)):
            continue
        message = f" Most names differ by {what}, and by nothing else."
        for code, mend in mends.items():
            if place.slot in ("X", "layers") and enough(own, mend(names)) and mend(names).is_unique:
                line = f"{place.owner()}.var_names = {place.owner()}.var_names.str.{code}"
                return f"{message} Make them the same, as by {line}."
        return (
            f"{message} Rename the features of the query by a table, or fit the model on names such as "
            f"{names[0]!r}."
        )
    return ""
