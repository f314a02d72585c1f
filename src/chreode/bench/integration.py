"""Does an embedding keep cell types apart and mix batches? Against PCA, Harmony and a ceiling."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ..compute.convergence import DOUBTFUL, worst
from ..compute.progress import bar
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import SchemaError
from ..fitted import Fitted
from ..metrics.clustering import require_igraph
from ..metrics.integration import UNDEFINED, chosen, integration_scores, weights
from ..metrics.score import Score, ends, spanned
from ..metrics.table import BASELINE
from ..model import Model
from ..registry import find
from ..run import Run
from ..schema import Schema
from ..trials.cluster import portable
from ..trials.digest import digest, provenance
from ..trials.runner import require_one, require_seeds, run_of_trials, running
from ..trials.trial import Outcome, Result, Trial
from .embedded import Embed, Given, Method, ready, rows_of, shallow
from .sizes import cell_counts
from .table import Bench

#: Averages of the metrics.
_TOTALS = {
    "bio": "mean of the bio metrics, raw",
    "batch": "mean of the batch metrics, raw",
    "total": "0.6 bio + 0.4 batch",
}
#: Bootstrap resamples behind each interval.
DRAWS = 200


@settled()
@checked
def integration(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[str | Model | Fitted] | Mapping[str, str | Model | Fitted],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Any = None,
    metrics: Sequence[str] | None = None,
    into: str | Path | None = None,
    ray: bool | int = False,
    run: Run = Run(),
    **settings: Any,
) -> Bench:
    """Score embeddings of the same cells by conservation of labels and mixing of batches.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `batch`, `label`, and what the methods need.
    methods
        Keys of ``obsm`` (``"X_scvi"`` or ``"scvi"``; one seed, and marked so), fitted models (their
        own seed), or models to be fitted here, once per seed. A fitted model reads roles where `schema`
        names them, and others where its fit did; so too its batch and label, where these are there.
        The keys of a mapping are the names of the rows. A PCA like the baseline is that row.
    seeds
        Seeds of fits and of clusterings.
    rows
        Cells to score (default: all). Models are fitted on all cells, as integration is used.
    metrics
        Keys of `chreode.metrics.integration.METRICS` (default: all).
    into
        Folder that keeps the result of every method and seed as it comes. The same call goes on where
        it was cut off; what failed is tried again, and methods and seeds can be added.
    ray
        Run methods and seeds side by side on Ray: on the cluster of RAY_ADDRESS, or on the cores of
        this machine. A number is the threads of each (True: one); on as many threads, the scores are
        those of a run without Ray. Workers open a path themselves.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    Bench
        Raw scores with bootstrap intervals; PCA and Harmony as baselines; a label oracle (one-hot
        labels with a little noise; cells without a label apart from all others) as what these labels and
        batches allow at best. A method that fails is a row that says why.

    Raises
    ------
    SchemaError
        If `batch` or `label` is not named, or a key is not in ``obsm``.
    ConfigError
        If there is no metric of a name, or no seed.
    DataError
        If every method failed; it says why.
    CapabilityError
        If a metric of Leiden clusters is wanted and igraph is not installed, or Ray and it is not.
    StoreError
        If `into` holds results of other data, settings or versions.
    KeyboardInterrupt
        At Ctrl-C, which ends everything at once; it says what is kept.
    """
    seeds = require_seeds(seeds)
    sent = portable(data) if ray else None
    run, cells = run_of_trials(run, settings), Cells.of(data, schema)
    named = {role: _category(cells, role) for role in ("label", "batch")}
    wanted = _metric_table(metrics)
    if any(key.endswith("leiden") for key in wanted.index):
        require_igraph()
    with pinned(int(ray) or run.threads or torch.get_num_threads()):
        pca = find("pca")(n_latent=_components(cells))
        x_pca = pca.fit(cells.data, schema, seed=seeds[0], run=run).embed(shallow(cells.data))
        table = rows_of(cells, methods, seeds, pca)
        wanted_cells = cells.positions(rows)
        scored = _everywhere(wanted_cells, [x_pca, *ready(cells, table)])
        left = named["batch"].iloc[np.setdiff1d(wanted_cells, scored)].value_counts()
        about = {
            **provenance(cells), **_sizes(named, scored), "rows": digest(scored),
            "not placed": {str(batch): int(n) for batch, n in left.items() if n},
            "metrics": [*wanted.index], "draws": DRAWS, "components of PCA": pca.n_latent,
        }  # fmt: skip
        given = Given(
            cells.data if sent is None else sent, schema, named, x_pca, scored, metrics, DRAWS, run
        )
        trials = [
            Trial(f"{m.name}, seed {s}", partial(_judge, m.embed, s), {**m.about, "seed": s})
            for m in table
            for s in m.seeds
        ]
        with (
            bar(len(trials), "judge", run.progress) as shown,
            running(given, about, into=into, ray=ray) as runner,
        ):
            found = runner.run(trials, shown)
    require_one(trials, found)
    return Bench(
        kind="integration",
        metrics=wanted,
        about=about,
        labels={role: values.iloc[scored] for role, values in named.items()},
        sizes=cell_counts(cells, scored),
        **_tables(table, found),
    )


def _tables(table: Sequence[Method], found: Iterable[Outcome]) -> dict[str, Any]:
    """Return scores, a row per method, and the embedding of the first seed of each that did not fail."""
    following = iter(found)
    outcomes = {method.name: {seed: next(following) for seed in method.seeds} for method in table}
    done = [(n, s, o) for n, of in outcomes.items() for s, o in of.items() if not o.failed]
    totals = {
        name: {k: np.mean([o.arrays[k] for n, _, o in done if n == name], axis=0) for k in _TOTALS}
        for name in {name for name, _, _ in done}
    }
    pictures: dict[str, np.ndarray] = {}
    for name, _, outcome in done:
        pictures.setdefault(name, outcome.arrays["embedding"])
    scores = [{"method": n, "seed": s, **score} for n, s, o in done for score in o.row["scores"]]
    methods = [_summary(method, outcomes[method.name].values(), totals) for method in table]
    return {
        "scores": pd.DataFrame(scores),
        "methods": pd.DataFrame(methods).set_index("method"),
        "embeddings": pictures,
    }


def _components(cells: Cells) -> int:
    """Return how many principal components the baseline has: 50, or as many as there can be."""
    role = "expression" if "expression" in cells.places else "counts"
    if role not in cells.places:
        return 50  # the fit, which follows, says what is lacking
    n, features = cells.matrix(role).matrix.shape
    return max(1, min(50, n - 2, features))


def _everywhere(cells: np.ndarray, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Return the cells that every embedding places: some may lack the modality it is made of."""
    placed = np.all([np.isfinite(x).all(1) for x in embeddings], axis=0)
    return cells[placed[cells]]


