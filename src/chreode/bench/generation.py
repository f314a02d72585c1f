"""Are generated cells like real ones that no method has seen? Against replayed, simple and real cells."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..compute.settings import settled
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import ConfigError, DataError, SchemaError, counted
from ..metrics import generation as measure
from ..metrics.markers import MIN_CLASS
from ..model import Model
from ..run import Run
from ..schema import CATEGORY_ROLES, COUNT_ROLES, Schema
from ..trials.digest import provenance
from ..trials.runner import require_seeds, run_of_trials
from ..trials.trial import Result
from . import generators
from .contest import Contestant, contest, contestants
from .fakes import Given, Made, Make, class_names, drawn, fit_and_generate, replay, shuffled, spare
from .generators import Classes
from .sizes import cell_counts
from .table import Bench
from .yardstick import METRICS, SHARES, TOO_FEW, Parts, scored, split, worst_marker

#: Cells of each kind that are kept for pictures.
PICTURED = 1500
#: Rows beside those asked for.
CEILING, REPLAY, SHUFFLED = "real cells", "replayed training cells", "shuffled labels"
NB, MIXTURE = "NB per class", "PCA mixture per class"
_ACROSS = (
    "between modalities",
    1.0,
    "concordance of correlations of the 50 most variable features",
)


@settled()
@checked
def generation(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[Model] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    into: str | Path | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Bench:
    """Fit on some cells, generate as many of each class as others hold, and compare with those.

    A class is a combination of all categories that the schema names (label, batch, perturbation,
    trajectory, categorical). Every seed splits the cells anew.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `counts`, and a category at least. `accessibility` and `protein` are scored too.
    methods
        Models to be fitted. One that reads no label gets the class as its batch.
    seeds
        Seeds of splits, fits and draws.
    into
        Folder that keeps the result of every method and seed as it comes, and from which the same
        call goes on.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Raises
    ------
    ConfigError, SchemaError
        If a model generates no counts, or the schema names no counts or no classes.
    DataError
        If no class has enough cells to be scored.

    Returns
    -------
    Bench
        Scores against the same held-out cells, with rows that tell what they are worth: real cells in
        place of fakes, replayed training cells (which `memory` and `membership` alone give away), cells of a
        random class, and two models that a page of code can hold. `markers` has the genes that define
        the types, one by one. Classes too small to be scored alone are in ``about["too small"]``, types
        without markers in ``about["no markers"]``, modalities of too few cells in ``about["not scored"]``.
    """
    for model in methods:
        if model.scale != "counts":
            raise ConfigError(f"{model.key} generates no counts, which this bench compares.")
    seeds = require_seeds(seeds)
    run, cells = run_of_trials(run, settings), Cells.of(data, schema)
    given, left_out = _judged(_given(cells, run), seeds)
    judge = partial(partial, _judge, pictured=seeds[0])
    rows = [
        Contestant(CEILING, "ceiling", judge(spare)),
        Contestant(REPLAY, "control", judge(replay)),
        Contestant(SHUFFLED, "control", judge(shuffled)),
        Contestant(NB, "baseline", judge(partial(drawn, generators.independent))),
        Contestant(MIXTURE, "baseline", judge(partial(drawn, generators.mixture))),
        *contestants(methods, lambda model: judge(partial(fit_and_generate, model))),
    ]
    names = class_names(given.attributes)
    held_out = np.bincount(given.classes[split(given.classes, 0).reference], minlength=len(names))
    about = {
        **provenance(cells), "shares": list(SHARES), "classes": len(names),
        "cells": int((given.classes >= 0).sum()),
        "too small": {n: int(k) for n, k in zip(names, held_out, strict=True) if k < MIN_CLASS},
    }  # fmt: skip
    about |= {"not scored": left_out} if left_out else {}
    bench, outcomes = contest(
        "generation", rows, _metric_table(given), given, about,
        seeds=seeds, into=into, run=run,
    )  # fmt: skip
    further = {
        key: pd.DataFrame(
            {"method": name, "seed": seed, **row}
            for name, of in outcomes.items()
            for seed, outcome in of.items()
            for row in outcome.row.get(key, [])
        )
        for key in ("by_class", "markers")
    }
    pairs = {
        name: (_unpacked(arrays, "real", given), _unpacked(arrays, "fake", given))
        for name, of in outcomes.items()
        if (arrays := of[seeds[0]].arrays)
    }
    bench = replace(bench, **further, pairs=pairs, sizes=cell_counts(cells))
    if len(bench.markers):
        without = _without_markers(given, held_out, bench.markers)
        bench = replace(bench, about={**about, "no markers": without})
    worst = {name: worst_marker(bench.markers, name) for name in bench.methods.index}
    notes = [[*of, *filter(None, [worst[name]])] for name, of in bench.methods["notes"].items()]
    return replace(bench, methods=bench.methods.assign(notes=notes))


def _without_markers(given: Given, held_out: np.ndarray, markers: pd.DataFrame) -> dict[str, int]:
    """Return the types that no gene defines, each with its number of held-out cells."""
    of_class, types = given.types
    sizes = np.bincount(of_class, weights=held_out, minlength=len(types))
    defined = set(markers["class"])
    return {n: int(size) for n, size in zip(types, sizes, strict=True) if n not in defined}


def class_table(cells: Cells) -> tuple[Classes, pd.DataFrame]:
    """Return the class of each cell (-1 where a category is missing), and the attributes of each class.

    Raises
    ------
    SchemaError
        If no category is named.
    """
    columns = {
        role.removeprefix("categorical/"): cells.categories(role).to_numpy(object)
        for role in cells.places
        if role in CATEGORY_ROLES or role.startswith("categorical/")
    }
    if not columns:
        raise SchemaError("bench.generation needs classes: name label, batch or another category.")
    table = pd.DataFrame(columns)
    known = table.notna().all(axis=1).to_numpy()
    numbered = table[known].groupby(list(columns), sort=True)
    classes = np.full(len(table), -1)
    classes[known] = numbered.ngroup().to_numpy()
    return classes, numbered.size().index.to_frame(index=False)


def _given(cells: Cells, run: Run) -> Given:
    if cells.schema.counts is None:
        raise SchemaError("bench.generation needs counts: Schema(counts='layers/…').")
    classes, attributes = class_table(cells)
    counts, measured, features = {}, {}, {}
    for role in cells.places:
        if role in COUNT_ROLES:
            matrix, features[role] = cells.matrix(role)
            at = cells.rows(role)
            values = sp.csr_matrix(matrix[np.arange(matrix.shape[0])])
            measured[role] = np.ones(len(cells), bool) if at is None else at >= 0
            if at is not None:
                none = sp.csr_matrix((1, values.shape[1]), dtype=values.dtype)
                values = sp.vstack([values, none], format="csr")[at]  # -1: the last one
            counts[role] = values
    return Given(cells.data, cells.schema, counts, measured, features, classes, attributes, run)


def _judged(given: Given, seeds: Sequence[int]) -> tuple[Given, dict[str, str]]:
    """Leave out further modalities that cannot be scored, which models read all the same; and say why."""
    first, *others = given.counts
    splits = [split(given.classes, seed) for seed in seeds]

    def enough(role: str) -> bool:
        there = given.measured[role]
        sizes = (np.bincount(given.classes[p.reference[there[p.reference]]]) for p in splits)
        return all(max(n, default=0) >= MIN_CLASS for n in sizes)

    if not enough(first):
        raise DataError(TOO_FEW)
    left = {role: "it has one feature" for role in others if given.counts[role].shape[1] < 2}
    few = f"no class has {counted(MIN_CLASS, 'held-out cell')} with it, where a fifth of all are held out"
    left |= {role: few for role in others if role not in left and not enough(role)}
    kept: dict[str, Any] = {
        name: {role: v for role, v in getattr(given, name).items() if role not in left}
        for name in ("counts", "measured", "features")
    }
    return replace(given, **kept), left


def _metric_table(given: Given) -> pd.DataFrame:
    known = dict(METRICS)
    first, *others = given.counts
    for role in others:
        known |= {f"{role}_{k}": (f"{role}: {n}", b, s) for k, (n, b, s) in METRICS.items()}
        known[f"{first}_{role}"] = (f"{first} and {role}", *_ACROSS[1:])
    return pd.DataFrame(
        [
            {"metric": key, "name": name, "group": "generation", "best": best, "about": meaning}
            for key, (name, best, meaning) in known.items()
        ]
    ).set_index("metric")


# a trial


def _judge(make: Make, seed: int, given: Given, *, pictured: int) -> Result:
    start = time.perf_counter()
    parts = split(given.classes, seed)
    made = make(given, parts, seed)
    seconds = time.perf_counter() - start
    scores: dict[str, float] = {}
    by_class: list[dict[str, Any]] = []
    markers: list[dict[str, Any]] = []
    first = next(iter(given.counts))
    for role in made.counts:  # a model of one modality has one
        prefix = "" if role == first else f"{role}_"
        found, alone, of_types = _of_role(given, parts, made, role, seed)
        scores |= {f"{prefix}{k}": v for k, v in found.items()}
        by_class += [{**row, "metric": f"{prefix}{row['metric']}"} for row in alone]
        markers += [{"role": role, **row} for row in of_types]
        if role != first:
            both = [np.flatnonzero(m[first] & m[role]) for m in (given.measured, made.measured)]
            real = np.intersect1d(parts.reference, both[0])
            scores[f"{first}_{role}"] = measure.cross_agreement(
                (given.counts[first][real], given.counts[role][real]),
                (made.counts[first][both[1]], made.counts[role][both[1]]),
            )
    row = {
        "scores": scores, "by_class": by_class, "markers": markers,
        "state": made.state, "note": made.note, "seconds": seconds,
    }  # fmt: skip
    if seed != pictured:
        return row, {}
    shown = parts.reference[given.measured[first][parts.reference]]
    real_cells = given.counts[first][shown], given.classes[shown]
    return row, _packed("real", *real_cells, seed) | _packed(
        "fake", made.counts[first], made.classes, seed
    )


def _of_role(
    given: Given, parts: Parts, made: Made, role: str, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the scores of one modality, those of single classes, and the markers of types."""
    counts, measured = given.counts[role], given.measured[role]
    train, reference, _, yardstick = (rows[measured[rows]] for rows in parts)
    types, named = given.types
    kept = np.flatnonzero(made.measured[role])
    found, alone, markers = scored(
        counts[reference], given.classes[reference], made.counts[role][kept], made.classes[kept],
        train=counts[train], yardstick=counts[yardstick], of_yardstick=given.classes[yardstick],
        types=types, seed=seed,
    )  # fmt: skip
    names = class_names(given.attributes)
    by_class = [
        {"class": names[number], "metric": metric, "value": float(value)}
        for (number, metric), value in alone.stack().items()
    ]
    if len(markers):
        markers["class"] = [named[i] for i in markers.pop("type")]
        markers["gene"] = given.features[role][markers["gene"]].astype(str)
    return found, by_class, markers.to_dict("records")


# cells for pictures, which a ledger keeps as arrays


def _packed(kind: str, counts: sp.csr_matrix, classes: Classes, seed: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).permutation(len(classes))[:PICTURED]
    some = counts[rows]
    parts = {"data": some.data, "indices": some.indices, "indptr": some.indptr}
    return {f"{kind}/{k}": v for k, v in {**parts, "classes": classes[rows]}.items()}


def _unpacked(arrays: Mapping[str, np.ndarray], kind: str, given: Given) -> anndata.AnnData:
    features = next(iter(given.features.values()))
    data, indices, indptr, classes = (
        arrays[f"{kind}/{part}"] for part in ("data", "indices", "indptr", "classes")
    )
    of_class, types = given.types
    return anndata.AnnData(
        sp.csr_matrix((data, indices, indptr), shape=(len(classes), len(features))),
        obs=pd.DataFrame(
            {
                "class": pd.Categorical.from_codes(classes, class_names(given.attributes)),
                "type": pd.Categorical.from_codes(of_class[classes], types),
            },
            index=[f"{kind} {i}" for i in range(len(classes))],
        ),
        var=pd.DataFrame(index=features),
    )
