"""The checker behind jaxtyping in tests: an int passes for a float, as in Python's own numeric tower."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(checked: Any) -> Any:
    """Check types, but not of functions within others, which would be wrapped anew at each call."""
    return checked if "<locals>" in checked.__qualname__ else _check(checked)
