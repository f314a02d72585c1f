"""What types and values are called in a sentence; the first page of a command needs it, and no NumPy."""

from __future__ import annotations

import collections.abc
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

#: What types are called in a sentence.
WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None",
    None: "None", object: "values",
}  # fmt: skip
#: The same of types that libraries have, by their names.
_OF_LIBRARIES = {
    "Path": "a path", "PosixPath": "a path", "ndarray": "an array", "Series": "a column",
    "ExtensionArray": "its values",
    **dict.fromkeys(
        ("csr_matrix", "csr_array", "csc_matrix", "csc_array"), "a sparse matrix (CSR or CSC)"
    ),
}  # fmt: skip
#: How one gets what is expected.
_EXPECTED = {
    **dict.fromkeys(("Fitted", "FittedState"), "a fitted model (as ch.load returns)"),
    "Schema": "a schema, as ch.Schema(counts='layers/counts', batch='obs/donor')",
    "AnnData": "an AnnData", "MuData": "a MuData", "OnDisk": "cells that ch.open returned",
}  # fmt: skip


def several(word: str) -> str:
    """Return what more than one is called.

    Examples
    --------
    >>> several("a whole number or None"), several("a list of text")
    ('whole numbers or None', 'lists of text')
    """
    return re.sub(r"\ba (whole number|number|list|tuple)\b", r"\1s", word)


def worded(hint: Any) -> str:
    """Return what a type expects, in words.

    Examples
    --------
    >>> worded(int | None), worded(tuple[float, ...]), worded(Literal["nb", "zinb"])
    ('a whole number or None', 'a tuple of numbers', "'nb' or 'zinb'")
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(worded, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if hasattr(hint, "array_type"):  # of jaxtyping
        return "an array of numbers"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        if inner[1] is not Any:
            return f"a mapping of names to {worded(inner[1])}"
        return "a mapping of names to values, as in {'label': 'NK'}"
    if origin is tuple:
        return f"a tuple of {several(worded(inner[0]))}"
    if origin is collections.abc.Callable:
        return "a function"
    if isinstance(origin, type) and inner:
        return f"a list of {several(worded(inner[0]))}"
    name = getattr(hint, "__name__", str(hint))
    return WORDS.get(hint) or _OF_LIBRARIES.get(name) or _EXPECTED.get(name, name)


def kind(value: Any, depth: int = 2) -> str:
    """Return what a value is, in words; of what a list holds so many lists deep, for it may hold itself.

    Examples
    --------
    >>> kind([[1, 2], [3]]), kind(("a", 0.5))
    ('a list of lists of whole numbers', 'a tuple of text and numbers')
    """
    if isinstance(value, (list, tuple)):
        if depth == 0:
            return f"a {type(value).__name__}"
        held = dict.fromkeys(several(kind(v, depth - 1)) for v in value[:20])
        return f"a {type(value).__name__} of {' and '.join(held) or 'nothing'}"
    name = type(value).__name__
    if name == "ndarray" and value.dtype.kind in "US":
        return "an array of text"
    return WORDS.get(type(value)) or _OF_LIBRARIES.get(name, name)
