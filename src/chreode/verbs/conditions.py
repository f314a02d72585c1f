"""Conditions by the names that users give them, and as modules see them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ..data.align import condition_code
from ..data.batch import CellBatch
from ..data.horizon import plain, refuse_far
from ..data.remember import WEIGHT
from ..data.sets import is_amount, widened
from ..data.source import Source
from ..errors import ConfigError, SchemaError, counted, near, warn
from ..schema import NUMBER_ROLES, written
from .state import FittedState

Conditions = Mapping[str, Any]


def as_mapping(self: FittedState, to: Conditions | str | None) -> dict[str, Any]:
    """Return conditions by the model's names, or those of obs columns; a bare string is a perturbation."""
    given = {"perturbation": to} if isinstance(to, str) else (to or {})
    found = {condition_named(self, name): value for name, value in given.items()}
    if len(found) < len(given):
        raise ConfigError(
            f"Of {', '.join(map(repr, given))}, two name the same condition: give one."
        )
    return found


def condition_named(self: FittedState, name: str) -> str:
    """Return the condition that a name stands for: its own, or that of its obs column if one has it.

    Raises
    ------
    SchemaError
        If the model was not fitted with any of that name.
    """
    known = {
        condition: self.column(condition)
        for condition in (*self.spec.conditions, *self.module.further_conditions())
        if condition not in self.module.fixed
    }
    if name in known:
        return name
    fit = [condition for condition, column in known.items() if column == name]
    if len(fit) == 1:
        return fit[0]
    described = [k if k == column else f"{k} ({column})" for k, column in known.items()]
    hint = near(name, dict.fromkeys([*known, *known.values()]), described)
    raise SchemaError(f"This model was not fitted with a condition {name!r}.{hint}")


def encode(self: FittedState, to: Conditions | str | None) -> list[tuple[str, int | None, Any]]:
    """Return the columns and codes of conditions, as modules see them."""
    found = []
    for key, value in as_mapping(self, to).items():
        name, position, code = _coded(self, key, value)
        if key in self.spec.sets:
            code = self.spec.narrowed(key, code[None])[0]
        elif isinstance(code, float):
            code = float(self.spec.narrowed(key, np.array(code)))
        found.append((name, position, code))
    return found


def _coded(self: FittedState, key: str, value: Any) -> tuple[str, int | None, Any]:
    """Return column, position and code of a condition; a number far from any training cell is refused."""
    further = self.module.further_conditions()
    if key in further and key not in self.spec.conditions:  # else it is a column of that name
        return key, None, further[key](value)
    name, position, code = condition_code(self.spec, key, value)
    seen = self.statistics.get(name)
    if seen is None or key in self.module.compares:
        return name, position, code
    seen = seen if position is None else seen[:, position]
    by_vector = key in self.spec.sets and self.spec.vectors  # which describes what no cell had
    if key in self.spec.categories and not by_vector:
        for alone in np.setdiff1d(code, seen):
            category = self.spec.categories[key][alone] if key in self.spec.sets else value
            warn(
                f"{key}={category!r}: no training cell is of it, so that nothing was learned of it."
            )
    if key in self.spec.numbers:
        seen = np.asarray(seen, np.float64)
        low, high = np.nanmin(seen), np.nanmax(seen)
        if is_amount(self.spec, key):
            low = min(low, 0.0)  # of nothing there is no effect: no cell need show it
        asked, first, last = plain(code, low, high)
        if low == high and not np.isclose(code, low):
            raise ConfigError(
                f"{key}={asked}, and all training cells have {key}={first}: nothing was learned of others."
            )
        beyond = max(low - code, code - high) / ((high - low) or 1.0)
        known = f"up to {last}" if is_amount(self.spec, key) else f"from {first} to {last}"
        refuse_far(f"{key}={asked}, and training cells have {key} {known}", beyond)
    return name, position, code


def refuse_no_amount(
    self: FittedState, source: Source, rows: Int[np.ndarray, " n"], to: Conditions | str | None
) -> None:
    """Refuse a perturbation without a dose for cells whose own dose is 0: it would have no effect.

    Raises
    ------
    ConfigError
        If there are such cells.
    """
    asked, read = as_mapping(self, to), (*self.spec.sets, "dose")
    codes = [condition_code(self.spec, k, v) for k, v in asked.items() if k in read]
    if not _sets_without_dose(self, codes) or "dose" not in source.columns:
        return
    none = int((source.columns["dose"][rows] == 0).sum())
    if none:
        raise ConfigError(
            f"{counted(none, 'cell')} with a dose of 0 would stay as they are, because a perturbation has no "
            "effect without a dose. Give the dose too, as in "
            f"to={ {**asked, 'dose': self.spec.numbers['dose'][1]} }."
        )


def _sets_without_dose(
    self: FittedState, codes: Iterable[tuple[str, int | None, Any]]
) -> list[str]:
    """Return the roles of which a set is given that is not empty, but not how much there is of it."""
    given = {name: code for name, _, code in codes}
    if "dose" in given or not is_amount(self.spec, "dose"):
        return []
    return [name for name in self.spec.sets if len(given.get(name, ()))]


