"""What a fitted model remembers of the data's form: names, sizes and units, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import SchemaError
from .malformed import refuse_malformed
from .roles import NUMBER_ROLES, UNIT_ROLES


@dataclass(frozen=True)
class Spec:
    """What a fit remembers of the data's form: names, sizes and units.

    Attributes
    ----------
    roles
        Roles that the fit read.
    features
        Names of the features of each matrix role, in the order of the tensors.
    categories
        Names of the categories of each role, and of each column of `categorical`.
    blocks
        How many of these categories came with the first fit, the first query mapping, and so on:
        every block has parameters of its own, so an older block cannot be disturbed.
    continuous
        Columns of the role `continuous`.
    n_cells
        Cells that were learned from.
    numbers
        Centre and scale of `time`, `dose` and every column of `continuous`, over these cells. Models
        see such numbers centred and scaled in float64 and only then as float32, which holds no dates.
    sets
        Roles whose values are sets of names, as ``A+B``, with the value that means the empty set (the
        control; "": there is none). Their `categories` are the single names.
    vectors
        A vector for each single perturbation, where they were given.
    """

    roles: tuple[str, ...]
    features: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    categorical: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    n_cells: int = 0
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def n_features(self, role: str) -> int:
        """Return the number of features of a matrix role."""
        return len(self.features[role])

    def either(self, *roles: str) -> str:
        """Return the first of some matrix roles that the fit read."""
        for role in roles:
            if role in self.features:
                return role
        raise SchemaError(f"The fit read none of {', '.join(roles)}.")

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions of cells: roles, and columns of `categorical` and `continuous`."""
        numbers = (role for role in NUMBER_ROLES if role in self.roles)
        return [*self.categories, *self.continuous, *numbers]

    def condition_blocks(self) -> tuple[tuple[int, ...], ...]:
        """Return the blocks of `batch` (if named) and of every categorical covariate, in this order."""
        names = [*(["batch"] if "batch" in self.categories else []), *self.categorical]
        return tuple(self.blocks[name] for name in names)

    # NumPy is imported where it is used: the first page of the command line needs schemas, and no numbers

    def inside(self, name: str, values: Any) -> Any:
        """Return numbers of a column (of ``continuous``: cells x columns) as shares of its scale."""
        import numpy as np

        centre, scale = self._unit(name)
        return np.asarray((np.asarray(values, np.float64) - centre) / scale)

    def outside(self, name: str, values: Any) -> Any:
        """Return scaled numbers in the user's units, an array with the digits that float32 keeps."""
        import numpy as np

        centre, scale = self.numbers.get(name, (0.0, 1.0))
        digits = min(6 - math.ceil(math.log10(scale)), 100)
        return np.asarray(np.round(np.asarray(values, np.float64) * scale + centre, digits))

    def narrowed(self, name: str, values: Any) -> Any:
        """Return an array as tensors hold it, numbers scaled, as float32, and codes as they are.

        Sets, rows of codes with -1 behind the last, become 1 for each name that they hold and 0 else.
        """
        import numpy as np

        if name in self.sets:
            held = np.zeros((len(values), len(self.categories[name])), np.float32)
            rows, at = np.nonzero(values >= 0)
            held[rows, values[rows, at]] = 1.0
            return held
        if values.dtype.kind != "f":
            return values
        with np.errstate(over="ignore"):
            return self.inside(name, values).astype(np.float32)

    def _unit(self, name: str) -> tuple[Any, Any]:
        import numpy as np

        if name != "continuous":
            return self.numbers.get(name, (0.0, 1.0))
        units = [self.numbers.get(column, (0.0, 1.0)) for column in self.continuous]
        centre, scale = np.array(units, np.float64).reshape(-1, 2).T
        return centre, scale

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values; of fits without sets as before there were any.

        Of the vectors it is their fingerprint alone: a table of them may be larger than any JSON should be.
        """
        values = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(self, vectors={}))))
        values["vectors"] = self._fingerprint()
        return {k: v for k, v in values.items() if v or k not in ("sets", "vectors")}

    def _fingerprint(self) -> str:
        """Return a hash of the vectors and their names; empty if there are none."""
        names = sorted(self.vectors)
        made = hashlib.sha256(json.dumps(names).encode())
        for name in names:
            made.update(array("d", self.vectors[name]).tobytes())
        return made.hexdigest() if names else ""

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], vectors: Mapping[str, tuple[float, ...]] | None = None
    ) -> Spec:
        """Build from what `as_dict` returned, and the vectors; wrong shapes are refused."""
        try:
            tables = {
                name: {str(k): tuple(v) for k, v in values[name].items()}
                for name in ("features", "categories", "blocks", "numbers")
            }
            spec = cls(
                roles=tuple(values["roles"]),
                **tables,
                categorical=tuple(values["categorical"]),
                continuous=tuple(values["continuous"]),
                n_cells=int(values["n_cells"]),
                sets=dict(values.get("sets", {})),
                vectors=vectors or {},
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise SchemaError(f"The stored spec is malformed ({error!r}).") from error
        refuse_malformed(spec, UNIT_ROLES)
        if spec._fingerprint() != values.get("vectors", ""):
            raise SchemaError("The stored spec is malformed (its vectors are others).")
        return spec

    @cached_property
    def hash(self) -> str:
        """Short fingerprint, written with every result."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
