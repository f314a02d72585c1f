"""How an embedding is probed: types told of cells that no fit has seen, and what tasks have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float64, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from ..compute.convergence import State
from ..compute.rng import Rng
from ..data.batch import SparseRows
from ..data.cells import Cells
from ..errors import CapabilityError, counted
from ..fitted import Fitted
from ..metrics import typing as of_types
from ..metrics.classifiers import LinearProbe, NearestLabels
from ..metrics.score import Score, as_embedding, ends
from ..metrics.space import log_cp10k, most_variable
from ..nn.augment import thinned
from ..trials.cluster import opened
from ..trials.trial import Result
from .embedded import Given, Method, embed_with, shallow
from .query import Split, log_expression, rows_at, with_fewer_counts

#: Both classifiers: their key, what they are called, and what they are.
CLASSIFIERS = {
    "knn": ("kNN", "the 11 nearest cells of the reference"),
    "linear": ("linear probe", "logistic regression on the embedding, or on genes"),
}
#: Scores of typing that are told at every depth.
AT_DEPTHS = ("f1", "accuracy")
#: Scores that a row is compared with the baseline by, the first that both have.
DECISIVE = {"typing": ("knn_shared_f1", "linear_shared_f1"), "missing": ("protein_r", "cell_r")}
#: Bootstrap resamples behind each interval.
DRAWS = 200
NEIGHBOURS = 11
#: Genes that logistic regression sees, and folds of the ceiling.
GENES, _FOLDS = 2000, 5

BOTH = "in typing it reads proteins beside RNA, and baselines read RNA alone"
_NO_COUNTS = "it embeds no other cells than those it was given for."


@runtime_checkable
class Classifier(Protocol):
    """A fitted classifier."""

    def judge(self, x: Any) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, " m"] | None]:
        """Return the probability of every type, and how new each cell looks."""
        ...


@dataclass(frozen=True, eq=False)
class Posed(Given):
    """What every trial is given beside what a bench of integration gives.

    `paired` are the reference and the query cells that have proteins, and `panel` the proteins that all of
    them have.
    """

    parts: Split = field(kw_only=True)
    depths: Sequence[float] = ()
    paired: tuple[np.ndarray, np.ndarray] | None = None
    panel: Sequence[int] = ()
    pictured: bool = False


@dataclass(frozen=True, eq=False)
class Embedded:
    """All cells under a method, and what can embed others."""

    x: Float[np.ndarray, "cells z"]
    state: State
    seconds: float
    fitted: Fitted | None = None

    def remarks(self, seed: int) -> list[str]:
        """Return what is to be known of what was learned."""
        return [f"{r} (seed {seed})" for r in self.fitted.module.remarks()] if self.fitted else []


def fit_and_embed(method: Method, given: Posed, seed: int) -> Embedded:
    """Learn from the reference alone, and embed all cells."""
    start = time.perf_counter()
    fitted = method.model
    if fitted is None:
        x, state = method.embed(given, seed)
        return Embedded(x, state, time.perf_counter() - start)
    if not isinstance(fitted, Fitted):
        fitted = fitted.fit(
            shallow(opened(given.data)), given.schema, seed=seed, rows=given.parts.fitted_on,
            run=given.run,
        )  # fmt: skip
    x, state = embed_with(fitted, given, seed)
    return Embedded(x, state, time.perf_counter() - start, fitted)


def both_sides(
    method: Method, found: Embedded, *sides: Int[np.ndarray, " _"]
) -> list[Float64[np.ndarray, "_ z"]]:
    """Return the coordinates of the reference and of the query, none of which may have collapsed."""
    return [
        as_embedding(found.x[rows], f"{method.name}, of the {name},")
        for name, rows in zip(("reference", "query"), sides, strict=True)
    ]


# typing


def judge_typing(method: Method, seed: int, given: Posed) -> Result:
    """Classify query cells by their place among those of the reference, at every depth."""
    found, parts = fit_and_embed(method, given, seed), given.parts
    codes = parts.codes[parts.reference]
    x, query = both_sides(method, found, parts.reference, parts.query)
    batches = given.named["batch"].to_numpy()[parts.reference]
    classifiers: dict[str, Classifier] = {
        "knn": NearestLabels.fit(x, codes, parts.n_known, k=NEIGHBOURS, groups=batches),
        "linear": LinearProbe.fit(x, codes, parts.n_known, groups=batches),
    }
    others = {
        depth: partial(_embed_thinned, found.fitted, given, seed, depth) for depth in given.depths
    }
    row = _typed(classifiers, query, others, given)
    row |= {"state": found.state, "seconds": found.seconds, "remarks": found.remarks(seed)}
    if found.fitted is not None and "protein" in found.fitted.spec.features:
        row["remarks"].append(BOTH)
    arrays = row.pop("arrays")
    return row, {**arrays, **picture(found.x, given)}


def judge_genes(seed: int, given: Posed) -> Result:
    """Classify query cells by logistic regression on the log-expression of the reference."""
    start, parts = time.perf_counter(), given.parts
    cells = Cells(opened(given.data), given.schema)
    probe = GeneProbe.fit(log_expression(cells, parts.reference), parts.codes[parts.reference])
    seconds = time.perf_counter() - start
    query = log_expression(cells, parts.query)
    others: dict[float, Callable[[], Any]] = {
        depth: partial(_thinned_expression, given, seed, depth) for depth in given.depths
    }
    row = _typed({"linear": probe}, query, others, given)
    row |= {"state": "rested", "seconds": seconds, "remarks": []}
    return row, row.pop("arrays")


def judge_within(seed: int, given: Posed) -> Result:
    """Classify query cells by other query cells: what labels of the query's own would allow.

    Raises
    ------
    CapabilityError
        If there are so few that their nearest ones are most of them.
    """
    start, parts = time.perf_counter(), given.parts
    x, truth = given.x_pca[parts.query], parts.codes[parts.query]
    if len(x) < 4 * NEIGHBOURS:
        raise CapabilityError(
            f"of {counted(len(x), 'query cell')} the {NEIGHBOURS} nearest are too many to tell one's type"
        )
    chances = np.zeros((len(x), len(parts.names)))
    for learned, held in KFold(_FOLDS, shuffle=True, random_state=seed).split(x):
        nearest = NearestLabels.fit(x[learned], truth[learned], len(parts.names), k=NEIGHBOURS)
        chances[held] = nearest.judge(x[held])[0]
    row = _told({"knn": (truth, chances, None)}, given)
    row |= {"state": "rested", "seconds": time.perf_counter() - start, "remarks": []}
    return row, row.pop("arrays")


@dataclass(frozen=True, eq=False)
class GeneProbe:
    """Multinomial logistic regression on the genes that vary most, each divided by its standard deviation.

    Nothing is centred, so that sparse rows stay sparse. Probabilities are as they come, and how new a cell
    looks is not said.
    """

    genes: Int[np.ndarray, " g"]
    scale: Float64[np.ndarray, " g"]
    regression: LogisticRegression

    @classmethod
    def fit(cls, x: sp.csr_matrix, codes: Int[np.ndarray, " n"]) -> GeneProbe:
        """Choose genes, and learn, from cells with a type."""
        genes = most_variable(x, GENES)
        x = x[:, genes].astype(np.float64)
        square, mean = (np.asarray(part.mean(0)).ravel() for part in (x.multiply(x), x))
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        scale = np.where(spread > 0, spread, 1)
        regression = LogisticRegression(max_iter=5000).fit(_divided(x, scale), codes)
        return cls(genes, scale, regression)

    def judge(self, x: sp.csr_matrix) -> tuple[Float[np.ndarray, "m c"], None]:
        """Return the probability of every type."""
        return self.regression.predict_proba(_divided(x[:, self.genes], self.scale)), None


def _divided(x: sp.csr_matrix, scale: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(x @ sp.diags_array(1 / scale))


def _typed(
    classifiers: Mapping[str, Classifier],
    query: Any,
    others: Mapping[float, Callable[[], Any]],
    given: Posed,
) -> dict[str, Any]:
    """Return all that is told of the query, and scores of the same cells at every depth."""
    truth = given.parts.codes[given.parts.query]
    row = _told({key: (truth, *c.judge(query)) for key, c in classifiers.items()}, given)
    for depth, embed in others.items():
        try:
            x = embed()
        except CapabilityError as error:
            row["scores"] += [
                _undefined(f"{key}_{name}_at_{depth:g}", str(error))
                for key in classifiers
                for name in AT_DEPTHS
            ]
            continue
        for key, classifier in classifiers.items():
            found = of_types.typing_scores(truth, classifier.judge(x)[0])
            at = {f"{key}_{name}_at_{depth:g}": found[name] for name in AT_DEPTHS}
            row["scores"] += scored(at)[0]
    return row


def _told(
    judged: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]], given: Posed
) -> dict[str, Any]:
    """Return scores, and tables of single types, of confusions and of calibration, by classifier."""
    row: dict[str, list] = {"scores": [], "by_class": [], "confusion": [], "calibration": []}
    arrays: dict[str, np.ndarray] = {}
    names, n_known = given.parts.names, given.parts.n_known
    for key, (truth, chances, novelty) in judged.items():
        scores = of_types.typing_scores(truth, chances, novelty, n_shared=n_known)
        rows, drawn = scored({f"{key}_{name}": score for name, score in scores.items()})
        row["scores"] += rows
        arrays |= {name: drawn[name] for name in DECISIVE["typing"] if name in drawn}
        said, shared = chances.argmax(1), truth < n_known
        for code, of in of_types.of_types(truth, said).iterrows():
            row["by_class"] += [
                {"class": names[int(code)], "metric": f"{key}_{name}", "value": float(of[name])}
                for name in ("f1", "precision", "recall")
            ]
        pairs = pd.DataFrame({"type": truth, "told": said}).value_counts(sort=False)
        row["confusion"] += [
            {"classifier": key, "type": names[a], "told": names[b], "cells": int(n)}
            for (a, b), n in pairs.items()
        ]
        row["by_class"] += [
            {"class": names[int(code)], "metric": f"{key}_shared_f1", "value": float(f1)}
            for code, f1 in of_types.of_types(truth[shared], said[shared])["f1"].items()
        ]
        curve = (
            of_types.calibration(truth[shared], chances[shared]) if shared.any() else pd.DataFrame()
        )
        row["calibration"] += [{"classifier": key, **one} for one in curve.to_dict("records")]
    return {**row, "arrays": arrays}


def _thinned(seed: int, depth: float, counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return counts of which each molecule was kept with the chance `depth`."""
    rows = SparseRows(
        torch.from_numpy(counts.indptr.astype(np.int64)),
        torch.from_numpy(counts.indices.astype(np.int64)),
        torch.from_numpy(counts.data.astype(np.float32)),
        counts.shape[1],
    )
    with Rng(seed).scope("thinning", round(1e6 * depth)):
        fewer = thinned(rows, torch.full((len(rows),), depth))
    made = counts.copy()  # whose places are dropped where nothing is left
    made.data = fewer.values.numpy()
    made.eliminate_zeros()
    return made


