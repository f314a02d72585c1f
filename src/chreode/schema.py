"""Where each role lives in a data object, and what a fitted model remembers of it.

`Schema` is what the user writes: role -> place. `Spec` is what a fit learns from it: names of
features and categories, as JSON. Neither knows any model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config.hinting import hinting
from .errors import SchemaError
from .malformed import refuse_malformed

#: Roles that hold a matrix of cells x features.
MATRIX_ROLES = ("counts", "expression", "protein", "accessibility", "views")
#: Roles that hold one category per cell.
CATEGORY_ROLES = ("batch", "label", "trajectory", "perturbation")
#: Roles that hold one number per cell.
NUMBER_ROLES = ("size_factor", "time", "dose")
#: Those of them that models see centred and scaled, as they see every column of `continuous`.
UNIT_ROLES = ("time", "dose")
#: Roles that are tuples of places.
TUPLE_ROLES = ("views", "categorical", "continuous")
#: Roles whose values must be non-negative whole numbers.
COUNT_ROLES = ("counts", "protein", "accessibility")
ROLES = (
    "counts", "expression", "protein", "accessibility", "views",
    "batch", "label", "categorical", "continuous", "size_factor",
    "time", "trajectory", "perturbation", "control", "dose", "vectors",
)  # fmt: skip

_SPELLING = (
    "A place is 'X', 'raw', 'layers/NAME', 'obs/NAME' or 'obsm/NAME', "
    "with 'MODALITY:' before it inside a MuData (as in 'rna:layers/counts')"
)


@dataclass(frozen=True)
class Place:
    """A slot of an AnnData or MuData, as in ``rna:layers/counts``.

    Examples
    --------
    >>> Place.parse("rna:layers/counts")
    Place(slot='layers', key='counts', modality='rna')
    """

    slot: str
    key: str = ""
    modality: str = ""

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read the spelling used in a `Schema`.

        Raises
        ------
        SchemaError
            If the text is no place.
        """
        if not isinstance(text, str) or not text:
            raise SchemaError(f"{text!r} is no place. {_SPELLING}.")
        head, slash, key = text.partition("/")
        modality, colon, slot = head.rpartition(":")
        whole = slot in ("X", "raw") and not slash
        if (whole or (slot in ("layers", "obs", "obsm") and key)) and (modality or not colon):
            return cls(slot, key, modality)
        raise SchemaError(f"{text!r} is no place. {_SPELLING}.")

    def __str__(self) -> str:
        tail = f"{self.slot}/{self.key}" if self.key else self.slot
        return f"{self.modality}:{tail}" if self.modality else tail

    def owner(self) -> str:
        """Return what has the slot, as one writes it in Python: ``data`` or ``data.mod['rna']``."""
        return f"data.mod[{self.modality!r}]" if self.modality else "data"

    def matrix(self) -> str:
        """Return how one writes the matrix in Python, as in ``data.layers['counts']``."""
        tail = f"[{self.key!r}]" if self.key else ".X" * (self.slot == "raw")
        return f"{self.owner()}.{self.slot}{tail}"


