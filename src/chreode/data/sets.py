"""Roles whose values are sets of names: ``KLF1+MAP2K6`` as codes, in any combination."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from ..errors import DataError, SchemaError, counted, listed, near
from ..schema import Spec, members
from .cells import Cells

#: Sets of codes, a row each: rising, and -1 behind the last.
Sets = Int[np.ndarray, "n m"]


def single_names(
    role: str, values: Collection[str], control: str, vectors: Mapping[str, Sequence[float]]
) -> set[str]:
    """Return the single names in some values, and those of vectors, which can be asked for too.

    Raises
    ------
    DataError
        If a value is no set of names, or a name has no vector where others have.
    """
    found: set[str] = set()
    for value in sorted(values):
        found.update(_members(role, value, control))
    lacking = sorted(found - set(vectors)) if vectors else []
    if lacking:
        raise DataError(
            f"{role}: vectors lacks {listed(lacking)} ({len(lacking):,} of {counted(len(found), 'name')}). "
            "Add what it lacks, or leave out such cells."
        )
    return found | set(vectors)


def as_codes(
    text: pd.Series, role: str, spec: Spec, rows: Int[np.ndarray, " r"] | None
) -> tuple[Sets, set[str]]:
    """Return the set of each cell, and the single names on `rows` (default: all) that the fit never saw.

    Raises
    ------
    DataError
        If a value on `rows` is no set of names.
    """
    at, values = pd.factorize(text)
    checked = np.unique(at if rows is None else at[rows])
    code = {name: i for i, name in enumerate(spec.categories[role])}
    named: list[tuple[str, ...]] = [()] * len(values)
    for i in checked[checked >= 0]:
        named[i] = _members(role, str(values[i]), spec.sets[role])
    unknown = {name for names in named for name in names if name not in code}
    table = packed([[code[name] for name in names if name in code] for names in [*named, ()]])
    return table[at], unknown  # a cell without a value, -1, has the last row: the empty set


def code_of(spec: Spec, role: str, value: str) -> Int[np.ndarray, " m"]:
    """Return the codes of a set, rising.

    Raises
    ------
    SchemaError
        If it is no set of names, or the fit does not know one of them.
    """
    names = spec.categories[role]
    known = members(value, spec.sets[role])
    for name in known:
        if name not in names:
            every = [*filter(None, [spec.sets[role]]), *names]
            raise SchemaError(
                f"{role}={value!r}: {name!r} was never seen in the fit.{near(name, every)}"
            )
    return np.array(sorted(names.index(name) for name in known), np.int64)


def packed(sets: Sequence[Sequence[int]]) -> Sets:
    """Return sets of codes as rows."""
    table = np.full((len(sets), max([1, *map(len, sets)])), -1, np.int64)
    for row, codes in zip(table, sets, strict=True):
        row[: len(codes)] = sorted(codes)
    return table


def widened(sets: Int[np.ndarray, "*n m"], width: int) -> Int[np.ndarray, "*n w"]:
    """Return the same sets padded to `width` names, if they have less."""
    more = max(0, width - sets.shape[-1])
    return np.concatenate([sets, np.full((*sets.shape[:-1], more), -1, sets.dtype)], axis=-1)


def shares(dose: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Return centre and scale that make a dose a share of the largest, and leave none at 0."""
    return 0.0, float(dose.max(initial=0.0)) or 1.0


def is_amount(spec: Spec, role: str) -> bool:
    """Return whether a role says how much there was of each name in a set: 0 is none, with no effect."""
    return role == "dose" and role in spec.roles and bool(spec.sets)


def refuse_negative(dose: Float64[np.ndarray, " n"]) -> None:
    """Refuse doses below 0, where they are amounts.

    Raises
    ------
    DataError
        If there are any.
    """
    if dose.min(initial=0.0) < 0:
        raise DataError(
            f"dose goes down to {dose.min():g}: how much there was of something is not negative. Undo "
            "logarithms, or name this column as continuous."
        )


def vectors_of(
    cells: Cells, controls: Mapping[str, str], old: Spec | None = None
) -> dict[str, tuple[float, ...]]:
    """Return the vector of each single perturbation, if the schema names them; those of an older fit stay.

    Parameters
    ----------
    controls
        Roles that are read as sets, and the value of each that means the empty one.

    Raises
    ------
    SchemaError
        If they are absent.
    DataError
        If they are no vectors, or longer or shorter than those of the older fit.
    """
    place, known = cells.schema.vectors, dict(old.vectors) if old else {}
    if place is None or "perturbation" not in controls:
        return known
    found = named_vectors(cells, place)
    found.pop(controls["perturbation"], None)  # the empty set has none
    if len({*map(len, known.values()), *map(len, found.values())}) > 1:
        raise DataError(f"vectors ({place}) are longer or shorter than those of the fit.")
    return {**found, **known}


def named_vectors(cells: Cells, place: str) -> dict[str, tuple[float, ...]]:
    """Return the vectors at a place by name.

    Raises
    ------
    SchemaError
        If they are absent.
    DataError
        If they are no finite numbers, or not as many for each name.
    """
    given = cells.entry(place.partition("/")[2], "vectors")
    try:
        if isinstance(given, pd.DataFrame):
            if not given.index.is_unique:
                raise ValueError("a name has two rows")
            given = dict(zip(given.index, given.to_numpy(np.float64), strict=True))
        made = {str(name): np.asarray(vector, np.float64) for name, vector in given.items()}
        table = np.stack(list(made.values()))
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"vectors ({place}): expected a table with a row per perturbation, or a mapping of names to "
            f"vectors of one length ({error})."
        ) from error
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise DataError(f"vectors ({place}): expected finite numbers, a vector for each name.")
    return dict(zip(made, map(tuple, table.tolist()), strict=True))


def _members(role: str, value: str, control: str) -> tuple[str, ...]:
    try:
        return members(value, control)
    except SchemaError as error:
        raise DataError(f"{role}: {error}") from None
