"""One model, one file. A file ``scvi.py`` defines the class whose lower-cased name is ``scvi``."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, near


@cache
def keys() -> tuple[str, ...]:
    """Return the key of every registered model; imports none of them."""
    files = pkgutil.iter_modules(importlib.import_module(f"{__package__}.models").__path__)
    return tuple(sorted(file.name for file in files if not file.ispkg))


def file_of(key: str) -> Path:
    """Return the file that defines the model of a key."""
    found = importlib.util.find_spec(f"{__package__}.models.{key}")
    assert found is not None
    return Path(str(found.origin))


def find(key: str) -> Any:
    """Return the class of a key, which is a `chreode.model.Model`.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    if key not in keys() or not isinstance(key, str):
        raise ConfigError(f"There is no model {key!r}.{near(key, keys())}")
    module = importlib.import_module(f"{__package__}.models.{key}")
    found = [v for name, v in vars(module).items() if name.lower() == key and isinstance(v, type)]
    if not found:
        raise ConfigError(f"{module.__file__} defines no class whose lower-cased name is {key!r}.")
    return found[0]
