"""Look at the values of every role before any compute, and say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from ..errors import DataError, SchemaError, counted, listed, near, warn
from ..schema import (
    CATEGORY_ROLES,
    COUNT_ROLES,
    MATRIX_ROLES,
    NUMBER_ROLES,
    UNIT_ROLES,
    Place,
    Schema,
)
from .cells import Cells
from .design import ONE_COURSE, confounded, shared
from .look import Look, look
from .places import as_category
from .sets import named_vectors

#: Counts up to which float32 holds every whole number.
_EXACT = 2**24
#: Strings that often stand for "not known".
_SUSPECT = ("nan", "na", "none", "unknown", "unmatched", "unassigned", "")
_LONELY = "nothing can be learned there. Remove such cells or merge categories."
#: Roles that say whether values are counts, which their sums may belie.
SCALED_ROLES = (*COUNT_ROLES, "expression")
#: Roles whose NaN means "not measured".
MAY_LACK = ("expression", "protein", "views")


class CountsWarning(UserWarning):
    """Values are accepted as counts, and look like none; or as expression, and look like counts."""


@dataclass(frozen=True)
class Finding:
    """One thing seen in the data: an `error` stops a fit, a `warning` and a `note` do not."""

    level: Literal["error", "warning", "note"]
    role: str
    text: str


def findings(
    cells: Cells,
    rows: np.ndarray | None = None,
    *,
    query: bool = False,
    looks: Mapping[str, Look] | None = None,
    progress: bool | None = None,
) -> list[Finding]:
    """Return everything there is to say about the roles of `cells`, on `rows` (default: all).

    A `query` is not learned from, so a batch of one cell is no error there. Every matrix is read
    once, and those at the places of `looks` are not read again. Cells that lack every modality that a
    role names are asked for nothing.
    """
    rows = np.arange(len(cells)) if rows is None else rows
    found = list(_names(cells.names))
    rows = rows[cells.measured()[rows]]
    if len(rows) == 0:
        return [*found, Finding("error", "rows", "There are no cells.")]
    for role in cells.places:
        try:
            found += _role(cells, role, rows, looks or {}, progress)
        except SchemaError as error:
            found.append(Finding("error", role, str(error)))
    if cells.schema.vectors is not None:
        try:
            named_vectors(cells, cells.schema.vectors)
        except (DataError, SchemaError) as error:
            found.append(Finding("error", "vectors", str(error)))
    if query:  # nothing is learned
        return [f for f in found if not f.text.endswith(_LONELY)]
    return found if any(f.level == "error" for f in found) else [*found, *_design(cells, rows)]


def _design(cells: Cells, rows: np.ndarray) -> Iterator[Finding]:
    columns = {}
    for role, place in cells.places.items():
        if role.partition("/")[0] not in (*MATRIX_ROLES, "size_factor", "trajectory"):
            numeric = role.partition("/")[0] in (*UNIT_ROLES, "continuous")
            values = cells.column(role) if numeric else cells.categories(role)
            columns[f"{role} ({place})"] = values.iloc[rows]
    for level, role, text in confounded(columns):
        yield Finding(level, role, text)
    if cells.schema.time and not cells.schema.trajectory and shared(cells.numbers("time")[rows]):
        text = f"time ({cells.schema.time}), for models of dynamics: {ONE_COURSE}."
        yield Finding("note", "time", text)


def require(found: list[Finding]) -> None:
    """Raise the errors among `found`, all in one text; without any, warn of what is said of counts.

    Raises
    ------
    SchemaError, DataError
        If there are any: `SchemaError` where a place is absent.
    """
    errors = [f.text for f in found if f.level == "error"]
    if errors:
        absent = any(f.level == "error" and "there is no" in f.text for f in found)
        raise (SchemaError if absent else DataError)("\n".join(errors))
    for f in found:
        if f.level == "warning" and f.role in SCALED_ROLES:
            warn(f.text, CountsWarning)


def _names(names: pd.Index) -> Iterator[Finding]:
    if not names.is_unique:
        name = names[names.duplicated()][0]
        yield Finding(
            "error", "cells", f"Cell names are not unique ({name!r}): data.obs_names_make_unique()."
        )


def _role(
    cells: Cells,
    role: str,
    rows: np.ndarray,
    looks: Mapping[str, Look],
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> Iterator[Finding]:
    base, place = role.partition("/")[0], cells.places[role]
    slot = f"{role} ({place})"
    if base in MATRIX_ROLES:
        values, names = cells.matrix(role)
        at = cells.rows(role)
        yield from _form(slot, base, place, values, names)
        if values.shape[1] and values.dtype.kind in "fiub":
            rows = rows if at is None else at[rows][at[rows] >= 0]
            seen = looks.get(str(place)) or look(
                values, rows, f"check {role}", progress, sums=base in SCALED_ROLES
            )
            yield from _values(slot, base, seen, cells.schema)
            if base == "counts" and not (seen.negative or seen.infinite or seen.lacking):
                yield from _zeros(slot, base, place, seen)
    elif base in CATEGORY_ROLES or base == "categorical":
        yield from _category(slot, base, place, cells.column(role).iloc[rows], cells.schema)
    elif base in NUMBER_ROLES or base == "continuous":
        yield from _number(slot, base, place, cells.numbers(role)[rows])


def _form(slot: str, role: str, place: Place, values: Any, names: pd.Index) -> Iterator[Finding]:
    if values.shape[1] == 0:
        yield Finding("error", role, f"{slot} has no features.")
    elif values.dtype.kind not in "fiub":
        yield Finding("error", role, f"{slot} holds {values.dtype}, expected numbers.")
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        mend = {
            "raw": "rename them before you set raw",
            "obsm": f"rename the columns of {place.matrix()}",
        }.get(place.slot, f"{place.owner()}.var_names_make_unique()")
        yield Finding(
            "error", role,
            f"{slot}: feature names are not unique ({twice!r}): {mend}.",
        )  # fmt: skip


def _values(slot: str, role: str, seen: Look, schema: Schema) -> Iterator[Finding]:
    if seen.infinite:
        yield Finding(
            "error",
            role,
            f"{slot} holds {counted(seen.infinite, 'infinite value')}; remove such cells or features.",
        )
    elif max(seen.high, -seen.low) > 3.4e38:
        yield Finding("error", role, f"{slot} holds values beyond 3.4e38; divide or remove them.")
    if seen.lacking and role not in MAY_LACK:
        yield Finding(
            "error", role,
            f"{slot} holds {seen.lacking:,} NaN. Counts that were not measured are no zeros: "
            "remove such cells or features.",
        )  # fmt: skip
    elif seen.lacking:
        yield Finding(
            "note", role, f"{slot}: {counted(seen.lacking, 'NaN value')}, read as not measured."
        )
    if role in COUNT_ROLES:
        yield from _counts(slot, role, seen, schema)
    elif (
        role == "expression" and not (seen.broken or seen.negative or seen.scale) and seen.high > 1
    ):
        yield Finding(
            "warning", role,
            f"{slot} looks like raw counts: whole numbers alone, up to {seen.high:,.0f}. What differs most "
            "between such cells is how many molecules were caught. Name this place as `counts`, which "
            "models normalise; if these are no counts, all is well.",
        )  # fmt: skip
    most = max(seen.high, -seen.low)
    if _EXACT < most < 3.4e38:
        yield Finding(
            "warning", role,
            f"{slot} holds counts up to {most:,.0f}. Models read them as float32: "
            f"neighbouring counts above {_EXACT:,} become one (six to seven digits are kept)."
            if role in COUNT_ROLES
            else f"{slot} holds values up to {most:.3g}. Models read them as float32, which has six to seven "
            f"digits: differences below {most / _EXACT:.2g} are lost there. Divide, or subtract from every "
            "feature what its cells share.",
        )  # fmt: skip


def _counts(slot: str, role: str, seen: Look, schema: Schema) -> Iterator[Finding]:
    if seen.negative:
        yield Finding(
            "error", role,
            f"{slot} holds {counted(seen.negative, 'negative value')}, and counts have none. Name the place "
            "of the raw counts, often 'layers/counts' or 'raw'.",
        )  # fmt: skip
    elif seen.broken and not schema.fractional:
        yield Finding(
            "error", role,
            f"{slot} holds {counted(seen.broken, 'value')} with decimals (such as {seen.example:.4g}): this "
            "looks normalised. Name the place of the raw counts, often 'layers/counts' or 'raw'; "
            "if they are ambient-corrected or full-length counts, set Schema(fractional=True).",
        )  # fmt: skip
    elif seen.scale and (seen.broken or seen.high > 1):
        drawn = "" if seen.broken else " If real counts were drawn down to one total, all is well."
        yield Finding(
            "warning", role,
            f"{slot} looks {seen.scale}the values of every cell add up to about the same. Models of "
            "counts mean nothing on it. Name the place of the raw counts, often 'layers/counts' or "
            f"'raw', or name this one as `expression`.{drawn}",
        )  # fmt: skip


def _zeros(slot: str, role: str, place: Place, seen: Look) -> Iterator[Finding]:
    if len(seen.empty):
        yield Finding(
            "error", role,
            f"{slot} has {counted(len(seen.empty), 'cell')} without any counts (first at row "
            f"{int(seen.empty[0])}). Remove such cells: {place.owner()}[{place.matrix()}.sum(1) > 0].",
        )  # fmt: skip
    if seen.silent:
        yield Finding(
            "note",
            role,
            f"{slot} has {counted(seen.silent, 'feature')} with zeros alone. Such features are kept.",
        )


def _without(place: Place, condition: str) -> str:
    """Return how cells are removed: as a condition on `rows`, where the column is one of all cells."""
    if place.modality:
        return "Remove such cells"
    plain = place.key.isidentifier() and not iskeyword(place.key)
    column = f"obs.{place.key}" if plain else f"obs[{place.key!r}]"
    return f"Remove such cells: rows={condition.replace('COLUMN', column)!r}"


def _category(
    slot: str, role: str, place: Place, values: pd.Series, schema: Schema
) -> Iterator[Finding]:
    kind = (
        values.cat.categories.dtype
        if isinstance(values.dtype, pd.CategoricalDtype)
        else values.dtype
    )
    if kind.kind == "f" and values.notna().any():
        yield Finding(
            "error", role,
            f"{slot} holds floats, not categories. If they are codes, make them so: "
            ".astype(int).astype(str); if they are measurements, name them `continuous`.",
        )  # fmt: skip
        return
    known = as_category(values, schema.missing)
    lacking = int(known.isna().sum())
    known_alone = " and ".join(
        ["not missing(COLUMN)", *(f"COLUMN != {word!r}" for word in schema.missing)]
    )
    if lacking and role in ("batch", "categorical", "perturbation", "trajectory"):
        yield Finding(
            "error", role,
            f"{slot} has no value in {counted(lacking, 'cell')}. {_without(place, known_alone)}, or give "
            "them a category of their own.",
        )  # fmt: skip
    elif lacking:
        yield Finding("note", role, f"{slot} has no value in {counted(lacking, 'cell')}.")
    sizes = known.value_counts()
    suspect = [c for c in sizes.index if c.lower() in _SUSPECT]
    if suspect:
        yield Finding(
            "warning", role,
            f"{slot} has a category {suspect[0]!r} of {counted(sizes[suspect[0]], 'cell')}. If it means 'not "
            f"known', set Schema(missing=({suspect[0]!r},)).",
        )  # fmt: skip
    if role in ("batch", "categorical") and (sizes == 1).any():
        names = sizes.index[sizes == 1].tolist()
        yield Finding(
            "error", role,
            f"{slot} has {counted(len(names), 'category')} of one cell "
            f"({listed(map(repr, names))}): {_LONELY}",
        )  # fmt: skip
    if role == "perturbation" and schema.control is not None and schema.control not in sizes.index:
        yield Finding(
            "error",
            role,
            f"{slot}: there is no category {schema.control!r} (the control)."
            f"{near(schema.control, sizes.index)}",
        )


def _number(
    slot: str, role: str, place: Place, values: Float64[np.ndarray, " n"]
) -> Iterator[Finding]:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        finite = (
            "COLUMN < 1e300 and COLUMN > -1e300"
            if np.isinf(values).any()
            else "not missing(COLUMN)"
        )
        yield Finding(
            "error", role,
            f"{slot} is NaN or infinite in {counted(bad, 'cell')}. {_without(place, finite)}.",
        )  # fmt: skip
    elif role != "size_factor":
        yield from merging(slot, values, unit(values))
    elif not ((values > 1e-38) & (values < 1e38)).all():  # as float32 holds them
        yield Finding("error", role, f"{slot} must be positive, and from 1e-38 to 1e38.")


def unit(values: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Return mean and standard deviation of finite numbers; a scale of 1 where they are all alike."""
    if not len(values) or values.min() == values.max():
        return (float(values[0]), 1.0) if len(values) else (0.0, 1.0)
    with np.errstate(over="ignore"):
        return float(values.mean()), float(values.std()) or 1.0


