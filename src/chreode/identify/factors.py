"""Factors of cells: columns of obs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int

from ..data.cells import Cells
from ..data.places import as_category
from ..errors import ConfigError, DataError, counted, listed
from ..schema import Place

#: Cells with a value that a factor needs, and cells of each class.
FEWEST, FEWEST_OF_CLASS = 50, 10


@dataclass(frozen=True, eq=False)
class Factor:
    """A column of cells.

    Attributes
    ----------
    values
        Numbers, or numbers of `classes`; not finite where a cell has none that can be read.
    classes
        Names of the classes; none of a continuous factor.
    problem
        Why it cannot be read, and what to do; "" if it can.
    """

    name: str
    values: Float64[np.ndarray, " n"]
    classes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which cells have a value that can be read."""
        return np.isfinite(self.values)

    @property
    def width(self) -> int:
        """Numbers of one reading: a probability per class, or the value."""
        return max(1, len(self.classes))

    @property
    def sizes(self) -> Int[np.ndarray, " k"]:
        """Cells of each class."""
        return np.bincount(self.values[self.known].astype(int), minlength=len(self.classes))

    def left_out(self) -> list[str]:
        """Say how many cells have no value, and how many an infinite one."""
        infinite = int(np.isinf(self.values).sum())
        missing = int(np.isnan(self.values).sum())
        return [
            f"{counted(n, 'cell')} {what} left out"
            for n, what in ((missing, "without a value"), (infinite, "with an infinite value"))
            if n
        ]

    def of(self, rows: Int[np.ndarray, " m"]) -> Factor:
        """Return the factor of some cells, with a problem if they are too few.

        Numbers are scaled to mean 0 and variance 1: coverage is the same in all units, and readings of large
        numbers would lose their digits.
        """
        some = replace(self, values=self.values[rows])
        if self.problem or (problem := _too_few(some)):
            return replace(some, problem=self.problem or problem)
        if some.classes:
            return some
        known = some.values[some.known]
        return replace(some, values=(some.values - known.mean()) / known.std())

    def learned_in(self, fold: Int[np.ndarray, " n"]) -> Factor:
        """Return the factor, with a problem if cells of all folds but one hold too few to learn from."""
        if self.problem:
            return self
        of_fold, problem = fold[self.known], ""
        if len(of_fold) - np.bincount(of_fold).max() < FEWEST // 2:
            problem = f"{self.name} is known of too few cells outside of some groups"
        values = self.values[self.known]
        alone = [
            name for code, name in enumerate(self.classes)
            if len(np.unique(of_fold[values == code])) == 1
        ]  # fmt: skip
        if alone:
            problem = f"all cells of some classes of {self.name} are in one group: {listed(alone)}"
        if not problem:
            return self
        what = "Readers of a group learn from others. Name smaller groups, or none"
        return replace(self, problem=f"{problem}. {what}.")


def obs_place(name: str) -> str:
    """Return a column of obs as a place; its own name may hold a slash.

    Examples
    --------
    >>> obs_place("knobs/level"), obs_place("obs/type"), obs_place("rna:obs/type")
    ('obs/knobs/level', 'obs/type', 'rna:obs/type')
    """
    return name if name.startswith("obs/") or ":obs/" in name else f"obs/{name}"


def read_factors(cells: Cells, names: Sequence[str]) -> list[Factor]:
    """Return columns of obs as factors.

    Raises
    ------
    ConfigError
        If none is named, or one twice.
    SchemaError
        If there is no such column.
    DataError
        If none of them can be read.
    """
    if not names:
        raise ConfigError("factors is empty: name columns of obs, as in factors=['cell_type'].")
    found = []
    for name in names:
        text = obs_place(name)
        values = cells.column_at(Place.parse(text), "factors")
        modality, _, column = text.partition("obs/")
        found.append(_factor(f"{modality}{column}", values, cells.schema.missing))
    twice = [f.name for i, f in enumerate(found) if f.name in {g.name for g in found[:i]}]
    if twice:
        raise ConfigError(f"factors names {twice[0]!r} twice. Name each column once.")
    return require_one(found)


def require_one(factors: list[Factor]) -> list[Factor]:
    """Return the factors, of which one at least can be read.

    Raises
    ------
    DataError
        If none can. It says why the first one cannot.
    """
    if all(factor.problem for factor in factors):
        raise DataError(f"factors: {factors[0].problem}")
    return factors


def _factor(name: str, values: pd.Series, missing: Sequence[str]) -> Factor:
    if problem := _no_factor(name, values, missing):
        return Factor(name, np.full(len(values), np.nan), (), problem)
    classes: tuple[str, ...] = ()
    if values.dtype.kind in "fiu":
        numbers = values.to_numpy(np.float64, na_value=np.nan)
    else:
        codes, names = pd.factorize(as_category(values, missing), sort=True)
        numbers, classes = np.where(codes < 0, np.nan, codes), tuple(map(str, names))
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        infinite = np.isinf(numbers).any()
        what = "has no finite value" if infinite else "is missing in all cells"
        problem = f"{name} {what}. Name another column."
    elif len(np.unique(known)) < 2:
        problem = f"{name} is constant, so that positives cannot change it. Leave it out."
    return Factor(name, numbers, classes, problem)


def _no_factor(name: str, values: pd.Series, missing: Sequence[str]) -> str:
    """Say how to make numbers of what is no number, and no class either; "" if it is one of both."""
    column = f"data.obs[{name!r}]"
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("datetime64", "datetime", "date", "timedelta64", "timedelta"):
        since, what = (
            (column, "durations")
            if kind.startswith("timedelta")
            else (f"({column} - {column}.min())", "dates")
        )
        return (
            f"{name} holds {what}. Make it numeric, to days for example: {column} = {since} / "
            "pandas.Timedelta(days=1)."
        )
    if kind not in ("string", "mixed", "mixed-integer", "decimal"):
        return ""
    words = as_category(values, missing).dropna()
    if not len(words) or pd.to_numeric(words, errors="coerce").isna().any():
        return ""
    return (
        f"{name} is text that is all numbers (such as {words.iloc[0]!r}). Make it numeric: {column} = "
        f"{column}.astype(float). If its numbers are names of classes, make it a category: "
        f"{column}.astype('category')."
    )


def _too_few(factor: Factor) -> str:
    """Say which cells readers lack; "" if none."""
    n, name = int(factor.known.sum()), factor.name
    if n < FEWEST:
        return (
            f"{name} is known of {counted(n, 'cell')} that can be read, and readers need {FEWEST}. Give more "
            "cells."
        )
    if len(np.unique(factor.values[factor.known])) < 2:
        return f"{name} is constant in the cells that have positives. Leave it out."
    if not factor.classes:
        return ""
    sizes = zip(factor.classes, factor.sizes, strict=True)
    few = [f"{each} ({size})" for each, size in sizes if size < FEWEST_OF_CLASS]
    if not few:
        return ""
    numbers = pd.to_numeric(pd.Series(factor.classes), errors="coerce").notna().all()
    return (
        f"classes of {name} have too few cells: {listed(few)}. Readers need {FEWEST_OF_CLASS} of each: join "
        "such classes, or set them to missing."
        + (f" If {name} measures something, make it numeric." if numbers else "")
    )
