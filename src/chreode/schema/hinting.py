"""Keyword-only dataclasses that answer a wrong name with the nearest one."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

from ..errors import SchemaError, near

T = TypeVar("T")


def with_hints(cls: type[T]) -> type[T]:
    """Refuse names that are no roles with a hint, where Python has none."""
    made: Any = cls
    plain = made.__init__

    @functools.wraps(plain)
    def init(self: Any, *places: Any, **roles: Any) -> None:
        if places:
            raise SchemaError("Name the role of every place, as in Schema(counts='layers/counts').")
        known = [f.name for f in dataclasses.fields(made)]
        for name in roles:
            if name not in known:
                raise SchemaError(f"There is no role {name!r}.{near(name, known)}")
        plain(self, **roles)

    made.__init__ = init
    return cls
