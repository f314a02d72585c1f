"""Are generated cells like real ones that no method has seen? Against replayed, simple and real cells."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Int

from .. import read
from ..check import as_category
from ..errors import ConfigError, DataError, SchemaError
from ..learn.state import State
from ..metrics import generation as measure
from ..model import Model
from ..read import Data
from ..schema import CATEGORY_ROLES, COUNT_ROLES, Schema
from . import generators
from .contest import Contestant, contest, contestants
from .generators import Classes, Counts
from .ledger import provenance
from .table import Bench
from .trials import Result

#: Shares of the cells: to learn from, to compare with, and real ones to compare in place of fakes.
SHARES = (0.6, 0.2, 0.2)
#: Cells that a class must have in the part compared with, to be scored by itself.
MIN_CLASS = 20
#: Cells of a class, and of all classes together, that distances look at.
POOLED = 2000
#: Cells of each kind that are kept for pictures.
PICTURED = 1500
#: Rows beside those asked for.
CEILING, REPLAY, SHUFFLED = "real cells", "replayed training cells", "shuffled labels"
NB, MIXTURE = "NB per class", "PCA mixture per class"
METRICS = {
    "w2": ("W2", 0.0, "2-Wasserstein distance in 30 principal components, mean over classes"),
    "w2_pooled": ("W2, pooled", 0.0, "the same of all classes together"),
    "mmd": ("MMD²", 0.0, "unbiased squared maximum mean discrepancy, mean over classes"),
    "mmd_pooled": ("MMD², pooled", 0.0, "the same of all classes together"),
    "energy": ("energy", 0.0, "unbiased energy distance, mean over classes"),
    "auc": ("AUC", 0.5, "a random forest that tells real from fake, mean over classes"),
    "auc_pooled": ("AUC, pooled", 0.5, "the same of all classes together"),
    "precision": ("precision", 1.0, "fake cells near real ones"),
    "recall": ("recall", 1.0, "real cells near fake ones"),
    "density": ("density", 1.0, "real neighbourhoods that a fake cell lies in"),
    "coverage": ("coverage", 1.0, "real cells with a fake one in their neighbourhood"),
    "mean": ("feature means", 1.0, "concordance over features, mean over classes"),
    "variance": ("feature variances", 1.0, "concordance over features, mean over classes"),
    "zeros": ("zeros", 1.0, "concordance over features of the share of zeros, mean over classes"),
    "correlation": ("pairs", 1.0, "concordance of correlations of the 200 most variable features"),
    "fold_change": ("fold changes", 1.0, "concordance of log fold changes, class against the rest"),
    "depth": ("depth", 0.0, "Kolmogorov-Smirnov distance of totals, mean over classes"),
    "memory": ("memory", 0.5, "how often a fake is nearer to a training cell than a held-out one"),
}
_ACROSS = (
    "between modalities",
    1.0,
    "concordance of correlations of the 50 most variable features",
)


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given.

    `classes` of each cell (-1: none), the attributes of each class, and which cells have a modality.
    """

    data: Data
    schema: Schema
    counts: Counts
    measured: Mapping[str, Bool[np.ndarray, " cells"]]
    features: Mapping[str, pd.Index]
    classes: Classes
    attributes: pd.DataFrame
    progress: bool | None


#: Makes a cell of every class wanted, from training rows and a seed; says how a fit for it stood.
_Make: TypeAlias = Callable[[_Given, np.ndarray, Classes, int], tuple[Counts, State]]