def _thinned_expression(given: Posed, seed: int, depth: float) -> sp.csr_matrix:
    cells = Cells(opened(given.data), given.schema)
    if "expression" in cells.places:
        raise CapabilityError("it reads log-expression, which cannot be thinned.")
    counts = sp.csr_matrix(rows_at(cells, "counts", given.parts.query))
    return log_cp10k(_thinned(seed, depth, counts))


def _embed_thinned(
    fitted: Fitted | None, given: Posed, seed: int, depth: float
) -> Float[np.ndarray, "m z"]:
    """Embed the query cells with fewer counts."""
    if fitted is None:
        raise CapabilityError(_NO_COUNTS)
    if not {*fitted.spec.features} <= {"counts", "protein"}:
        raise CapabilityError("it reads more than counts, which cannot be thinned.")
    cells = Cells(opened(given.data), given.schema)
    fewer = partial(_thinned, seed, depth)
    data, schema = with_fewer_counts(cells, given.parts.query, fewer)
    return as_embedding(fitted.embed(data, schema=schema, run=given.run), "the thinned query")


# rows of tables


def scored(
    scores: Mapping[str, Score],
) -> tuple[list[dict[str, Any]], dict[str, Float[np.ndarray, " draws"]]]:
    """Return rows of a table of scores, and their resamples, over the same cells for every method."""
    drawn = {key: score.draws(DRAWS) for key, score in scores.items()}
    rows = [
        _undefined(key, score.reason)
        if np.isnan(score.value)
        else {
            "metric": key, "value": float(score.value), "reason": "",
            **dict(zip(("low", "high"), ends(drawn[key], score.span), strict=True)),
        }
        for key, score in scores.items()
    ]  # fmt: skip
    return rows, drawn


def _undefined(metric: str, reason: str) -> dict[str, Any]:
    nan = float("nan")
    return {"metric": metric, "value": nan, "low": nan, "high": nan, "reason": reason}


def picture(x: np.ndarray, given: Posed) -> dict[str, np.ndarray]:
    """Return the coordinates that are drawn, if this task draws them."""
    return {"embedding": x[given.cells]} if given.pictured else {}
