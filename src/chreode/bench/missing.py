"""How an embedding of RNA is probed by the proteins of cells that no fit has seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..data.cells import Cells
from ..errors import CapabilityError
from ..fitted import Fitted
from ..metrics import proteins as of_proteins
from ..metrics import typing as of_types
from ..metrics.classifiers import NearestLabels
from ..model import Model
from ..schema import Schema
from ..trials.cluster import opened
from ..trials.trial import Result
from .embedded import Method, shallow
from .probing import (
    DECISIVE,
    NEIGHBOURS,
    Embedded,
    Posed,
    both_sides,
    fit_and_embed,
    picture,
    scored,
)
from .query import protein_values, without_proteins

TAUGHT = "it learned from the proteins of the reference too, and saw the RNA of all cells alone"


def judge_missing(method: Method, seed: int, given: Posed) -> Result:
    """Foretell proteins of query cells by the nearest reference cells in an embedding of RNA.

    A model that cannot do without proteins learns from those of the reference, and then embeds all cells by
    their RNA alone.
    """
    hidden = replace(given, schema=given.schema.with_(protein=None))
    if isinstance(method.model, Fitted) and "protein" in method.model.spec.features:
        raise CapabilityError("it reads the proteins that are hidden here")
    if isinstance(method.model, Model) and _needs_proteins(method.model, hidden.schema):
        found, remarks = _taught_proteins(method.model, given, seed), [TAUGHT]
    else:
        found, remarks = fit_and_embed(method, hidden, seed), []
    reference, query = both_sides(method, found, *_paired(given))
    row, arrays = _foretold(partial(of_proteins.by_neighbours, reference, query), given)
    remarks += found.remarks(seed)
    row |= {"state": found.state, "seconds": found.seconds, "remarks": remarks}
    return row, {**arrays, **picture(found.x, given)}


def _needs_proteins(model: Model, hidden: Schema) -> bool:
    """Return whether a model that has all its roles lacks one where proteins are hidden."""
    named = {role.partition("/")[0] for role, _ in hidden.places()}
    return any("protein" in need and named.isdisjoint(need.split("|")) for need in model.needs)


def _taught_proteins(model: Model, given: Posed, seed: int) -> Embedded:
    """Learn from RNA and proteins of the reference alone, and embed the cells of both sides by their RNA."""
    start, cells = time.perf_counter(), Cells(opened(given.data), given.schema)
    if "counts" not in cells.places:
        raise CapabilityError("it cannot do without proteins, which are hidden beside counts alone")
    fitted = model.fit(
        shallow(cells.data), given.schema.with_(expression=None), seed=seed, rows=given.parts.fitted_on,
        run=given.run,
    )  # fmt: skip
    rows = np.union1d(given.cells, np.concatenate(_paired(given)))
    data, schema = without_proteins(cells, rows)
    found = fitted.embed(data, schema=schema, run=given.run)
    x = np.full((len(cells), found.shape[1]), np.nan, found.dtype)
    x[rows] = found
    return Embedded(x, fitted.provenance["state"], time.perf_counter() - start, fitted)


def judge_mean(_: int, given: Posed) -> Result:
    """Foretell the mean of the reference for every cell."""
    n = len(_paired(given)[1])
    row, arrays = _foretold(lambda values: np.tile(values.mean(0, keepdims=True), (n, 1)), given)
    return {**row, "state": "rested", "seconds": 0.0, "remarks": []}, arrays


def judge_measured(_: int, given: Posed) -> Result:
    """Foretell proteins by the reference cells whose proteins are nearest to those that were measured."""
    measured = _measured(given)
    near = partial(of_proteins.by_neighbours, measured[0], measured[1])
    row, arrays = _foretold(near, given)
    return {**row, "state": "rested", "seconds": 0.0, "remarks": []}, arrays


def _paired(given: Posed) -> tuple[np.ndarray, np.ndarray]:
    assert given.paired is not None
    return given.paired


def _measured(given: Posed) -> list[Float64[np.ndarray, "_ p"]]:
    """Return log1p of the proteins of both sides."""
    cells = Cells(opened(given.data), given.schema)
    return [
        np.log1p(protein_values(cells, rows)[:, given.panel].astype(np.float64))
        for rows in _paired(given)
    ]


def _foretold(
    foretell: Callable[[np.ndarray], np.ndarray], given: Posed
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reference, truth = _measured(given)
    values = foretell(reference)
    scores = of_proteins.protein_scores(truth, values)
    parts, (known, query) = given.parts, _paired(given)
    codes = parts.codes
    typed = known[(codes[known] >= 0) & (codes[known] < parts.n_known)]
    asked = codes[query] >= 0
    if len(typed) > 1 and asked.any():
        nearest = NearestLabels.fit(
            reference[np.isin(known, typed)], codes[typed], parts.n_known, k=NEIGHBOURS
        )
        chances = nearest.probabilities(values[asked])
        scores["protein_f1"] = of_types.typing_scores(codes[query][asked], chances)["f1"].within(
            asked
        )
    rows, drawn = scored(scores)
    single = of_proteins.of_proteins(truth, values)
    names = Cells(opened(given.data), given.schema).matrix("protein").names[list(given.panel)]
    by_class = [
        {"class": str(name), "metric": "protein_r", "value": float(r)}
        for name, r in zip(names, single, strict=True)
        if np.isfinite(r)
    ]
    kept = {name: drawn[name] for name in DECISIVE["missing"]}
    return {"scores": rows, "by_class": by_class}, kept
