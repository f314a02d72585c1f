"""Where each role lives in a data object, and what a fitted model remembers of it.

`Schema` is what the user writes: role -> place. `Spec` is what a fit learns from it: names of
features and categories, as JSON. Neither knows any model.
"""

from .roles import (
    CATEGORY_ROLES,
    COUNT_ROLES,
    MATRIX_ROLES,
    NUMBER_ROLES,
    ROLES,
    TUPLE_ROLES,
    UNIT_ROLES,
    Place,
    Schema,
)
from .sets import members, written
from .spec import Spec

__all__ = [
    "CATEGORY_ROLES",
    "COUNT_ROLES",
    "MATRIX_ROLES",
    "NUMBER_ROLES",
    "ROLES",
    "TUPLE_ROLES",
    "UNIT_ROLES",
    "Place",
    "Schema",
    "Spec",
    "members",
    "written",
]