def with_conditions(batch: CellBatch, target: Iterable[tuple[str, int | None, Any]]) -> CellBatch:
    """Return the batch with the conditions of `target` in place of its own."""
    target = list(target)
    if not target:
        return batch
    columns: dict[str, Tensor] = {}
    for name, position, code in target:
        if position is None:
            column = torch.tensor(code, device=batch.rows.device)
            columns[name] = column.expand(len(batch), *np.shape(code))
        else:
            values = columns.get(name, batch.columns[name]).clone()
            values[:, position] = code
            columns[name] = values
    return batch.with_columns(**columns)


def draw_conditions(
    self: FittedState, n: int, given: Conditions | None, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the conditions of n cells: what is given, and the rest as training cells have it.

    They are codes, and numbers in the user's units, drawn from the cells that agree with most of the
    categories given. Where a perturbation is given without a dose, these are perturbed cells.
    """
    pool = {name: values for name, values in self.statistics.items() if name != WEIGHT}
    weight = self.statistics.get(WEIGHT, np.zeros(0))
    drawn = np.zeros(n, int)
    groups = [
        ([_coded(self, *item) for item in conditions.items()], rows)
        for conditions, rows in _grouped(n, as_mapping(self, given))
    ]
    for name, code in ((name, code) for codes, _ in groups for name, _, code in codes):
        if name in self.spec.sets:  # wider, for sets of more names than any cell had
            pool[name] = widened(pool[name], len(code))
    for codes, rows in groups:
        agreeing = np.zeros(len(weight), int)
        for name, position, code in codes:
            if name in self.spec.sets:
                agreeing += (pool[name] == widened(code, pool[name].shape[1])).all(1)
            elif isinstance(code, int):  # numbers hardly ever agree
                values = pool[name] if position is None else pool[name][:, position]
                agreeing += values == code
        for name in _sets_without_dose(self, codes):
            control = (pool[name] < 0).all(1)
            agreeing[control] = -1  # its dose is none of a perturbation
        candidates = np.flatnonzero(agreeing == agreeing.max(initial=0))
        if len(candidates):
            share = weight[candidates] / weight[candidates].sum()
            drawn[rows] = generator.choice(candidates, len(rows), p=share)
    columns = {name: values[drawn] for name, values in pool.items()}
    for codes, rows in groups:
        for name, position, code in codes:
            if name in self.spec.sets:
                code = widened(code, columns[name].shape[1])
            (columns[name] if position is None else columns[name][:, position])[rows] = code
    return columns


def _grouped(n: int, given: Conditions) -> Iterator[tuple[Conditions, Int[np.ndarray, " rows"]]]:
    """Yield the cells that are given the same conditions, and these: values are one for all, or one each."""
    each = {k: v for k, v in given.items() if not isinstance(v, str) and np.ndim(v) == 1}
    for name, values in each.items():
        if len(values) != n:
            raise ConfigError(
                f"given: {name} has {counted(len(values), 'value')} for {counted(n, 'cell')}."
            )
    if not each:
        yield given, np.arange(n)
        return
    table = pd.DataFrame({k: np.asarray(v, dtype=object) for k, v in each.items()})
    for values, rows in table.groupby(list(each), sort=True, dropna=False).indices.items():
        own = dict(zip(each, values if isinstance(values, tuple) else (values,), strict=True))
        yield {**given, **own}, rows


def decode_conditions(self: FittedState, columns: Mapping[str, np.ndarray], n: int) -> pd.DataFrame:
    """Return the obs of new cells: their conditions, as users wrote them."""
    obs = pd.DataFrame(index=pd.Index([f"{self.model.key}_{i}" for i in range(n)], dtype=object))
    for name, values in columns.items():
        stacked = {"categorical": self.spec.categorical, "continuous": self.spec.continuous}.get(
            name
        )
        for i, key in enumerate(stacked if stacked is not None else [name]):
            code = values[:, i] if stacked is not None else values
            if key in self.spec.sets:
                names, control = self.spec.categories[key], self.spec.sets[key]
                sets = [written((names[c] for c in row if c >= 0), control) for row in code]
                obs[self.column(key)] = pd.Categorical(sets)
            elif key in self.spec.categories:
                obs[self.column(key)] = pd.Categorical.from_codes(
                    code, list(self.spec.categories[key])
                )
            elif name in ("continuous", *NUMBER_ROLES):
                obs[self.column(key)] = code
    return obs


def at_start(obs: pd.DataFrame, kept: Collection[str], **more: np.ndarray) -> pd.DataFrame:
    """Return a table of cells that go on in time, of what is true of their start alone.

    Columns, except those `kept`, are named ``start_…``, and those of `more` are added. A name that is taken
    has an underscore behind it, so that no column is lost.
    """
    taken = {*kept}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    added = {free(name): values for name, values in more.items()}
    renamed = {name: free(f"start_{name}") for name in obs.columns if name not in kept}
    return obs.rename(columns=renamed).assign(**added)


def shortened(given: Conditions | None) -> dict[str, Any]:
    """Return what was given, short enough to be kept."""
    return {
        k: v if isinstance(v, str) or np.ndim(v) == 0 else "one for each cell"
        for k, v in (given or {}).items()
    }
