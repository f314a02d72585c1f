"""What no spec holds that a fit has written: a stored one is refused where it does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from ..errors import SchemaError


def refuse_malformed(spec: Any, units: Collection[str]) -> None:
    """Refuse a `Spec` whose parts do not fit together.

    Parameters
    ----------
    spec
        As it was read.
    units
        Roles of numbers that are centred and scaled.

    Raises
    ------
    SchemaError
        It says which part.
    """
    for fault in _faults(spec, units):
        raise SchemaError(f"The stored spec is malformed ({fault}).")


def _faults(spec: Any, units: Collection[str]) -> Iterator[str]:
    listed = (spec.roles, spec.categorical, spec.continuous)
    for names in (*listed, *spec.features.values(), *spec.categories.values()):
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            yield "names are no text, or not unique"
    named = {*spec.continuous, *(r for r in units if r in spec.roles)}
    if set(spec.numbers) != named or not all(map(_is_unit, spec.numbers.values())):
        yield "units of numbers"
    for name, blocks in spec.blocks.items():
        whole = all(isinstance(n, int) and n >= 0 for n in blocks)
        if not whole or sum(blocks) != len(spec.categories.get(name, ())):
            yield f"blocks of {name!r} do not add up"
    controls = all(isinstance(control, str) for control in spec.sets.values())
    if not controls or not set(spec.sets) <= set(spec.categories) - set(spec.categorical):
        yield "sets of names"
    of = spec.categories.get("perturbation", ()) if spec.vectors else ()
    vectors = list(spec.vectors.values())
    numbers = all(type(v) is float and math.isfinite(v) for vector in vectors for v in vector)
    if set(spec.vectors) != set(of) or len(set(map(len, vectors))) > 1 or not numbers:
        yield "vectors of names"


def _is_unit(unit: Any) -> bool:
    """Return whether this is a centre and a scale."""
    numbers = len(unit) == 2 and all(type(value) is float for value in unit)
    return numbers and all(map(math.isfinite, unit)) and unit[1] > 0
