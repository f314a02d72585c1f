"""Cells chosen by a condition on their columns, as ``obs.cell_type != "nan" and obs.n_counts > 500``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from pandas.api.types import infer_dtype

from ..errors import SchemaError, near

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_HELP = (
    'Compare columns with values, as in obs.cell_type != "nan" and obs["n counts"] > 500; '
    "or, and, not, in [...] and missing(obs.cell_type) work too."
)

#: Letters of a condition that a message repeats.
_SHOWN = 200


def rows_where(condition: str, obs: pd.DataFrame, name: str = "rows") -> Bool[np.ndarray, " cells"]:
    """Return which cells meet a condition on the columns of `obs`.

    It is read by the rules of Python and never run: columns as ``obs.name`` or ``obs["name"]``, values,
    comparisons, ``and``, ``or``, ``not``, ``in`` and ``missing(column)``; a column of True and False is a
    condition by itself. A cell without a value is different from every value, and neither smaller nor larger.

    Parameters
    ----------
    name
        What the argument is called, for messages.

    Raises
    ------
    SchemaError
        If it is no such condition, or names a column that is not there.

    Examples
    --------
    >>> obs = pd.DataFrame({"type": ["NK", "B", None], "n": [5, 9, 7]})
    >>> rows_where('obs.type != "B" and obs.n > 5', obs)
    array([False, False,  True])
    """
    shown = condition if len(condition) <= _SHOWN else f"{condition[:_SHOWN]}…"
    try:
        tree = ast.parse(condition.strip(), mode="eval")
        return _Condition(shown, obs, name).mask(tree.body)
    except SchemaError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SchemaError(f"{name}={shown!r} cannot be read. {_HELP}") from error


class _Condition:
    """One condition, with the table that it is about."""

    def __init__(self, text: str, obs: pd.DataFrame, name: str) -> None:
        self.text, self.obs, self.name = text, obs, name

    def mask(self, node: ast.expr) -> Bool[np.ndarray, " cells"]:
        """Return which cells meet a part of the condition."""
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return reduce(join, map(self.mask, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return reduce(np.logical_and, (self._compared(*pair) for pair in pairs))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "missing":
            if len(node.args) == 1 and not node.keywords:
                return self._column(node.args[0]).isna().to_numpy()
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            column = self._column(node)
            if infer_dtype(column, skipna=True) == "boolean":
                return self._where_known(operator.eq, column, True)
        raise self._refusal(f"{ast.unparse(node)!r} is no condition.")

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        if isinstance(op, (ast.In, ast.NotIn)):
            column, values = self._column(left), self._values(right)
            self._refuse_unlike(column, *values)
            found = column.isin(values).to_numpy(bool)
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARED:
            raise self._refusal(
                f"{ast.unparse(ast.Compare(left, [op], [right]))!r} compares nothing."
            )
        sides = [self._side(left), self._side(right)]
        if not any(isinstance(side, pd.Series) for side in sides):
            raise self._refusal("It names no column.")
        self._refuse_unlike(*sides)
        try:
            return self._where_known(_COMPARED[type(op)], *sides)
        except (TypeError, OverflowError) as error:
            raise self._refusal(f"Its values cannot be compared ({error}).") from error

    def _where_known(self, compare: Callable[[Any, Any], Any], *sides: Any) -> np.ndarray:
        """Return which cells pass; what has no value is different from all others, and no more."""
        known = np.ones(len(self.obs), bool)
        for side in sides:
            known &= side.notna().to_numpy() if isinstance(side, pd.Series) else True
        found = np.full(len(known), compare is operator.ne)
        found[known] = compare(*(s[known] if isinstance(s, pd.Series) else s for s in sides))
        return found

    def _refuse_unlike(self, *sides: Any) -> None:
        if {"text", "numbers"} <= {*map(_kind, sides)}:
            raise self._refusal('It compares text with numbers. Text stands in quotes, as "0".')

    def _side(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self._column(node)
        return self._value(node)

    def _column(self, node: ast.expr) -> pd.Series:
        key: Any = None
        if isinstance(node, ast.Attribute):
            owner, key = node.value, node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner, key = node.value, node.slice.value
        if key is None or not (isinstance(owner, ast.Name) and owner.id == "obs"):
            raise self._refusal(f"{ast.unparse(node)!r} is no column.")
        if key not in self.obs:
            raise SchemaError(
                f"{self.name}={self.text!r}: there is no column {key!r} in obs.{near(key, self.obs)}"
            )
        values = self.obs[key]
        if isinstance(values, pd.DataFrame):
            raise self._refusal(f"obs has several columns {key!r}.")
        plain = values.dtype.kind in "biufmM" and not isinstance(values.dtype, pd.CategoricalDtype)
        return values if plain else values.astype(object)

    def _values(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            raise self._refusal(f"{ast.unparse(node)!r} is no list.")
        return [self._value(item) for item in node.elts]

    def _value(self, node: ast.expr) -> Any:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value if sign == 1 or isinstance(node.value, str) else -node.value
        raise self._refusal(f"{ast.unparse(node)!r} is no value.")

    def _refusal(self, why: str) -> SchemaError:
        return SchemaError(f"{self.name}={self.text!r}: {why} {_HELP}")


def _kind(side: Any) -> str:
    """Return "text" or "numbers", or what else a column may hold: both, or nothing."""
    if not isinstance(side, pd.Series):
        return "text" if isinstance(side, str) else "numbers"
    kind = infer_dtype(side, skipna=True)
    if kind in ("mixed", "mixed-integer", "empty"):
        return kind
    return "text" if kind == "string" else "numbers"