def _judge(embed: Embed, seed: int, given: Given) -> Result:
    """Embed the cells and score them; the arrays are for pictures and for notes on the totals."""
    start = time.perf_counter()
    x, state = embed(given, seed)
    x, seconds = x[given.cells], time.perf_counter() - start
    label, batch = (given.named[role].to_numpy()[given.cells] for role in ("label", "batch"))
    scores = integration_scores(
        x, label, batch, pre=given.x_pca[given.cells], seed=seed, metrics=given.metrics
    )
    drawn = _draws(scores, given.draws)
    spans = _spans(scores)
    rows = [_scored(k, drawn[k], spans[k], scores) for k in _metric_table(given.metrics).index]
    row = {"scores": rows, "state": state, "seconds": seconds}
    return row, {"embedding": x, **{name: drawn[name] for name in _TOTALS}}


def _draws(scores: Mapping[str, Score], n: int) -> dict[str, Float[np.ndarray, " draws"]]:
    """Return resamples of every metric and of the totals, over the same cells; NaN where undefined."""
    drawn = {key: score.draws(n) for key, score in scores.items()}
    shares = weights(key for key, score in scores.items() if not score.reason)
    for name in _TOTALS:
        parts = [w * drawn[key] for key, w in shares.get(name, {}).items()]
        drawn[name] = np.sum(parts, axis=0) if parts else np.full(n, np.nan)
    return drawn


def _spans(scores: Mapping[str, Score]) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest value that each metric and total can have."""
    spans = {key: score.span for key, score in scores.items()}
    shares = weights(key for key, score in scores.items() if not score.reason)
    for name in _TOTALS:
        spans[name] = spanned([(w, spans[key]) for key, w in shares.get(name, {}).items()])
    return spans


def _scored(
    metric: str,
    draws: Float[np.ndarray, " draws"],
    span: tuple[float, float],
    scores: Mapping[str, Score],
) -> dict[str, Any]:
    """Return one row of the table; draws are centred, so their mean is the value."""
    defined = bool(np.isfinite(draws).any())
    mean = float(np.nanmean(draws)) if defined else np.nan
    value = scores[metric].value if metric in scores else mean
    low, high = ends(draws, span) if defined else (np.nan, np.nan)
    return {
        "metric": metric, "value": float(value), "low": low, "high": high,
        "reason": scores[metric].reason if metric in scores else "" if defined else UNDEFINED[metric],
    }  # fmt: skip


def _summary(
    method: Method, outcomes: Collection[Outcome], totals: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Return the row of a method, with notes on what it failed of and on whether it beats the baseline."""
    done = [outcome for outcome in outcomes if not outcome.failed]
    state = worst(outcome.row["state"] for outcome in done)
    notes = [method.note] if method.note else []
    notes += dict.fromkeys(outcome.note for outcome in outcomes if outcome.failed)
    if method.role == "method" and done:
        # paired: both are over the same resamples of cells; without a total (one batch), by what there is
        both = totals[method.name], totals.get(BASELINE, {})
        paired = (both[0][k] - both[1].get(k, np.nan) for k in ("total", "bio", "batch"))
        better = next((apart for apart in paired if np.isfinite(apart).any()), None)
        if better is not None and np.nanquantile(better, 0.025) <= 0:
            notes.append(f"not better than {BASELINE}")
        if state in DOUBTFUL:
            notes.append(state)
    return {
        "method": method.name, "role": method.role, "seeds": len(done), "state": state,
        "seconds": float(np.mean([outcome.row["seconds"] for outcome in done] or [np.nan])),
        "notes": notes,
    }  # fmt: skip


def _metric_table(metrics: Sequence[str] | None) -> pd.DataFrame:
    table: list[dict[str, Any]] = [
        {"metric": m.key, "name": m.name, "group": m.kind, "best": m.best, "about": m.description}
        for m in chosen(metrics)
    ]
    for key, meaning in _TOTALS.items():
        table.append({"metric": key, "name": key, "group": "total", "best": 1.0, "about": meaning})
    return pd.DataFrame(table).set_index("metric")


def _category(cells: Cells, role: str) -> pd.Series:
    if getattr(cells.schema, role) is None:
        raise SchemaError(f"bench.integration needs {role}: Schema({role}='obs/…').")
    return cells.categories(role)


def _sizes(named: Mapping[str, pd.Series], cells: np.ndarray) -> dict[str, int]:
    label, batch = named["label"].iloc[cells], named["batch"].iloc[cells]
    return {
        "cells": len(cells), "labels": int(label.nunique()), "batches": int(batch.nunique()),
        "unlabelled": int(label.isna().sum()),
    }  # fmt: skip
