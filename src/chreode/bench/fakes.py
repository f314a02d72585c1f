"""Cells in place of real ones: how each row of a bench of generation makes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool

from ..compute.convergence import State
from ..data.read import Data
from ..model import Model
from ..run import Run
from ..schema import Schema
from . import generators
from .generators import Classes, Counts
from .yardstick import Parts

#: Said of models that read no label.
AS_BATCH = "reads no labels, so each class was given to it as a batch"


@dataclass(frozen=True, eq=False)
class Given:
    """What every trial is given.

    `classes` of each cell (-1: none), the attributes of each class, which cells have a modality, and the
    `types` whose markers are compared: labels, or classes if there are none.
    """

    data: Data
    schema: Schema
    counts: Counts
    measured: Mapping[str, Bool[np.ndarray, " cells"]]
    features: Mapping[str, pd.Index]
    classes: Classes
    attributes: pd.DataFrame
    run: Run

    @property
    def types(self) -> tuple[np.ndarray, list[str]]:
        """Return the number of each class's type, and the names of these."""
        if "label" not in self.attributes:
            return np.arange(len(self.attributes)), class_names(self.attributes)
        numbers, names = pd.factorize(self.attributes["label"], sort=True)
        return numbers, [*map(str, names)]


@dataclass(frozen=True, eq=False)
class Made:
    """Cells in place of real ones: counts, the class each was asked for, and which have a modality.

    And, of those of a model, how its fit stood and what a reader must know of it.
    """

    counts: Counts
    classes: Classes
    measured: Mapping[str, Bool[np.ndarray, " n"]]
    state: State = "rested"
    note: str = ""


#: Makes cells, as many of each class as the reference has.
Make: TypeAlias = Callable[[Given, Parts, int], Made]


def class_names(attributes: pd.DataFrame) -> list[str]:
    """Return what each class is called: its attributes."""
    return [", ".join(map(str, row)) for row in attributes.itertuples(index=False)]


def _real(given: Given, rows: np.ndarray, classes: Classes) -> Made:
    """Return real cells as they are, with the modalities that they have."""
    return Made(
        {role: x[rows] for role, x in given.counts.items()},
        classes,
        {role: mask[rows] for role, mask in given.measured.items()},
    )


def _generated(
    given: Given, parts: Parts, counts: Counts, state: State = "rested", note: str = ""
) -> Made:
    """Return generated cells, which have every modality; those of it are compared that real ones have."""
    measured = {role: given.measured[role][parts.reference] for role in counts}
    return Made(counts, given.classes[parts.reference], measured, state, note)


def spare(given: Given, parts: Parts, seed: int) -> Made:  # noqa: ARG001 (one signature)
    """Return other real cells."""
    return _real(given, parts.spare, given.classes[parts.spare])


def replay(given: Given, parts: Parts, seed: int) -> Made:
    """Return training cells of the classes that are compared."""
    wanted = given.classes[parts.reference]
    drawn = generators.replayed(given.classes[parts.train], wanted, np.random.default_rng(seed))
    return _real(given, parts.train[drawn], wanted)


def shuffled(given: Given, parts: Parts, seed: int) -> Made:
    """Return training cells of any class."""
    drawn = np.random.default_rng(seed).permutation(parts.train)[: len(parts.reference)]
    return _real(given, drawn, given.classes[parts.reference])


def drawn(draw: Callable[..., Counts], given: Given, parts: Parts, seed: int) -> Made:
    """Return cells that a simple generator draws, which knows the training cells."""
    train = _real(given, parts.train, given.classes[parts.train])
    known = generators.Known(train.counts, train.measured, train.classes)
    wanted = given.classes[parts.reference]
    return _generated(given, parts, draw(known, wanted, np.random.default_rng(seed)))


def fit_and_generate(model: Model, given: Given, parts: Parts, seed: int) -> Made:
    """Return cells of a model that is fitted on the training cells."""
    data, schema, attributes = given.data, given.schema, given.attributes
    train, wanted, note = parts.train, given.classes[parts.reference], ""
    if "label" not in model.uses:
        note = "" if [*attributes] == ["batch"] else AS_BATCH
        data, schema = _classes_as_batches(given)
        attributes = pd.DataFrame({"batch": data.obs["class"].cat.categories})
        train = train[next(iter(given.measured.values()))[train]]
    fitted = model.fit(data, schema, rows=train, seed=seed, run=given.run)
    conditions = {name: values.to_numpy()[wanted] for name, values in attributes.items()}
    made: Any = fitted.generate(len(wanted), given=conditions, seed=seed, run=given.run)
    places = dict(schema.places())
    counts = (
        {next(iter(given.counts)): sp.csr_matrix(made.X)}
        if isinstance(made, anndata.AnnData)
        else {r: sp.csr_matrix(made[places[r].modality or r].X) for r in given.counts}
    )
    return _generated(given, parts, counts, fitted.provenance["state"], note)


def _classes_as_batches(given: Given) -> tuple[anndata.AnnData, Schema]:
    """Return the first modality with one category per cell, for models that read no label."""
    names = [f"class {number:03d}" for number in range(len(given.attributes))]
    cells = anndata.AnnData(
        next(iter(given.counts.values())),
        obs=pd.DataFrame(
            {"class": pd.Categorical.from_codes(given.classes, names)},
            index=given.data.obs_names,
        ),
    )
    return cells, Schema(counts="X", batch="obs/class", fractional=given.schema.fractional)
