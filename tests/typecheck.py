"""Types and shapes are checked in tests: by jaxtyping where a shape is named, by beartype alone elsewhere.

jaxtyping checks arguments twice, so that names of axes hold for what is returned. Most functions name no
shape, and for them one check finds the same.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# An int passes for a float, as in Python's own numeric tower. TypeErrors are raised, as jaxtyping's are.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_jaxtyped = jaxtyping.jaxtyped


def check(checked: Any) -> Any:
    """Check types, but not of functions within others, which would be wrapped anew at each call."""
    return checked if "<locals>" in checked.__qualname__ else _check(checked)


def where_shapes_are_named(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the decorator that jaxtyping's import hook is to put on every function and class."""
    thorough = _jaxtyped(typechecker=typechecker)

    def decorate(checked: Any) -> Any:
        if not inspect.isclass(checked):
            plain = inspect.isfunction(checked) and not names_shapes(checked)
            return _unless_disabled(checked, typechecker(checked)) if plain else thorough(checked)
        # not where `config` checks arguments itself, in sentences that users meet
        if dataclasses.is_dataclass(checked) and not hasattr(checked.__init__, "__wrapped__"):
            checked.__init__ = decorate(checked.__init__)
        return checked

    return decorate


def _unless_disabled(
    function: Callable[..., Any], checked: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a function that is checked unless jaxtyping was told to check nothing, as some tests do."""
    if checked is function:
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = function if jaxtyping.config.jaxtyping_disable else checked
        return run(*args, **kwargs)

    return call


def names_shapes(function: Callable[..., Any]) -> bool:
    """Return whether an annotation is, or holds, an array type, or cannot be read before all is imported."""
    try:
        hints = get_type_hints(function)
    except NameError:
        return True
    return any(map(_holds_an_array, hints.values()))


def _holds_an_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_holds_an_array, get_args(hint)))


jaxtyping.jaxtyped = where_shapes_are_named
