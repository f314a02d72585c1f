"""What tells one function from another: its code, and all that it has captured."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import inspect
import logging
import sys
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from .. import store
from ..errors import ConfigError
from ..version import code_hash

#: Identified by how they are written.
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, type(...), np.generic, np.dtype, np.ufunc,
    torch.dtype, Path, Enum, dt.date, dt.timedelta, logging.Logger,
)  # fmt: skip
_NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


def identity(function: Any) -> str:
    """Return a hash of a callable: of the code that it runs, its defaults, and the values it has captured.

    A function of an installed package is identified by its name and the version of the package. One of the
    user's is identified by its code and that of what it calls, callable objects by class and attributes.

    Raises
    ------
    ConfigError
        If something is captured whose value cannot be compared, such as an open file.

    Examples
    --------
    >>> def scaled(by):
    ...     return lambda x: by * x
    >>> identity(scaled(2)) == identity(scaled(2)) != identity(scaled(3))
    True
    """
    made = hashlib.sha256()
    for part in _parts(function, []):
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()[:16]


def _parts(thing: Any, above: list[Any]) -> Iterator[bytes]:
    """Yield what a thing is made of, down to what can be written; `above` it are those it is a part of."""
    if isinstance(thing, _PLAIN):
        yield f"{type(thing).__name__} {thing!r}".encode()
    elif depth := next((i for i, other in enumerate(above, 1) if other is thing), 0):
        yield f"again {depth}".encode()
    elif isinstance(thing, types.ModuleType):
        yield _module(thing).encode()
    elif isinstance(thing, np.ndarray) and not (
        thing.dtype.hasobject or isinstance(thing, np.ma.MaskedArray)
    ):
        yield f"{thing.dtype} {thing.shape}".encode() + np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, _NAMED) and (known := _installed(thing.__module__)):
        yield f"{known} {thing.__module__}.{thing.__qualname__}".encode()
        if (bound := getattr(thing, "__self__", None)) is not None:
            yield from _parts(bound, [*above, thing])
        if "<locals>" in thing.__qualname__:  # made by a call, which its name does not tell
            for cell in getattr(thing, "__closure__", None) or ():
                yield from _parts(_content(cell), [*above, thing])
    else:
        yield type(thing).__qualname__.encode()
        for inner in _inside(thing):
            yield from _parts(inner, [*above, thing])
        yield b"end"


def _inside(thing: Any) -> Iterator[Any]:
    """Yield what makes up a thing."""
    if isinstance(thing, types.FunctionType):
        yield from (thing.__code__, thing.__defaults__, thing.__kwdefaults__, vars(thing))
        yield from (_content(cell) for cell in thing.__closure__ or ())
        yield {n: thing.__globals__[n] for n in _names(thing.__code__) if n in thing.__globals__}
    elif isinstance(thing, types.CodeType):
        yield from (thing.co_code, thing.co_consts, thing.co_names, thing.co_freevars)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, type):
        yield thing.__bases__
        hidden = ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__")
        yield {n: v for n, v in vars(thing).items() if n not in hidden}
    elif isinstance(thing, Mapping):
        yield from sorted(thing.items(), key=lambda pair: repr(pair[0]))
    elif isinstance(thing, (set, frozenset)):
        yield from sorted(identity(inner) for inner in thing)
    elif isinstance(thing, np.ma.MaskedArray):
        yield from (np.ma.getmaskarray(thing), thing.filled())
    elif isinstance(thing, (tuple, list, np.ndarray)):
        yield from thing
    elif isinstance(thing, torch.Tensor):
        yield store.digest({"": thing}, "")
    elif isinstance(thing, (pd.Series, pd.DataFrame, pd.Index)):
        yield from (getattr(thing, "columns", None), getattr(thing, "name", None))
        kinds = thing.dtypes if isinstance(thing, pd.DataFrame) else [thing.dtype]
        # values are hashed as such, whatever the order of their categories, which is that of codes
        yield [(str(k), *(getattr(k, n, None) for n in ("categories", "ordered"))) for k in kinds]
        yield pd.util.hash_pandas_object(thing).to_numpy()
    elif sp.issparse(thing):
        found = sp.csr_array(thing)
        yield from (found.shape, found.indptr, found.indices, found.data)
    elif isinstance(thing, AnnData):
        yield from (thing.X, thing.obs, thing.var)
        yield from (dict(getattr(thing, n)) for n in ("layers", "obsm", "varm", "obsp", "uns"))
    elif isinstance(thing, (property, classmethod, staticmethod)):
        yield from (getattr(thing, n, None) for n in ("__func__", "fget", "fset"))
    elif (wrapped := getattr(thing, "__wrapped__", None)) is not None:  # as by lru_cache
        yield wrapped
    elif hasattr(thing, "__dict__") and not _installed(type(thing).__module__).startswith("python"):
        yield from (type(thing), vars(thing))  # in those of Python itself, as files, there is more
    else:
        raise ConfigError(f"a {type(thing).__name__}, {str(thing)[:60]!r}")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it refers to what is not there yet
        return None


def _names(code: types.CodeType) -> list[str]:
    """Return the names that a function and those inside it may look up."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return sorted({*code.co_names, *(name for c in inner for name in _names(c))})


def _installed(module: str | None) -> str:
    """Return name and version of the package that a module is of, "" for the user's own."""
    top = (module or "builtins").partition(".")[0]
    if top == "chreode":
        return f"chreode {code_hash()}"
    if top == "__main__":
        return ""
    if top in {"builtins", *sys.stdlib_module_names}:
        return f"python {sys.version_info[:3]}"
    package = sys.modules.get(top)
    places = Path(getattr(package, "__file__", None) or "").parts
    if {"site-packages", "dist-packages"} & {*places}:
        return f"{top} {getattr(package, '__version__', '')}"
    return ""


def _module(module: types.ModuleType) -> str:
    if known := _installed(module.__name__):
        return f"{known} {module.__name__}"
    file = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
    return f"{module.__name__} {store.sha256(Path(file)) if file and Path(file).is_file() else ''}"
