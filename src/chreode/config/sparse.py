"""Sparse matrices are sound before compiled code reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ChreodeError, DataError, counted


def refuse_ends(
    name: str,
    indptr: np.ndarray,
    n: int,
    stored: tuple[int, int],
    error: type[ChreodeError] = DataError,
) -> None:
    """Refuse ends of `n` rows (or columns) that rows of so many stored values and indices cannot have."""
    formed = indptr.ndim == 1 and indptr.dtype.kind in "iu" and len(indptr) == n + 1
    agree = formed and stored[0] == stored[1] and indptr[0] == 0 and indptr[-1] <= stored[0]
    if agree and not (indptr[1:] < indptr[:-1]).any():
        return
    raise error(
        f"{name} is damaged: its indptr does not describe {counted(n, 'row')} of "
        f"{counted(stored[0], 'stored value')} and {counted(stored[1], 'column index')} (a small "
        "integer type may have wrapped). Read, copy or make it again."
    )


def refuse_outside(
    name: str,
    indices: np.ndarray,
    width: int,
    error: type[ChreodeError] = DataError,
) -> None:
    """Refuse indices that are no features of a matrix so wide."""
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise error(
            f"{name} is damaged: its indices are {indices.dtype} of shape {indices.shape}, expected a list "
            "of whole numbers. Read or make it again."
        )
    if len(indices) and not 0 <= indices.min() <= indices.max() < width:
        odd = int(indices.min() if indices.min() < 0 else indices.max())
        raise error(
            f"{name} is damaged: it has a value in column {odd:,}, and its columns are 0 to {width - 1:,}. "
            "Read, copy or make it again."
        )


def refuse_damaged(values: Any, name: str) -> None:
    """Refuse a CSR or CSC matrix whose parts do not agree: compiled code would read beyond them."""
    major, minor = values.shape[::-1] if values.format == "csc" else values.shape
    refuse_ends(name, values.indptr, major, (len(values.data), len(values.indices)))
    refuse_outside(name, values.indices[: values.indptr[-1]], minor)
