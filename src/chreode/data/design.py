"""What the columns of a design cannot tell apart, however many cells there are."""

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
#: columns say the same; one says nothing; some values are seen once.
_ONE, _WITHIN, _TWICE, _ALIKE, _NOTE = range(5)

#: Cells of a time, on average, from which it is one that cells share.
_SHARED = 5
#: What models of dynamics make of such cells, where no trajectory is named.
ONE_COURSE = (
    "cells of one time are other cells than those of the next, and no trajectory says which became which. "
    "The cells of each time are averaged, and one mean course is learned. To learn how their distributions "
    "move, raise population_steps (0 by default), to 200 or so"
)

Codes = Int[np.ndarray, " cells"]
Told: TypeAlias = tuple[int, str, str]  # how bad, role, text


def confounded(
    columns: Mapping[str, pd.Series],
) -> Iterator[tuple[Literal["warning", "note"], str, str]]:
    """Yield (level, role, text) of what columns, told as ``batch (obs/lane)``, do not tell apart.

    The worst comes first; the order of the columns changes nothing. Numbers count as categories, if some
    cells share each on average. Cells without a value are left out.
    """
    found = {said: _coded(values) for said, values in columns.items()}
    codes = {said: code for said, code in found.items() if code.max(initial=-1) > 0}
    told = [t for one, other in combinations(sorted(codes), 2) for t in _pair(one, other, codes)]
    told += [t for said in sorted(found.keys() - codes.keys()) for t in _alone(said, columns[said])]
    for rank, role, text in sorted(told, key=itemgetter(0)):
        yield "note" if rank == _NOTE else "warning", role, text


def shared(time: Float[np.ndarray, " cells"]) -> bool:
    """Return whether there are a few times, each of many cells, as in snapshots of a population."""
    n = len(np.unique(time))
    return n > 1 and len(time) >= _SHARED * n


def _base(said: str) -> str:
    return said.partition(" ")[0].partition("/")[0]


def _coded(values: pd.Series) -> Codes:
    return np.asarray(pd.factorize(values, sort=True)[0], np.int64)


def _alone(said: str, values: pd.Series) -> Iterator[Told]:
    if values.notna().any() and _base(said) != "trajectory":
        yield (
            _NOTE if _base(said) in ("batch", "label") else _ALIKE,
            _base(said),
            f"{said} is {values.dropna().iloc[0]} in every cell that has a value: it can teach nothing.",
        )


def _pair(one: str, other: str, codes: Mapping[str, Codes]) -> Iterator[Told]:
    """Say whether one of two columns tells the other."""
    known = (codes[one] >= 0) & (codes[other] >= 0)
    a, b = codes[one][known], codes[other][known]
    tells, told = _one_each(a, b), _one_each(b, a)
    roles = _base(one), _base(other)
    if tells and told and all(role in (*_TAKEN_OUT, *_ASKED) for role in roles):
        both = any(r in _ASKED for r in roles) and any(r in _TAKEN_OUT for r in roles)
        what = (
            "what is taken out with the one is what the other did, and no model can tell which it was"
            if both
            else "one of them is enough, and their effects cannot be told apart"
        )
        text = f"{one} and {other} are the same split of the cells: {what}."
        yield _ONE if both else _TWICE, roles[0], text
        return
    for (out, its), (asked_of, of) in (((one, a), (other, b)), ((other, b), (one, a))):
        if _base(out) not in _TAKEN_OUT or _base(asked_of) not in _ASKED:
            continue
        if _one_each(its, of):
            yield (
                _WITHIN,
                _base(out),
                (
                    f"Every value of {out} has cells of one value of {asked_of} alone: taking the first out "
                    "takes differences of the second. Compare within its values alone, or leave it out."
                ),
            )
        elif _one_each(of, its):
            yield (
                _WITHIN,
                _base(out),
                (
                    f"Every value of {asked_of} has cells of one value of {out} alone: where the second "
                    "differs, values of the first cannot be compared."
                ),
            )
        else:
            lone = _lone(of, its)
            if len(lone):
                yield (
                    _NOTE,
                    _base(asked_of),
                    f"{counted(len(lone), 'value')} of {asked_of} with cells of one value of {out} alone.",
                )


def _one_each(a: Codes, b: Codes) -> bool:
    """Return whether every value of `a` goes with one value of `b`, by more than having a cell each."""
    n = len(np.unique(a))
    return 1 < n <= len(a) / 2 and len(np.unique(b)) > 1 and len(_lone(a, b)) == n


def _lone(a: Codes, b: Codes) -> Int[np.ndarray, " values"]:
    """Return the values of `a` that go with one value of `b` alone."""
    pairs = np.unique(np.stack([a, b], 1), axis=0)
    values, n = np.unique(pairs[:, 0], return_counts=True)
    return values[n == 1]
