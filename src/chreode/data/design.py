"""What the columns of a design cannot separate, however many cells there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from operator import itemgetter
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..errors import counted

#: What models take out, and what users ask about.
_TAKEN_OUT = ("batch", "categorical", "continuous")
_ASKED = ("label", "perturbation", "time", "dose")
#: How bad it is, worst first: what is taken out is what is asked about, or has one value of it alone; two
#: columns hold the same; one is constant; some values are seen once.
_CONFOUNDED, _NESTED, _REDUNDANT, _CONSTANT, _NOTE = range(5)

#: Cells of a time, on average, from which it is one that cells share.
_SHARED = 5
#: What models of dynamics make of such cells, where no trajectory is named.
ONE_COURSE = (
    "cells of one time are other cells than those of the next, and no trajectory says which became which. "
    "The cells of each time are averaged, and one mean course is learned. To learn how their distributions "
    "move, raise population_steps (0 by default), to 200 or so"
)

Codes = Int[np.ndarray, " cells"]
Problem: TypeAlias = tuple[int, str, str]  # how bad, role, text


def confounded(
    columns: Mapping[str, pd.Series],
) -> Iterator[tuple[Literal["warning", "note"], str, str]]:
    """Yield (level, role, text) of what columns, named as in ``batch (obs/lane)``, do not separate.

    The worst comes first; the order of the columns changes nothing. Numbers count as categories, if some
    cells share each on average. Cells without a value are left out.
    """
    found = {column: _coded(values) for column, values in columns.items()}
    codes = {column: code for column, code in found.items() if code.max(initial=-1) > 0}
    problems = [
        t for first, second in combinations(sorted(codes), 2) for t in _pair(first, second, codes)
    ]
    problems += [
        t
        for column in sorted(found.keys() - codes.keys())
        for t in _constant(column, columns[column])
    ]
    for rank, role, text in sorted(problems, key=itemgetter(0)):
        yield "note" if rank == _NOTE else "warning", role, text


def shared(time: Float[np.ndarray, " cells"]) -> bool:
    """Return whether there are a few times, each of many cells, as in snapshots of a population."""
    n = len(np.unique(time))
    return n > 1 and len(time) >= _SHARED * n


def _base(column: str) -> str:
    return column.partition(" ")[0].partition("/")[0]


def _coded(values: pd.Series) -> Codes:
    return np.asarray(pd.factorize(values, sort=True)[0], np.int64)


def _constant(column: str, values: pd.Series) -> Iterator[Problem]:
    if values.notna().any() and _base(column) != "trajectory":
        yield (
            _NOTE if _base(column) in ("batch", "label") else _CONSTANT,
            _base(column),
            f"{column} is {values.dropna().iloc[0]} in every cell that has a value: it can teach nothing.",
        )


def _pair(first: str, second: str, codes: Mapping[str, Codes]) -> Iterator[Problem]:
    """Yield what is wrong where one of two columns determines the other."""
    known = (codes[first] >= 0) & (codes[second] >= 0)
    a, b = codes[first][known], codes[second][known]
    a_gives_b, b_gives_a = _determines(a, b), _determines(b, a)
    roles = _base(first), _base(second)
    if a_gives_b and b_gives_a and all(role in (*_TAKEN_OUT, *_ASKED) for role in roles):
        both = any(r in _ASKED for r in roles) and any(r in _TAKEN_OUT for r in roles)
        what = (
            "what is taken out with the one is what the other did, and no model can tell which it was"
            if both
            else "one of them is enough, and their effects cannot be told apart"
        )
        text = f"{first} and {second} are the same split of the cells: {what}."
        yield _CONFOUNDED if both else _REDUNDANT, roles[0], text
        return
    for (out, its), (asked_of, of) in (((first, a), (second, b)), ((second, b), (first, a))):
        if _base(out) not in _TAKEN_OUT or _base(asked_of) not in _ASKED:
            continue
        if _determines(its, of):
            yield (
                _NESTED,
                _base(out),
                (
                    f"Every value of {out} has cells of one value of {asked_of} alone: taking the first out "
                    "takes differences of the second. Compare within its values alone, or leave it out."
                ),
            )
        elif _determines(of, its):
            yield (
                _NESTED,
                _base(out),
                (
                    f"Every value of {asked_of} has cells of one value of {out} alone: where the second "
                    "differs, values of the first cannot be compared."
                ),
            )
        else:
            singles = _single_partners(of, its)
            if len(singles):
                yield (
                    _NOTE,
                    _base(asked_of),
                    f"{counted(len(singles), 'value')} of {asked_of} with cells of one value of {out} alone.",
                )


def _determines(a: Codes, b: Codes) -> bool:
    """Return whether every value of `a` goes with one value of `b`, by more than having a cell each."""
    n = len(np.unique(a))
    return 1 < n <= len(a) / 2 and len(np.unique(b)) > 1 and len(_single_partners(a, b)) == n


def _single_partners(a: Codes, b: Codes) -> Int[np.ndarray, " values"]:
    """Return the values of `a` that go with one value of `b` alone."""
    pairs = np.unique(np.stack([a, b], 1), axis=0)
    values, n = np.unique(pairs[:, 0], return_counts=True)
    return values[n == 1]
