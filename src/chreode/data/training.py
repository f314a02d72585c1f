"""From a data object to the cells that a fit learns from: opened, checked and aligned in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from ..errors import ConfigError, DataError, counted
from ..schema import CATEGORY_ROLES, MATRIX_ROLES, Schema, Spec
from .align import learn_spec, match_features, open_source, refuse_missing
from .cells import Cells
from .check import findings, require
from .holdout import named_cells
from .sets import is_amount
from .source import Source


@runtime_checkable
class Reader(Protocol):
    """What is read of a model; `chreode.model.Model` says what each is."""

    needs: ClassVar[tuple[str, ...]]
    tolerates: ClassVar[tuple[str, ...]]
    partial: ClassVar[bool]
    sets: ClassVar[tuple[str, ...]]

    @property
    def key(self) -> str:
        """Name in the registry."""
        ...


@dataclass(frozen=True, eq=False)
class Training:
    """The cells of a fit.

    Attributes
    ----------
    source
        Cells aligned to the `Spec` that they taught.
    rows
        Those to learn from, held-out ones among them.
    validation
        Share of `rows` to hold out, or the rows themselves.
    maps
        Whether they have categories that the fit to start from never saw: only these are learned. Names that
        have vectors are no reason, as nothing is learned of each.
    """

    source: Source
    rows: Int[np.ndarray, " n"]
    validation: float | Int[np.ndarray, " k"]
    maps: bool


def open_training(
    cells: Cells,
    roles: list[str],
    reader: Reader,
    *,
    rows: Any,
    validation: Any,
    old: Spec | None = None,
    weight: Mapping[str, np.ndarray] | None = None,
    same_model: bool = True,
    progress: bool | None = None,
) -> Training:
    """Check the values of every role, then return the cells to learn `roles` from.

    Parameters
    ----------
    rows
        Cells to learn from: condition, mask, positions or names (None: all).
    validation
        Share of them to hold out, or cells.
    old, weight
        Spec of the fit to start from, and how much each feature matters to it.
    same_model
        Whether that is a fit of the same model: then cells of categories that it never saw map onto it.

    Raises
    ------
    SchemaError, DataError, ConfigError
        If a role is absent, its values are wrong, or they are not those of the fit to start from.
    """
    kept = cells.positions(rows)
    validation = named_cells(cells, kept, validation, "validation")
    require(findings(cells, kept, progress=progress))
    kept = _complete(cells, roles, kept, partial=reader.partial)
    if isinstance(validation, np.ndarray) and not np.isin(validation, kept).any():
        raise DataError(
            f"validation: of {counted(len(validation), 'cell')}, none has what {reader.key} reads. Name "
            "cells that were measured for it, or give a share."
        )
    spec = learn_spec(cells, roles, kept, old, sets=reader.sets)
    take = match_features(cells, spec, roles, weight)
    maps = old is not None and same_model and _own_blocks(spec) != _own_blocks(old)
    if old is not None:
        _refuse_other_covariates(spec, old)
        if not maps:
            _refuse_lacking(take)
    source = open_source(cells, spec, roles, take, kept)
    refuse_missing(source, kept, reader.tolerates, reader.key)
    return Training(source, kept, validation, maps)


def refuse_unlearned(
    source: Source, rows: Int[np.ndarray, " n"], reader: Reader, schema: Schema
) -> None:
    """Refuse to learn from `rows` if none of them has a category that the model needs.

    Raises
    ------
    DataError
        If none has a label, or all are controls; or if none was measured for a role that is read.
    """
    for role in source.matrices:
        if not source.measured(role)[rows].any():
            raise DataError(
                f"No cell to learn from has {role}, which {reader.key} would learn from. Leave {role} out of "
                "the schema, or add cells that were measured for it."
            )
    for role in (role for need in reader.needs for role in need.split("|")):
        coded = role in CATEGORY_ROLES and role in source.columns
        if coded and (source.columns[role][rows] < 0).all():
            where = f"{role} ({getattr(schema, role)})"
            raise DataError(
                f"No cell to learn from has a {where}, and {reader.key} learns from cells that have one. "
                "Cells that are held out are not learned from, and a control has no perturbation."
            )


def _own_blocks(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Return the blocks of the categories of which something is learned each."""
    return {k: v for k, v in spec.blocks.items() if not (k == "perturbation" and spec.vectors)}


def _complete(cells: Cells, roles: list[str], rows: np.ndarray, *, partial: bool) -> np.ndarray:
    """Drop the cells that lack a modality, or for models that take these the cells that lack all."""
    if partial:
        return rows[cells.measured()[rows]]
    for role in cells.places:
        if role.partition("/")[0] in MATRIX_ROLES and role.partition("/")[0] in roles:
            at = cells.rows(role)
            rows = rows if at is None else rows[at[rows] >= 0]
    if len(rows) == 0:
        raise DataError("No cell has every modality that this model reads.")
    return rows


def _refuse_lacking(take: Mapping[str, np.ndarray]) -> None:
    """Refuse to go on learning without features that are known: all else would move on without them."""
    for role, found in take.items():
        if lacking := int((found < 0).sum()):
            raise DataError(
                f"{role}: training cannot continue without {lacking:,} of the "
                f"{counted(len(found), 'feature')} of "
                "the fit. Give cells that have them all, or fit anew on those that are there. (Mapping "
                "cells of a new batch may lack some: nothing but the new batch is learned.)"
            )


def _refuse_other_covariates(spec: Spec, old: Spec) -> None:
    """Refuse other covariates than those of the fit to start from, and another meaning of sets or doses."""
    for kind in ("categorical", "continuous"):
        old_form, new_form = getattr(old, kind), getattr(spec, kind)
        if kind in old.roles and old_form != new_form:
            raise ConfigError(
                f"from_ has the {kind} covariates {', '.join(old_form)}; this fit has {', '.join(new_form)}. "
                "Name the same ones, in the same order."
            )
    if "dose" in old.roles and is_amount(old, "dose") != is_amount(spec, "dose"):
        old_form, new_form = (
            "as an amount" if is_amount(s, "dose") else "centred and scaled" for s in (old, spec)
        )
        raise ConfigError(
            f"from_ reads dose {old_form}; this fit reads it {new_form}. Both must be the same."
        )
    for role in sorted({*old.sets, *spec.sets} & set(old.categories)):
        old_form, new_form = (
            f"sets of {role} with the control {s.sets[role]!r} and "
            f"{'' if s.vectors else 'no '}vectors"
            if role in s.sets
            else f"{role} as single categories"
            for s in (old, spec)
        )
        if old_form != new_form:
            raise ConfigError(
                f"from_ reads {old_form}; this fit reads {new_form}. Both must be the same."
            )
