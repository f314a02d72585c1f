"""Hyper-parameters as frozen dataclasses: signature, CLI flags, TOML, saved JSON and docs table in one.

A field is written ``n_latent: int = param(10, "Dimensions of the latent space.", low=1)``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, dataclass_transform

from ..errors import ConfigError, near
from .words import kind, worded

T = TypeVar("T")


def param(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    """Declare a field of a configuration: its default, a line of doc, and an inclusive range."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high})


# Without field specifiers every field has a default for a type checker, as `param` demands.
@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses wrong names and values at once.

    What values may not be together says a method `validate`, if there is one: it is called with each value
    checked.
    """
    data_cls: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    plain_init = data_cls.__init__
    presets = getattr(cls, "presets", {})

    @functools.wraps(plain_init)
    def checked_init(self: Any, **values: Any) -> None:
        if isinstance(values.get("preset"), str):
            values = {**presets.get(values["preset"], {}), **values}
        known = [f.name for f in dataclasses.fields(data_cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no option {name!r}.{near(name, known)}")
        plain_init(self, **values)
        hints = _hints(data_cls)
        for field in dataclasses.fields(data_cls):
            value = _checked(cls.__name__, field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if hasattr(self, "validate"):
            self.validate()

    data_cls.__init__ = checked_init
    return data_cls


def as_dict(instance: Any) -> dict[str, Any]:
    """Return the fields as JSON-able values (tuples become lists)."""
    return {
        f.name: list(v) if isinstance(v := getattr(instance, f.name), tuple) else v
        for f in dataclasses.fields(instance)
    }


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build `cls` from JSON or TOML values, checking every one (lists become tuples)."""
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def describe(cls: Any) -> list[dict[str, Any]]:
    """Return one row per field: name, type, default, doc. The docs table and `chreode models` use it."""
    hints = _hints(cls)
    return [
        {
            "name": f.name,
            "type": _spelled(hints[f.name]),
            "default": f.default,
            "doc": f.metadata.get("doc", ""),
        }
        for f in dataclasses.fields(cls)
    ]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _spelled(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(repr(v) for v in typing.get_args(hint))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_spelled(h) for h in typing.get_args(hint))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _checked(owner: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    value = _as_python(value)
    if not _fits(value, hint):
        names = [part for part in typing.get_args(hint) if isinstance(part, str)]
        suggestion = near(value, names) if names and isinstance(value, str) else ""
        got = "" if names else f", got {kind(value)}"
        if isinstance(value, str) and typing.get_origin(hint) is tuple:
            suggestion = f" Write ({value!r},)."
        raise ConfigError(
            f"{owner}({field.name}={value!r}): expected {worded(hint)}{got}.{suggestion} "
            f"{field.metadata['doc']}"
        )
    low, high = field.metadata.get("low"), field.metadata.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, numbers.Real) and not isinstance(number, bool):
            too_low = low is not None and number < low
            too_high = high is not None and number > high
            if too_low or too_high or abs(typing.cast(float, number)) > 2**53 or math.isnan(number):
                raise ConfigError(f"{owner}({field.name}={value!r}): expected {_span(low, high)}.")
    return value


def _span(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"a number from {low} to {high}"
    if low is not None:
        return f"a number of at least {low}"
    return f"a number of at most {high}" if high is not None else "a number that 64 bits hold"


def _as_python(value: Any) -> Any:
    if isinstance(value, numbers.Integral) and not isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float)):
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return any(
            isinstance(value, type(part)) and value == part for part in typing.get_args(hint)
        )
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