def generation(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[Model] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    into: str | Path | None = None,
    progress: bool | None = None,
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
    progress
        Show progress bars (default: on a terminal).

    Raises
    ------
    ConfigError, SchemaError
        If a model generates no counts, or the schema names no counts or no classes.

    Returns
    -------
    Bench
        Scores against the same held-out cells, with rows that tell what they are worth: real cells in
        place of fakes (nothing can be expected to do better), replayed training cells (which only
        `memory` gives away), cells of a random class, and two models that a page of code can hold.
    """
    for model in methods:
        if model.scale != "counts":
            raise ConfigError(f"{model.key} generates no counts, which this bench compares.")
    data = read.read(data)
    given = _given(data, schema, progress)
    judge = partial(partial, _judge, pictured=seeds[0])
    rows = [
        Contestant(CEILING, "ceiling", judge(None)),
        Contestant(REPLAY, "control", judge(_replay)),
        Contestant(SHUFFLED, "control", judge(_shuffled)),
        Contestant(NB, "baseline", judge(partial(_drawn, generators.independent))),
        Contestant(MIXTURE, "baseline", judge(partial(_drawn, generators.mixture))),
        *contestants(methods, lambda model: judge(partial(_fit_and_generate, model))),
    ]
    about = {
        **provenance(data, schema), "shares": list(SHARES), "classes": len(given.attributes),
        "cells": int((given.classes >= 0).sum()),
    }  # fmt: skip
    bench, outcomes = contest(
        "generation", rows, _metric_table(given), given, about,
        seeds=seeds, into=into, progress=progress,
    )  # fmt: skip
    by_class = [
        {"method": name, "seed": seed, **row}
        for name, of in outcomes.items()
        for seed, outcome in of.items()
        for row in outcome.row.get("by_class", [])
    ]
    first = {name: of[seeds[0]].arrays for name, of in outcomes.items()}
    pairs = {
        name: (_unpacked(arrays, "real", given), _unpacked(arrays, "fake", given))
        for name, arrays in first.items()
        if arrays
    }
    return replace(bench, by_class=pd.DataFrame(by_class), pairs=pairs)


def split(classes: Classes, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows to learn from, to compare with, and real ones in place of fakes (see `SHARES`)."""
    rng = np.random.default_rng([seed, 7])
    parts: list[list[np.ndarray]] = [[], [], []]
    for number in np.unique(classes[classes >= 0]):  # as many of each class on both sides
        rows = rng.permutation(np.flatnonzero(classes == number))
        n = round(SHARES[1] * len(rows))
        for part, some in zip(
            parts, np.split(rows[::-1], [len(rows) - 2 * n, len(rows) - n]), strict=True
        ):
            part.append(some)
    train, reference, spare = (np.sort(np.concatenate(part)) for part in parts)
    return train, reference, spare


def class_table(data: Data, schema: Schema) -> tuple[Classes, pd.DataFrame]:
    """Return the class of each cell (-1 where a category is missing), and the attributes of each class.

    Raises
    ------
    SchemaError
        If no category is named.
    """
    columns = {
        role.removeprefix("categorical/"): as_category(
            read.column(data, place, role), schema.missing
        ).to_numpy(object)
        for role, place in schema.places()
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


def _given(data: Data, schema: Schema, progress: bool | None) -> _Given:  # noqa: FBT001 (tri-state)
    if schema.counts is None:
        raise SchemaError("bench.generation needs counts: Schema(counts='layers/…').")
    classes, attributes = class_table(data, schema)
    counts, measured, features = {}, {}, {}
    for role, place in schema.places():
        if role in COUNT_ROLES:
            matrix, features[role] = read.matrix(data, place, role)
            values = sp.csr_matrix(matrix[np.arange(matrix.shape[0])])
            at = read.where(data, place)
            measured[role] = np.ones(data.n_obs, bool) if at is None else at >= 0
            if at is not None:
                none = sp.csr_matrix((1, values.shape[1]), dtype=values.dtype)
                values = sp.vstack([values, none], format="csr")[at]  # -1: the last one
            counts[role] = values
    return _Given(data, schema, counts, measured, features, classes, attributes, progress)


def _metric_table(given: _Given) -> pd.DataFrame:
    told = dict(METRICS)
    first, *others = given.counts
    for role in others:
        told |= {f"{role}_{k}": (f"{role}: {n}", b, s) for k, (n, b, s) in METRICS.items()}
        told[f"{first}_{role}"] = (f"{first} and {role}", *_ACROSS[1:])
    return pd.DataFrame(
        [
            {"metric": key, "name": name, "group": "generation", "best": best, "about": said}
            for key, (name, best, said) in told.items()
        ]
    ).set_index("metric")


# a trial


def _judge(make: _Make | None, seed: int, given: _Given, *, pictured: int) -> Result:
    start = time.perf_counter()
    train, reference, spare = split(given.classes, seed)
    seen = np.isin(given.classes, given.classes[train])
    reference, spare = reference[seen[reference]], spare[seen[spare]]
    wanted = of_fake = given.classes[reference]
    state: State = "rested"
    fake: Counts
    if make is None:
        fake, of_fake = {role: x[spare] for role, x in given.counts.items()}, given.classes[spare]
    else:
        fake, state = make(given, train, wanted, seed)
    seconds = time.perf_counter() - start
    scores: dict[str, float] = {}
    by_class: list[dict[str, Any]] = []
    names = _class_names(given)
    first = next(iter(given.counts))
    for role, x in given.counts.items():
        if role not in fake:  # a model of one modality
            continue
        rows = reference[given.measured[role][reference]]
        # fakes of the same cells, or all: every generated cell has every modality
        kept = given.measured[role][spare if make is None else reference]
        others = [x[r[given.measured[role][r]]] for r in (train, spare)]
        found, parts = scored(
            x[rows], given.classes[rows], fake[role][kept], of_fake[kept],
            train=others[0], spare=others[1], seed=seed,
        )  # fmt: skip
        prefix = "" if role == first else f"{role}_"
        scores |= {f"{prefix}{k}": v for k, v in found.items()}
        by_class += [
            {"class": names[number], "metric": f"{prefix}{metric}", "value": float(value)}
            for (number, metric), value in parts.stack().items()
        ]
        if role != first:
            both = reference[given.measured[role][reference] & given.measured[first][reference]]
            also = kept & given.measured[first][spare if make is None else reference]
            scores[f"{first}_{role}"] = measure.cross_agreement(
                (given.counts[first][both], x[both]), (fake[first][also], fake[role][also])
            )
    row = {"scores": scores, "by_class": by_class, "state": state, "seconds": seconds}
    if seed != pictured:
        return row, {}
    kept = given.measured[first][reference]
    real = given.counts[first][reference][kept], given.classes[reference][kept]
    return row, _packed("real", *real, seed) | _packed("fake", fake[first], of_fake, seed)


def scored(
    real: sp.csr_matrix,
    of_real: Classes,
    fake: sp.csr_matrix,
    of_fake: Classes,
    *,
    train: sp.csr_matrix,
    spare: sp.csr_matrix,
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Return every metric of `METRICS`, and those of single classes as a table, classes x metrics.

    The former are means over the classes of at least `MIN_CLASS` cells, which the table holds.

    Parameters
    ----------
    real, fake
        Raw counts, and the class of each cell.
    train, spare
        Raw counts of what was learned from, which choose the components and are what `memory` asks
        about, and of further real cells.

    Raises
    ------
    DataError
        If no class has enough cells.
    """
    # of neither side: in components fitted on it, a cloud is wider than others like it
    space = measure.Space.of(train)
    x, y = space.place(real), space.place(fake)
    parts = {}
    for number in np.unique(of_real):
        a, b = np.flatnonzero(of_real == number), np.flatnonzero(of_fake == number)
        if min(len(a), len(b)) >= MIN_CLASS:
            parts[int(number)] = _of_class(x[a], y[b], real[a], fake[b], seed)
    if not parts:
        raise DataError(
            f"No class has {MIN_CLASS} cells to compare: give more cells, or fewer categories."
        )
    few = _thinned(x, seed), _thinned(y, seed)
    variable = space.genes[np.argsort(-measure.Moments.of(real[:, space.genes]).variance)[:200]]
    pooled = {
        "w2_pooled": measure.wasserstein2(*few, seed=seed),
        "mmd_pooled": measure.mmd2(*few),
        "auc_pooled": measure.real_or_fake(x, y, seed=seed),
        "correlation": measure.correlation_agreement(real, fake, variable),
        "fold_change": measure.fold_change_agreement(real, fake, of_real, of_fake),
        "memory": measure.memorisation(space.place(train), space.place(spare), y),
    }
    table = pd.DataFrame.from_dict(parts, orient="index")
    found = {**table.mean().to_dict(), **pooled}
    return {key: float(found[key]) for key in METRICS}, table


def _of_class(
    x: np.ndarray, y: np.ndarray, real: sp.csr_matrix, fake: sp.csr_matrix, seed: int
) -> dict[str, float]:
    x, y = _thinned(x, seed), _thinned(y, seed)
    shape = measure.manifold(x, y)
    return {
        "w2": measure.wasserstein2(x, y, seed=seed),
        "mmd": measure.mmd2(x, y),
        "energy": measure.energy_distance(x, y),
        "auc": measure.real_or_fake(x, y, seed=seed),
        "precision": shape.precision, "recall": shape.recall,
        "density": shape.density, "coverage": shape.coverage,
        **measure.gene_agreement(real, fake),
        "depth": measure.depth_distance(*(np.asarray(c.sum(1)).ravel() for c in (real, fake))),
    }  # fmt: skip


def _thinned(x: np.ndarray, seed: int) -> np.ndarray:
    return x[np.random.default_rng(seed).permutation(len(x))[:POOLED]]


# cells for pictures, which a ledger keeps as arrays


def _packed(kind: str, counts: sp.csr_matrix, classes: Classes, seed: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).permutation(len(classes))[:PICTURED]
    some = counts[rows]
    parts = {"data": some.data, "indices": some.indices, "indptr": some.indptr}
    return {f"{kind}/{k}": v for k, v in {**parts, "classes": classes[rows]}.items()}


def _unpacked(arrays: Mapping[str, np.ndarray], kind: str, given: _Given) -> anndata.AnnData:
    features = next(iter(given.features.values()))
    data, indices, indptr, classes = (
        arrays[f"{kind}/{part}"] for part in ("data", "indices", "indptr", "classes")
    )
    return anndata.AnnData(
        sp.csr_matrix((data, indices, indptr), shape=(len(classes), len(features))),
        obs=pd.DataFrame(
            {"class": pd.Categorical.from_codes(classes, _class_names(given))},
            index=[f"{kind} {i}" for i in range(len(classes))],
        ),
        var=pd.DataFrame(index=features),
    )


def _class_names(given: _Given) -> list[str]:
    return [", ".join(map(str, row)) for row in given.attributes.itertuples(index=False)]


# how each row makes its cells


def _rows(given: _Given, rows: Int[np.ndarray, " n"]) -> dict[str, sp.csr_matrix]:
    return {role: x[rows] for role, x in given.counts.items()}


def _whole(given: _Given, train: np.ndarray) -> np.ndarray:
    """Return training rows that have every modality, and all of a class that has no such."""
    whole = np.all([mask[train] for mask in given.measured.values()], axis=0)
    lacking = ~np.isin(given.classes[train], given.classes[train][whole])
    return train[whole | lacking]


def _replay(given: _Given, train: np.ndarray, wanted: Classes, seed: int) -> tuple[Counts, State]:
    train = _whole(given, train)
    chosen = generators.replayed(given.classes[train], wanted, np.random.default_rng(seed))
    return _rows(given, train[chosen]), "rested"


def _shuffled(given: _Given, train: np.ndarray, wanted: Classes, seed: int) -> tuple[Counts, State]:
    rng = np.random.default_rng(seed)
    rows = _whole(given, train)
    return _rows(given, rng.choice(rows, len(wanted), replace=len(wanted) > len(rows))), "rested"


def _drawn(
    draw: Callable[..., Counts], given: _Given, train: np.ndarray, wanted: Classes, seed: int
) -> tuple[Counts, State]:
    measured = {role: mask[train] for role, mask in given.measured.items()}
    known = generators.Known(_rows(given, train), measured, given.classes[train])
    return draw(known, wanted, np.random.default_rng(seed)), "rested"


def _fit_and_generate(
    model: Model, given: _Given, train: np.ndarray, wanted: Classes, seed: int
) -> tuple[Counts, State]:
    data, schema, attributes = given.data, given.schema, given.attributes
    if "label" not in model.uses:
        data, schema = _classes_as_batches(given)
        attributes = pd.DataFrame({"batch": data.obs["class"].cat.categories})
        train = train[next(iter(given.measured.values()))[train]]
    fitted = model.fit(data, schema, rows=train, seed=seed, progress=given.progress)
    told = {name: values.to_numpy()[wanted] for name, values in attributes.items()}
    made: Any = fitted.generate(len(wanted), given=told, seed=seed, progress=given.progress)
    state = fitted.provenance["state"]
    if isinstance(made, anndata.AnnData):
        return {next(iter(given.counts)): sp.csr_matrix(made.X)}, state
    places = dict(schema.places())
    return {r: sp.csr_matrix(made[places[r].modality or r].X) for r in given.counts}, state


def _classes_as_batches(given: _Given) -> tuple[anndata.AnnData, Schema]:
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
