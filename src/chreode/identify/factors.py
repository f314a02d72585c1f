"""Factors of cells: columns of obs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

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
        Numbers, or numbers of `classes`; NaN where a cell has none.
    classes
        Names of the classes; none of a continuous factor.
    """

    name: str
    values: Float64[np.ndarray, " n"]
    classes: tuple[str, ...] = ()

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which cells have a value."""
        return ~np.isnan(self.values)

    @property
    def width(self) -> int:
        """Numbers of one reading: a probability per class, or the value."""
        return max(1, len(self.classes))


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
        If it is constant, or known of no cell.
    """
    if not names:
        raise ConfigError("factors is empty: name columns of obs, as in factors=['cell_type'].")
    found = []
    for name in names:
        text = obs_place(name)
        values = cells.column_at(Place.parse(text), "factors")
        found.append(_factor(text.partition("obs/")[2], values, cells.schema.missing))
    twice = [f.name for i, f in enumerate(found) if f.name in {g.name for g in found[:i]}]
    if twice:
        raise ConfigError(f"factors names {twice[0]!r} twice. Name each column once.")
    return found


def _factor(name: str, values: pd.Series, missing: Sequence[str]) -> Factor:
    classes: tuple[str, ...] = ()
    if values.dtype.kind in "fiu":
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    else:
        codes, names = pd.factorize(as_category(values, missing), sort=True)
        numbers, classes = np.where(codes < 0, np.nan, codes), tuple(map(str, names))
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise DataError(f"factors: {name} is missing in all cells. Name another column.")
    if len(np.unique(known)) < 2:
        raise DataError(
            f"factors: {name} is constant, so that positives cannot change it. Leave it out."
        )
    return Factor(name, numbers, classes)


def refuse_few(factor: Factor) -> None:
    """Refuse factors that too few cells have.

    Raises
    ------
    DataError
        It says how many are needed, or which classes are too small.
    """
    n = int(factor.known.sum())
    if n < FEWEST:
        raise DataError(
            f"factors: {factor.name} is known of {counted(n, 'cell')} that can be read, and readers need "
            f"{FEWEST}. Give more cells."
        )
    values = factor.values[factor.known]
    if len(np.unique(values)) < 2:
        raise DataError(f"factors: {factor.name} is constant in the cells that have positives.")
    sizes = {name: int((values == code).sum()) for code, name in enumerate(factor.classes)}
    few = [f"{name} ({size})" for name, size in sizes.items() if size < FEWEST_OF_CLASS]
    if few:
        raise DataError(
            f"factors: classes of {factor.name} have too few cells: {listed(few)}. Readers need "
            f"{FEWEST_OF_CLASS} of each: join such classes, or set them to missing."
        )
