"""One model, one file. A file ``scvi.py`` defines the class whose lower-cased name is ``scvi``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from ..errors import ConfigError, near

if TYPE_CHECKING:
    from ..model import Model


@cache
def keys() -> tuple[str, ...]:
    """Return the key of every registered model; imports none of them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def find(key: str) -> type[Model]:
    """Return the class of a key.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    if key not in keys() or not isinstance(key, str):
        raise ConfigError(f"There is no model {key!r}.{near(key, keys())}")
    module = importlib.import_module(f"{__name__}.{key}")
    found = [v for name, v in vars(module).items() if name.lower() == key and isinstance(v, type)]
    if not found:
        raise ConfigError(f"{module.__file__} defines no class whose lower-cased name is {key!r}.")
    return found[0]
