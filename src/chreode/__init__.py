"""chreode learns the landscape of single-cell states and runs cells on it.

``import chreode as ch`` is light: models and their libraries load when they are first named.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "Schema": "schema",
    "Place": "schema",
    "Spec": "schema",
    "Fitted": "fitted",
    "load": "fitted",
    "open": "data.read",
    "Model": "model",
    "Run": "run",
    "__version__": "version",
    "augment": "verbs.augmentation",
    "Tuned": "bench.tuning",
    "tune": "bench.tuning",
    "ChreodeError": "errors",
    "SchemaError": "errors",
    "DataError": "errors",
    "ConfigError": "errors",
    "ArgumentError": "errors",
    "CapabilityError": "errors",
    "FitError": "errors",
    "StoreError": "errors",
    "BlowUpError": "errors",
}
_PACKAGES = {
    "bench": "bench",
    "datasets": "data.datasets",
    "identify": "identify",
    "metrics": "metrics",
    "models": "models",
    "plot": "plot",
    "pp": "data.pp",
    "report": "report",
    "simulate": "data.simulate",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    if name in _PACKAGES:
        return importlib.import_module(f".{_PACKAGES[name]}", __name__)
    from .registry import find, keys

    if name.lower() in keys() and name != name.lower():
        model = find(name.lower())
        if model.__name__ == name:
            return model
    raise AttributeError(f"module 'chreode' has no attribute {name!r}")


def __dir__() -> list[str]:
    from .registry import find, keys

    return sorted([*_PLACES, *_PACKAGES, *(find(k).__name__ for k in keys())])