def merging(
    slot: str, values: Float64[np.ndarray, " n"], scaled: tuple[float, float]
) -> Iterator[Finding]:
    """Say how many distinct numbers float32 makes one of, once they are centred and scaled.

    An error if these are more than a hundredth of the numbers, and more than chance brings together
    among so many; else a note.
    """
    role, distinct = (
        slot.partition(" ")[0].partition("/")[0],
        np.unique(values[~np.isnan(values)]),
    )
    with np.errstate(all="ignore"):
        narrow = ((distinct - scaled[0]) / scaled[1]).astype(np.float32)
    if not np.isfinite(narrow).all():
        yield Finding("error", role, f"{slot} holds numbers up to {np.abs(distinct).max():.3g}: "
            "too large to be scaled. Divide them.")  # fmt: skip
        return
    same = np.flatnonzero(np.diff(narrow) == 0)
    n = len(distinct)
    if not len(same):
        return
    example = " and ".join(map(repr, distinct[same[0] : same[0] + 2].tolist()))
    few = len(same) <= n / 100 + n**2 / 2**24
    yield Finding(
        "note" if few else "error", role,
        f"{slot}: {len(same):,} of {counted(n, 'different number')} cannot be distinguished from the next "
        f"one (such as {example}), beside the range of all from {distinct[0]:.6g} to {distinct[-1]:.6g}"
        + ("." if few else ". Look for outliers or a second unit, and subtract or rescale."),
    )  # fmt: skip
