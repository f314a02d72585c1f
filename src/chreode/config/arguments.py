"""Wrong arguments are refused at the door, by what a function's own signature says of them."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import ArgumentError, near, visible
from .sparse import refuse_damaged
from .words import kind, worded

P = ParamSpec("P")
R = TypeVar("R")
Sparse: TypeAlias = sp.csr_matrix | sp.csr_array | sp.csc_matrix | sp.csc_array
"""What SciPy takes both rows and columns of."""
#: Cells, which `chreode.data.read` opens; it says what is wrong with them.
_CELLS = ("AnnData", "MuData", "OnDisk")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments of another type than is annotated, in a sentence.

    Whole numbers are taken for numbers, and NumPy's for Python's. A string is no list of strings. What
    is annotated with `Any`, and cells (which `chreode.data.read` opens), are left to the function.

    Raises
    ------
    ArgumentError
        From what is returned, if an argument does not fit.

    Examples
    --------
    >>> @checked
    ... def draw(n: int, names: collections.abc.Sequence[str] = ()) -> int:
    ...     return n
    >>> draw(3, ["a"])
    3
    >>> draw(3, "a")
    Traceback (most recent call last):
    chreode.errors.ArgumentError: draw(names='a'): expected a list of text, got text.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            owner = function.__name__
            # a method that is asked of its class: what is given first, if anything, is no instance
            alone = "self" in signature.parameters and not hasattr(next(iter(args), None), owner)
            text = _of_class(owner) if alone else _unbound(owner, signature, hints, kwargs, error)
            raise ArgumentError(text) from None
        for name, value in given.items():
            hint = hints.get(name, Any)
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                known = [*_names(signature, hints), *_offered(function.__name__, *args)]
                _refuse_unknown(function.__name__, value, known)
                continue
            if value is not signature.parameters[name].default:
                _refuse(function.__name__, name, value, hint)
        return function(*args, **kwargs)

    return call


def _of_class(owner: str) -> str:
    return f"{owner} was called on a class, as PCA.fit(…) would be. Make one of it first, as in PCA().fit(…)."


def _names(signature: inspect.Signature, hints: Mapping[str, Any]) -> list[str]:
    """Return what may be given by name; a function with `run` takes the settings of it one by one too."""
    further = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    settings = [field.name for field in dataclasses.fields(hints["run"])] if further else []
    return [name for name in signature.parameters if name not in ("self", *further)] + settings


def _offered(verb: str, *args: Any) -> list[str]:
    """Return what more a fitted model takes where it is asked something (`Module.verb_options`)."""
    offers = getattr(next(iter(args), None), "verb_options", None)
    return [*offers(verb)] if offers else []


def _refuse_unknown(owner: str, given: Mapping[str, Any], names: list[str]) -> None:
    for name in given:
        if name not in names:
            raise ArgumentError(f"{owner} has no argument {name!r}.{near(name, names)}")


def _unbound(
    owner: str,
    signature: inspect.Signature,
    hints: Mapping[str, Any],
    given: Mapping[str, Any],
    error: TypeError,
) -> str:
    """Say why arguments are none of a function's: an unknown name, one that lacks, or in Python's words."""
    names = _names(signature, hints)
    for name in given:
        if name not in names:
            return f"{owner} has no argument {name!r}.{near(name, names)}"
    lacking = re.search(r"missing a required .*argument: '(\w+)'", str(error))
    if lacking:
        return f"{owner} needs {lacking[1]}: expected {worded(hints[lacking[1]])}."
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if "too many positional" in str(error) and named:
        return f"{owner}: {error}. These need their names: {', '.join(f'{n}=…' for n in named)}."
    return f"{owner}: {error}."


def check_fields(instance: Any) -> None:
    """Refuse fields of a dataclass that are of another type than is annotated: for ``__post_init__``.

    Raises
    ------
    ArgumentError
        If one is.
    """
    cls: Any = type(instance)
    hints = _hints(cls)
    for field in dataclasses.fields(instance):
        _refuse(
            type(instance).__name__, field.name, getattr(instance, field.name), hints[field.name]
        )


def _refuse(owner: str, name: str, value: Any, hint: Any) -> None:
    expected = f"{worded(hint)}, got {kind(value)}" if not _fits(value, hint) else ""
    if name == "seed" and not expected and value is not None and not 0 <= value < 2**32:
        expected = "a whole number from 0 to 4294967295"
    if expected:
        shown = visible(repr(value))
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        raise ArgumentError(f"{owner}({name}={shown}): expected {expected}.{_uncalled(value)}")


def _uncalled(value: Any) -> str:
    """Say how a class is made what was expected, where one was given."""
    held = value.values() if isinstance(value, Mapping) else value
    some = list(held)[:20] if isinstance(value, (Mapping, list, tuple)) else [value]
    name = next((v.__name__ for v in some if isinstance(v, type)), "")
    return f" {name} is a class: call it, as in {name}()." if name else ""


@functools.cache
def _hints(function: Any) -> dict[str, Any]:
    """Return what the parameters are annotated with."""
    known = vars(sys.modules[function.__module__])
    return {
        name: eval(hint, known) if isinstance(hint, str) else hint
        for name, hint in inspect.get_annotations(function).items()
    }


def _is_array(hint: Any) -> bool:
    return hasattr(hint, "array_type")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar) or getattr(hint, "__name__", "") in _CELLS:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return any(isinstance(value, type(part)) and value == part for part in inner)
    if _is_array(hint):
        return _is_numbers(value, hint)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, number):
            return False
        return not isinstance(value, numbers.Integral) or -(2**63) <= int(value) < 2**63
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if origin is tuple:
        whole = isinstance(value, tuple)
        if inner[-1] is Ellipsis:
            return whole and all(_fits(v, inner[0]) for v in value)
        return whole and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is collections.abc.Callable:
        return callable(value)
    if isinstance(origin, type):
        return _holds(value, origin, inner)
    if isinstance(hint, type) and isinstance(value, hint) and sp.issparse(value):
        refuse_damaged(value, "a sparse matrix")
    return isinstance(value, hint) if isinstance(hint, type) else True


def _is_numbers(value: Any, hint: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping, type)) or sp.issparse(value):
        return False
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # rows of several lengths, or an object of its own
        return False
    of_all = not isinstance(hint.dtypes, tuple)
    return array.ndim > 0 and (of_all or array.dtype.kind in "biuf")


def _holds(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    """Return whether a collection is of the kind, and what it holds too."""
    if issubclass(origin, collections.abc.Mapping):
        pairs = value.items() if isinstance(value, Mapping) else None
        return pairs is not None and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in pairs
        )
    if origin is type:
        return isinstance(value, type)
    listed = isinstance(value, (origin, np.ndarray, pd.Index, pd.Series))
    if not listed or isinstance(value, (str, bytes)) or sp.issparse(value):
        return False
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return False
    # an iterator would be used up
    return not isinstance(value, collections.abc.Collection) or all(
        _fits(v, inner[0]) for v in value
    )
