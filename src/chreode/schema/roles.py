"""Where each role lives in a data object: what the user writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..errors import SchemaError, visible
from .hinting import with_hints

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
            raise SchemaError(f"{text!r} does not name a place. {_SPELLING}.")
        head, slash, key = text.partition("/")
        modality, colon, slot = head.rpartition(":")
        whole = slot in ("X", "raw") and not slash
        if (whole or (slot in ("layers", "obs", "obsm") and key)) and (modality or not colon):
            return cls(slot, key, modality)
        plain = (
            ""
            if slash or colon
            else f" A column of that name is 'obs/{text}', a layer 'layers/{text}'."
        )
        raise SchemaError(f"{text!r} does not name a place.{plain} {_SPELLING}.")

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


@with_hints
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
        When a cell was taken: one number each, in any unit; dates as days or seconds.
    dose
        How much was done to a cell: one number each, in any unit.
    control
        The value of `perturbation` that means "unperturbed".
    vectors
        A vector per single perturbation, such as an embedding of its gene: ``uns/NAME``, a table whose rows
        are named after perturbations or a mapping of names to vectors.
    missing
        Strings in category columns that mean "not known", such as "nan" and "unknown".
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

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{k}</td><td>{escape(visible(v))}</td></tr>" for k, v in self.as_dict().items()
        ]
        return f"<table><tr><th>role</th><th>place</th></tr>{''.join(rows)}</table>"

    def with_(self, /, **roles: Any) -> Schema:
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
