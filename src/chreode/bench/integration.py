"""Does an embedding keep cell types apart and mix batches? Against PCA, Harmony and a ceiling."""

from __future__ import annotations

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float

from .. import __version__, read
from ..check import as_category
from ..errors import CapabilityError, DataError, FitError, SchemaError, near
from ..fitted import Fitted
from ..learn.phase import bar
from ..metrics.clustering import require_igraph
from ..metrics.integration import METRICS, integration_scores, weights
from ..metrics.score import Score
from ..model import Model
from ..models.pca import PCA
from ..read import Data
from ..schema import Schema
from .table import Bench

#: Rows of the table beside the ones asked for: two baselines and a ceiling.
BASELINE, HARMONY, CEILING = "PCA", "Harmony", "label oracle"
#: Averages of the metrics.
_TOTALS = {
    "bio": "mean of the bio metrics, raw",
    "batch": "mean of the batch metrics, raw",
    "total": "0.6 bio + 0.4 batch",
}
#: Bootstrap resamples behind each interval.
DRAWS = 200


@dataclass
class _Row:
    """One method: how to embed the cells under a seed; `ready` where that costs nothing."""

    name: str
    role: str
    embed: Callable[[int], Float[np.ndarray, "cells z"]]
    seeds: Sequence[int]
    note: str = ""
    ready: bool = False
    converged: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def integration(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[str | Model | Fitted],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Any = None,
    metrics: Sequence[str] | None = None,
    progress: bool | None = None,
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
        own seed), or models to be fitted here, once per seed.
    seeds
        Seeds of fits and of clusterings.
    rows
        Cells to score (default: all). Models are fitted on all cells, as integration is used.
    metrics
        Keys of `chreode.metrics.integration.METRICS` (default: all).

    Returns
    -------
    Bench
        Raw scores with bootstrap intervals; PCA and Harmony as baselines; a label oracle (one-hot
        labels with a little noise) as what these labels and batches allow at best.

    Raises
    ------
    SchemaError
        If `batch` or `label` is not named, or a key is not in ``obsm``.
    CapabilityError
        If a metric of Leiden clusters is wanted and igraph is not installed.
    """
    data = read.read(data)
    named = {role: _category(data, schema, role) for role in ("label", "batch")}
    if any(key.endswith("leiden") for key in _metric_table(metrics).index):
        require_igraph()
    embed = _fit_and_embed(PCA(n_latent=min(50, data.n_obs - 2)), data, schema, progress)
    x_pca = embed(seeds[0])
    table = [
        _Row(BASELINE, "baseline", lambda _: x_pca, seeds[:1], ready=True),
        _harmony(x_pca, named["batch"], seeds),
        *(_row(m, data, schema, seeds, progress) for m in methods),
        _Row(CEILING, "ceiling", lambda seed: _oracle(named["label"], seed), seeds[:1]),
    ]
    _name_apart(table)
    cells = _everywhere(read.positions(data, rows), [r.embed(0) for r in table if r.ready])
    label, batch = (named[r].to_numpy()[cells] for r in ("label", "batch"))
    found: list[dict[str, Any]] = []
    pictures: dict[str, np.ndarray] = {}
    draws: dict[str, list[np.ndarray]] = {}
    told = _metric_table(metrics)
    steps = sum(len(r.seeds) for r in table) * (len(told) - len(_TOTALS))
    with bar(steps, "judge", progress) as shown:
        for row, seed in ((r, s) for r in table for s in r.seeds):
            shown.set_postfix_str(row.name)
            start = time.perf_counter()
            try:
                x = row.embed(seed)[cells]
                row.seconds.append(time.perf_counter() - start)
                scores = integration_scores(
                    x, label, batch, pre=x_pca[cells], seed=seed, metrics=metrics,
                    progress=lambda _: shown.update(),
                )  # fmt: skip
                drawn = _draws(scores)
            except (CapabilityError, DataError, FitError) as error:  # a failure is a row, not a gap
                row.note = f"failed: {error}"
                continue
            pictures.setdefault(row.name, x)
            found += [_scored(row.name, seed, key, drawn[key], scores) for key in told.index]
            draws.setdefault(row.name, []).append(drawn["total"])
    totals = {name: np.mean(of_seeds, axis=0) for name, of_seeds in draws.items()}
    return Bench(
        kind="integration",
        scores=pd.DataFrame(found),
        methods=pd.DataFrame([_summary(r, totals) for r in table]).set_index("method"),
        metrics=told,
        about=_about(data, schema, cells, named),
        embeddings=pictures,
        labels={role: values.iloc[cells] for role, values in named.items()},
    )


def _name_apart(table: list[_Row]) -> None:
    """Number the methods of one name: two configurations of a model, or two fits."""
    met: Counter[str] = Counter()
    for row in table:
        met[row.name] += 1
        if met[row.name] > 1:
            row.name = f"{row.name} ({met[row.name]})"


def _everywhere(cells: np.ndarray, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Return the cells that every embedding places: some may lack the modality it is made of."""
    placed = np.all([np.isfinite(x).all(1) for x in embeddings], axis=0)
    return cells[placed[cells]]