@hinting
@dataclass(frozen=True, kw_only=True)
class Schema:
    """Name the place of every role; nothing is guessed.

    Matrix roles (`counts`, `expression`, `protein`, `accessibility`, each of `views`) live in
    ``X``, ``raw``, ``layers/…`` or ``obsm/…``; the others are columns, ``obs/…``.

    Attributes
    ----------
    counts
        Raw counts: finite, non-negative whole numbers.
    expression
        Log-normalised or otherwise continuous values.
    protein
        Raw counts of proteins (NaN: not measured).
    accessibility
        Raw counts of peaks.
    views
        Places of several continuous matrices, for factor models (NaN: not measured).
    batch
        Donor, library or laboratory of each cell: what should not matter.
    label
        Type or state of each cell. Empty or NaN: unlabelled.
    trajectory
        Which series a cell belongs to.
    perturbation
        What was done to a cell (combinations as ``A+B``).
    categorical
        Further covariates that are categories, called by their column names from then on.
    continuous
        Further covariates that are numbers, called by their column names from then on.
    size_factor
        A positive number per cell that its expected counts are proportional to.
    time
        When a cell was taken: one number each, in any unit; dates are told as days or seconds.
    dose
        How much was done to a cell: one number each, in any unit.
    control
        The value of `perturbation` that means "unperturbed".
    vectors
        A vector per single perturbation, such as an embedding of its gene: ``uns/NAME``, a table whose rows
        are named after perturbations or a mapping of names to vectors.
    missing
        Strings in category columns that mean "not known", such as ``("nan", "unknown")``.
    fractional
        Accept counts that are not whole (ambient-corrected or full-length data).

    Examples
    --------
    >>> Schema(counts="layers/counts", batch="obs/donor").with_(label="obs/cell_type").label
    'obs/cell_type'
    """

    counts: str | None = None
    expression: str | None = None
    protein: str | None = None
    accessibility: str | None = None
    views: Sequence[str] = ()
    batch: str | None = None
    label: str | None = None
    categorical: Sequence[str] = ()
    continuous: Sequence[str] = ()
    size_factor: str | None = None
    time: str | None = None
    trajectory: str | None = None
    perturbation: str | None = None
    control: str | None = None
    dose: str | None = None
    vectors: str | None = None
    missing: Sequence[str] = ()
    fractional: bool = False

    def __post_init__(self) -> None:
        for role in (*TUPLE_ROLES, "missing"):
            value = getattr(self, role)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise SchemaError(f"{role}={value!r}: expected a tuple, as in {role}=({value!r},).")
            object.__setattr__(self, role, tuple(value))
            if not all(isinstance(text, str) for text in getattr(self, role)):
                raise SchemaError(f"{role}={value!r}: expected a tuple of strings.")
        if not isinstance(self.fractional, bool):
            raise SchemaError(f"fractional={self.fractional!r}: expected True or False.")
        if not (self.control is None or isinstance(self.control, str)):
            raise SchemaError(f"control={self.control!r}: expected the name of a category.")
        for role in ROLES:
            value = getattr(self, role)
            if role not in TUPLE_ROLES and (not isinstance(value, str | None) or value == ""):
                slot = {"vectors": "uns"}.get(role, "layers" if role in MATRIX_ROLES else "obs")
                raise SchemaError(
                    f"{role}={value!r}: expected a place, as in {role}='{slot}/NAME'."
                )
        for role, place in self.places():
            if role.partition("/")[0] in MATRIX_ROLES:
                if place.slot == "obs":
                    raise SchemaError(
                        f"{role}={str(place)!r}: {role} is a matrix; it lives in X, raw, "
                        "layers/NAME or obsm/NAME."
                    )
            elif place.slot != "obs":
                raise SchemaError(
                    f"{role}={str(place)!r}: {role} is one value per cell; it lives in obs/NAME."
                )
        columns = [p.key for r, p in self.places() if r.startswith(("categorical/", "continuous/"))]
        clash = {c for c in columns if columns.count(c) > 1 or c in ROLES}
        if clash:
            raise SchemaError(
                f"Columns {sorted(clash)} of categorical/continuous are named twice or like a role; "
                "conditions are given by these names, so they must differ. Rename them in obs."
            )
        slot, _, key = (self.vectors or "uns/NAME").partition("/")
        if slot != "uns" or not key:
            raise SchemaError(
                f"vectors={self.vectors!r}: expected a place, as in vectors='uns/NAME'."
            )
        for role in ("control", "vectors"):
            if getattr(self, role) is not None and self.perturbation is None:
                of = {"control": "names a value", "vectors": "holds vectors"}[role]
                raise SchemaError(f"{role} {of} of perturbation, but no perturbation is named.")

    def with_(self, **roles: Any) -> Schema:
        """Return a copy with some roles changed."""
        return dataclasses.replace(self, **roles)

    def places(self) -> list[tuple[str, Place]]:
        """Return (role, place) of every role named; of tuples as ``categorical/donor``, ``views/rna:X``."""
        found = []
        for role in ROLES:
            value = getattr(self, role)
            if role in ("control", "vectors") or not value:
                continue
            if role in TUPLE_ROLES:
                for text in value:
                    place = Place.parse(text)
                    name = str(place) if role == "views" else place.key
                    found.append((f"{role}/{name}", place))
            else:
                found.append((role, Place.parse(value)))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the roles named, JSON-able."""
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """Build from JSON or TOML values."""
        if not isinstance(values, Mapping):
            raise SchemaError(f"Expected a table of roles and places, got {type(values).__name__}.")
        return cls().with_(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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
        """Names of what cells can be told of: roles, and columns of `categorical` and `continuous`."""
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
        """Return scaled numbers in the user's units, an array with the digits that float32 can tell."""
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
        """Return JSON-able values; of fits without sets as before there were any."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {k: v for k, v in values.items() if v or k not in ("sets", "vectors")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """Build from what `as_dict` returned; wrong shapes are refused."""
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
                vectors={k: tuple(v) for k, v in values.get("vectors", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise SchemaError(f"The stored spec is malformed ({error!r}).") from error
        refuse_malformed(spec, UNIT_ROLES)
        return spec

    @property
    def hash(self) -> str:
        """Short fingerprint, written with every result."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
