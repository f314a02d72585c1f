"""One pass over a matrix: what its values look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int, Shaped

from ..compute.progress import bar

#: Values looked at in one go: bounds the memory of the checks.
_PIECE = 2**22
#: What turns normalised values back to ones whose sums are the same in every cell, with the largest value
#: that is tried (no logarithm of counts comes near 60); and cells from which equal sums are no chance.
_SCALES: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "": (math.inf, lambda x: x),
    "turned back by expm1, ": (60, np.expm1),
    "turned back by 2 ** x - 1, ": (60, lambda x: np.exp2(x) - 1),
}
_SOME = 5
#: How many times the smaller sums the larger ones are where they are the same; rounding moves them (counts
#: of real cells: 2 to 10 times). Of rounded logarithms they come this much closer, as a share of their
#: logarithm: sums of exponentiated counts always lie further apart than those of the counts.
_SAME, _ROUNDED, _CLOSER = 1.01, 1.1, 0.75


@dataclass(frozen=True, eq=False)
class Look:
    """What one pass over a matrix of numbers saw.

    Attributes
    ----------
    low, high
        Smallest and largest finite value, 0 among them.
    lacking, infinite, negative, broken
        Values that are NaN, infinite, below 0, finite and not whole.
    example
        The first one that is not whole.
    empty
        Rows whose values add up to 0.
    silent
        Columns whose values add up to 0.
    scale
        How the values look normalised, in words; empty if they do not, or sums were not asked for.
    """

    low: float
    high: float
    lacking: int
    infinite: int
    negative: int
    broken: int
    example: float
    empty: Int[np.ndarray, " rows"]
    silent: int
    scale: str


def look(
    values: Any,
    rows: Int[np.ndarray, " n"],
    what: str = "check",
    progress: bool | None = None,  # noqa: FBT001 (tri-state)
    *,
    sums: bool = False,
) -> Look:
    """Look at the values of `rows` in one pass, a few rows at a time; if wanted at their `sums` too."""
    low = high = example = 0.0
    lacking = infinite = negative = broken = 0
    empty = [rows[:0]]
    back = {name: [np.zeros(0)] for name in _SCALES}
    total = np.zeros(values.shape[1])
    with bar(len(rows), what, progress) as shown, np.errstate(all="ignore"):
        for some, block in _blocks(values, rows):
            stored = stored_values(block)
            finite = stored
            if stored.dtype.kind == "f" and not np.isfinite(stored.sum()):
                known = np.isfinite(stored)
                nan = int(np.isnan(stored).sum())
                lacking, infinite = lacking + nan, infinite + known.size - int(known.sum()) - nan
                finite = stored[known]
            low, high = min(low, finite.min(initial=0)), max(high, finite.max(initial=0))
            negative += int((stored < 0).sum()) if low < 0 else 0
            if stored.dtype.kind == "f":
                odd = finite[finite != np.floor(finite)]
                example = float(odd[0]) if odd.size and not broken else example
                broken += odd.size
            for name, (most, f) in _SCALES.items() if sums else ():
                back[name].append(
                    _row_sums(block, f) if high <= most else np.full(len(some), math.inf)
                )
            empty.append(some[np.asarray(block.sum(1)).ravel() == 0])
            total += np.asarray(block.sum(0)).ravel()
            shown.update(len(some))
    return Look(
        float(low), float(high), lacking, infinite, negative, broken, example,
        np.concatenate(empty), int((total == 0).sum()),
        _scale({name: np.concatenate(sums) for name, sums in back.items()}, whole=not broken),
    )  # fmt: skip


def _row_sums(block: Any, f: Callable[[np.ndarray], np.ndarray]) -> Float64[np.ndarray, " n"]:
    """Return the sum of f of every row, where f(0) is 0."""
    if sp.issparse(block):
        block = block.copy()
        block.data = f(block.data.astype(np.float64))
        return np.asarray(block.sum(1)).ravel()
    return f(np.asarray(block, np.float64)).sum(1)


def _scale(sums: Mapping[str, Float64[np.ndarray, " n"]], *, whole: bool) -> str:
    """Return how values look normalised, by the sums of cells in them and in their exponentials."""
    ratios = {name: _ratio(values) for name, values in sums.items()}
    same = _ROUNDED if whole else _SAME
    found = next((name for name, times in ratios.items() if times <= same), None)
    if found is None and whole:
        closest = min(ratios, key=lambda name: ratios[name])
        closer = math.log(ratios[closest]) < _CLOSER * math.log(ratios[""])
        found = closest if closer else None
    if found is None:
        return ""
    return f"{'log-' if found else ''}normalised{' and rounded' if whole else ''}: {found}"


def _ratio(sums: Float64[np.ndarray, " n"]) -> float:
    """Return how many times the smaller sums the larger ones are; infinite where they are too few."""
    if len(sums) < _SOME or not np.isfinite(sums).all():
        return math.inf
    low, high = np.quantile(sums, (0.05, 0.95))  # one odd cell must not decide
    return float(high / low) if low > 0 else math.inf


def any_nan(
    values: Any, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " g"] | None = None
) -> bool:
    """Return whether some rows of a matrix hold NaN in some columns (None: in any)."""
    if values.dtype.kind != "f":
        return False
    blocks = (block if columns is None else block[:, columns] for _, block in _blocks(values, rows))
    return any(bool(np.isnan(stored_values(block)).any()) for block in blocks)


def rows_of_nan(values: Any, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Return which of some rows of a matrix hold NaN alone."""
    found = [rows[:0]]
    for some, block in _blocks(values, rows) if values.dtype.kind == "f" else ():
        dense = block.toarray() if sp.issparse(block) else np.asarray(block)
        found.append(some[np.isnan(dense).all(1)])
    return np.concatenate(found)


def stored_values(block: Any) -> Shaped[np.ndarray, " n"]:
    """Return what is stored of some rows, flat: all but the zeros of a sparse matrix."""
    return block.data if sp.issparse(block) else np.asarray(block).ravel()


def _blocks(values: Any, rows: Int[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield rows and their values, a few at a time."""
    step = max(1, _PIECE // max(1, values.shape[1]))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        yield some, values[some]