def _row(
    method: str | Model | Fitted,
    data: Data,
    schema: Schema,
    seeds: Sequence[int],
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> _Row:
    if isinstance(method, str):
        key = next((k for k in (method, f"X_{method}") if k in data.obsm), None)
        if key is None:
            raise SchemaError(f"There is no obsm[{method!r}].{near(method, data.obsm)}")
        values = np.asarray(data.obsm[key], np.float32)
        said = "one seed: a ready-made embedding"
        return _Row(key, "method", lambda _: values, seeds[:1], said, ready=True)
    if isinstance(method, Fitted):
        fitted = method
        row = _Row(
            type(fitted.model).__name__,
            "method",
            lambda _: fitted.embed(_shallow(data), progress=progress),
            [fitted.provenance["seed"]],
            "one seed: a fitted model",
        )
        row.converged.append(bool(fitted.provenance["converged"]))
        return row
    row = _Row(type(method).__name__, "method", lambda _: np.empty((0, 0)), seeds)
    row.embed = _fit_and_embed(method, data, schema, progress, row.converged)
    return row


def _fit_and_embed(
    model: Model,
    data: Data,
    schema: Schema,
    progress: bool | None,  # noqa: FBT001 (tri-state)
    converged: list[bool] | None = None,
) -> Callable[[int], Float[np.ndarray, "cells z"]]:
    def embed(seed: int) -> Float[np.ndarray, "cells z"]:
        fitted = model.fit(data, schema, seed=seed, progress=progress)
        if converged is not None:
            converged.append(bool(fitted.provenance["converged"]))
        return fitted.embed(_shallow(data), progress=progress)

    return embed


def _harmony(x: Float[np.ndarray, "cells z"], batch: pd.Series, seeds: Sequence[int]) -> _Row:
    def embed(seed: int) -> Float[np.ndarray, "cells z"]:
        try:
            import harmonypy
        except ImportError as error:
            raise CapabilityError(
                "harmonypy is not installed, pip install 'chreode[bench]'"
            ) from error
        if batch.nunique() < 2:
            raise CapabilityError("there is one batch only")
        kept = np.isfinite(x).all(1)
        table = pd.DataFrame({"batch": batch[kept].to_numpy()})
        fixed = harmonypy.run_harmony(x[kept], table, "batch", random_state=seed, verbose=False)
        out = np.full_like(x, np.nan)
        corrected = np.asarray(fixed.Z_corr, np.float32)
        out[kept] = corrected if corrected.shape == x[kept].shape else corrected.T
        return out

    return _Row(HARMONY, "baseline", embed, seeds)


def _oracle(label: pd.Series, seed: int) -> Float[np.ndarray, "cells z"]:
    codes = pd.factorize(label)[0]
    hot = np.eye(codes.max() + 1, dtype=np.float32)[np.maximum(codes, 0)]
    noise = np.random.default_rng(seed).normal(scale=0.1, size=hot.shape)
    return hot + noise.astype(np.float32)


def _draws(scores: Mapping[str, Score]) -> dict[str, Float[np.ndarray, " draws"]]:
    """Return resamples of every metric and of the totals, over the same cells; NaN where undefined."""
    drawn = {key: score.draws(DRAWS) for key, score in scores.items()}
    shares = weights(key for key, score in scores.items() if not score.reason)
    for name in _TOTALS:
        parts = [w * drawn[key] for key, w in shares.get(name, {}).items()]
        drawn[name] = np.sum(parts, axis=0) if parts else np.full(DRAWS, np.nan)
    return drawn


def _scored(
    method: str,
    seed: int,
    metric: str,
    draws: Float[np.ndarray, " draws"],
    scores: Mapping[str, Score],
) -> dict[str, Any]:
    """Return one row of the table; draws are centred, so their mean is the value."""
    defined = bool(np.isfinite(draws).any())
    mean = float(np.nanmean(draws)) if defined else np.nan
    value = scores[metric].value if metric in scores else mean
    low, high = np.nanquantile(draws, [0.025, 0.975]) if defined else (np.nan, np.nan)
    return {
        "method": method, "seed": seed, "metric": metric,
        "value": value,
        "low": float(low), "high": float(high),
        "reason": scores[metric].reason if metric in scores else "",
    }  # fmt: skip


def _summary(row: _Row, draws: dict[str, np.ndarray]) -> dict[str, Any]:
    notes = [row.note] if row.note else []
    if row.role == "method" and row.name in draws:
        # paired: both totals are over the same resamples of cells
        better = draws[row.name] - draws[BASELINE]
        if np.isfinite(better).any() and np.nanquantile(better, 0.025) <= 0:
            notes.append(f"not better than {BASELINE}")
        if not all(row.converged):
            notes.append("unconverged")
    return {
        "method": row.name, "role": row.role, "seeds": len(row.seconds),
        "converged": all(row.converged), "seconds": float(np.mean(row.seconds or [np.nan])),
        "note": "; ".join(notes),
    }  # fmt: skip


def _metric_table(metrics: Sequence[str] | None) -> pd.DataFrame:
    rows: Iterator[Any] = (m for m in METRICS if metrics is None or m.key in metrics)
    table = [
        {"metric": m.key, "name": m.name, "group": m.kind, "best": m.best, "about": m.description}
        for m in rows
    ]
    for key, said in _TOTALS.items():
        table.append({"metric": key, "name": key, "group": "total", "best": 1.0, "about": said})
    return pd.DataFrame(table).set_index("metric")


def _category(data: Data, schema: Schema, role: str) -> pd.Series:
    if getattr(schema, role) is None:
        raise SchemaError(f"bench.integration needs {role}: Schema({role}='obs/…').")
    place = dict(schema.places())[role]
    return as_category(read.column(data, place, role), schema.missing)


def _shallow(data: Data) -> Data:
    """Return the same cells in a new object, so that a verb writes nothing to the user's."""
    if isinstance(data, anndata.AnnData):
        return anndata.AnnData(
            data.X, obs=data.obs, var=data.var, layers=dict(data.layers), obsm=dict(data.obsm),
            raw=data.raw,
        )  # fmt: skip
    return data.copy()


def _about(
    data: Data, schema: Schema, cells: np.ndarray, named: dict[str, pd.Series]
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(map(str, data.obs_names[cells])).encode())
    for role, place in schema.places():
        if role.partition("/")[0] in ("counts", "expression"):
            values = read.matrix(data, place, role)[0]
            digest.update(np.asarray(values.data if sp.issparse(values) else values).tobytes())
    return {
        "data": digest.hexdigest()[:16], "cells": len(cells), "schema": schema.as_dict(),
        "labels": int(named["label"].iloc[cells].nunique()),
        "batches": int(named["batch"].iloc[cells].nunique()),
        "unlabelled": int(named["label"].iloc[cells].isna().sum()),
        "chreode": __version__, "torch": torch.__version__, "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
