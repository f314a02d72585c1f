"""Look at the values of every role before any compute, and say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .errors import DataError, SchemaError
from .read import Data, column, matrix, where
from .schema import CATEGORY_ROLES, COUNT_ROLES, MATRIX_ROLES, NUMBER_ROLES, Place, Schema

#: Values looked at in one go: bounds the memory of the checks.
_PIECE = 2**22
#: Strings that often stand for "not known" without saying so.
_SUSPECT = ("nan", "na", "none", "unknown", "unmatched", "unassigned", "")
_LONELY = (
    "one cell each; nothing can be learned of them. Remove these cells or merge the categories."
)
#: Roles whose NaN means "not measured".
_MAY_LACK = ("expression", "protein", "views")


@dataclass(frozen=True)
class Finding:
    """One thing seen in the data: an `error` stops a fit, a `warning` and a `note` do not."""

    level: Literal["error", "warning", "note"]
    role: str
    text: str


def findings(
    data: Data, schema: Schema, rows: np.ndarray | None = None, *, query: bool = False
) -> list[Finding]:
    """Return everything there is to say about the roles of `schema`, on `rows` (default: all).

    A `query` is not learned from, so a batch of one cell is no error there.
    """
    rows = np.arange(data.n_obs) if rows is None else rows
    found = list(_names(data))
    if len(rows) == 0:
        return [*found, Finding("error", "rows", "There are no cells.")]
    for role, place in schema.places():
        try:
            found += _role(data, schema, role, place, rows)
        except SchemaError as error:
            found.append(Finding("error", role, str(error)))
    return [f for f in found if not (query and f.text.endswith(_LONELY))]


def require(found: list[Finding]) -> None:
    """Raise the errors among `found`, all in one text.

    Raises
    ------
    SchemaError, DataError
        If there are any: `SchemaError` where a place is absent.
    """
    errors = [f.text for f in found if f.level == "error"]
    if errors:
        absent = any(f.level == "error" and "there is no" in f.text for f in found)
        raise (SchemaError if absent else DataError)("\n".join(errors))


def _names(data: Data) -> Iterator[Finding]:
    if not data.obs_names.is_unique:
        name = data.obs_names[data.obs_names.duplicated()][0]
        yield Finding(
            "error", "cells", f"Cell names are not unique ({name!r}): data.obs_names_make_unique()."
        )


def _role(
    data: Data, schema: Schema, role: str, place: Place, rows: np.ndarray
) -> Iterator[Finding]:
    base = role.partition("/")[0]
    if base in MATRIX_ROLES:
        values, names = matrix(data, place, role)
        at = where(data, place)
        if at is not None:
            rows = at[rows]
            rows = rows[rows >= 0]
        yield from _matrix(f"{role} ({place})", base, values, names, rows, schema)
    else:
        values = column(data, place, role).iloc[rows]
        if base in CATEGORY_ROLES or base == "categorical":
            yield from _category(f"{role} ({place})", base, values, schema)
        elif base in NUMBER_ROLES or base == "continuous":
            yield from _number(f"{role} ({place})", base, values)


def _matrix(
    said: str, role: str, values: Any, names: pd.Index, rows: np.ndarray, schema: Schema
) -> Iterator[Finding]:
    if values.shape[1] == 0:
        yield Finding("error", role, f"{said} has no features.")
        return
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        yield Finding(
            "error", role,
            f"{said}: feature names are not unique ({twice!r}): data.var_names_make_unique().",
        )  # fmt: skip
    if values.dtype.kind not in "fiub":
        yield Finding("error", role, f"{said} holds {values.dtype}, expected numbers.")
        return
    lacking = infinite = negative = fraction = 0
    example = 0.0
    for piece in _pieces(values, rows):
        missing = np.isnan(piece) if piece.dtype.kind == "f" else np.zeros(piece.shape, bool)
        lacking += int(missing.sum())
        infinite += int(np.isinf(piece).sum()) if piece.dtype.kind == "f" else 0
        negative += int((piece < 0).sum())
        broken = (piece != np.floor(piece)) & np.isfinite(piece)
        if broken.any():
            example = float(piece[broken][0])
            fraction += int(broken.sum())
    if infinite:
        yield Finding("error", role, f"{said} holds {infinite:,} infinite values; remove them.")
    if lacking and role not in _MAY_LACK:
        yield Finding(
            "error", role,
            f"{said} holds {lacking:,} NaN. Counts that were not measured are no zeros: "
            "remove these cells or features.",
        )  # fmt: skip
    elif lacking:
        yield Finding("note", role, f"{said}: {lacking:,} values are NaN, read as not measured.")
    if role in COUNT_ROLES:
        if negative:
            yield Finding(
                "error", role,
                f"{said} holds {negative:,} negative values: these are no counts. Name the place of "
                "the raw counts, often 'layers/counts' or 'raw'.",
            )  # fmt: skip
        elif fraction and not schema.fractional:
            yield Finding(
                "error", role,
                f"{said} holds {fraction:,} values that are not whole (such as {example:.4g}): this "
                "looks normalised. Name the place of the raw counts, often 'layers/counts' or 'raw'; "
                "if they are ambient-corrected or full-length counts, say Schema(fractional=True).",
            )  # fmt: skip
        if not (negative or infinite or lacking):
            yield from _empty(said, role, values, rows)


def _empty(said: str, role: str, values: Any, rows: np.ndarray) -> Iterator[Finding]:
    by_cell = np.asarray(values.sum(1)).ravel()[rows]
    if role == "counts" and (by_cell == 0).any():
        yield Finding(
            "error", role,
            f"{said}: {int((by_cell == 0).sum()):,} cells have no counts at all (first at row "
            f"{int(rows[np.argmax(by_cell == 0)])}). Remove them: data[data.X.sum(1) > 0].",
        )  # fmt: skip
    if role == "counts":
        by_feature = np.asarray(
            values[rows].sum(0) if len(rows) != values.shape[0] else values.sum(0)
        )
        silent = int((by_feature == 0).sum())
        if silent:
            yield Finding(
                "note", role, f"{said}: {silent:,} features are zero in every cell; kept."
            )


def _pieces(values: Any, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the stored values of `rows`, flat, a few at a time."""
    whole = len(rows) == values.shape[0]
    if whole and sp.issparse(values):
        for start in range(0, values.data.size, _PIECE):
            yield values.data[start : start + _PIECE]
        return
    step = max(1, _PIECE // values.shape[1])
    for start in range(0, len(rows), step):
        block = values[rows[start : start + step]]
        yield block.data if sp.issparse(block) else np.asarray(block).ravel()


def as_category(values: pd.Series, missing: Sequence[str]) -> pd.Series:
    """Return strings, with None where a value is NaN, empty or declared missing."""
    text = values.astype(object)
    known = values.notna().to_numpy() & ~values.astype(str).isin(("", *missing)).to_numpy()
    return text.astype(str).where(known, None)


def _category(said: str, role: str, values: pd.Series, schema: Schema) -> Iterator[Finding]:
    kind = (
        values.cat.categories.dtype
        if isinstance(values.dtype, pd.CategoricalDtype)
        else values.dtype
    )
    if kind.kind == "f" and values.notna().any():
        yield Finding(
            "error", role,
            f"{said} holds floats, not categories. If they are codes, make them so: "
            ".astype(int).astype(str); if they are measurements, name them `continuous`.",
        )  # fmt: skip
        return
    known = as_category(values, schema.missing)
    lacking = int(known.isna().sum())
    if lacking and role in ("batch", "categorical", "perturbation", "trajectory"):
        yield Finding(
            "error", role,
            f"{said}: {lacking:,} cells have no value. Remove them, or give them a category of their own.",
        )  # fmt: skip
    elif lacking:
        yield Finding("note", role, f"{said}: {lacking:,} cells have no {role}.")
    sizes = known.value_counts()
    suspect = [c for c in sizes.index if c.lower() in _SUSPECT]
    if suspect:
        yield Finding(
            "warning", role,
            f"{said} has a category {suspect[0]!r} ({sizes[suspect[0]]:,} cells). If it means 'not known', "
            f"say Schema(missing=({suspect[0]!r},)).",
        )  # fmt: skip
    if role in ("batch", "categorical") and (sizes == 1).any():
        names = sizes.index[sizes == 1].tolist()
        yield Finding(
            "error", role,
            f"{said}: {names[:5]} have {_LONELY}",
        )  # fmt: skip
    if role == "perturbation" and schema.control is not None and schema.control not in sizes.index:
        yield Finding(
            "error", role, f"{said}: there is no category {schema.control!r} (the control)."
        )


def _number(said: str, role: str, values: pd.Series) -> Iterator[Finding]:
    if values.dtype.kind not in "fiub":
        yield Finding(
            "error", role,
            f"{said} holds {values.dtype}, expected numbers: convert it with pandas.to_numeric.",
        )  # fmt: skip
        return
    bad = int((~np.isfinite(values.to_numpy(float))).sum())
    if bad:
        yield Finding(
            "error", role, f"{said}: {bad:,} values are NaN or infinite. Remove these cells."
        )
    if role == "size_factor" and (values <= 0).any():
        yield Finding("error", role, f"{said} must be positive.")
