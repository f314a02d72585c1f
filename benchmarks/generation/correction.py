"""Batch effects taken out, of cells whose labels no method sees: PCA, Harmony, scVI, CFGen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import harmonypy
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA

import chreode as ch
from chreode.metrics.integration import integration_scores, summary
from chreode.metrics.space import Space, log_cp10k

from ..common import Row, folded
from ..speed.ratios import markdown
from .fits import fit
from .tasks import corrected, development, titled

TASKS = ("mop", "kang")
METHODS = ("PCA", "Harmony", "scVI", "scVI, last weights", "CFGen", "CFGen, not moved")
#: What the page calls them, and what is in its first table.
SAID = {"CFGen": "CFGen, moved to one batch", "CFGen, not moved": "CFGen"}
SHORT = ("bio", "batch", "total")


def cases() -> list[Row]:
    return [{"task": task, "method": m, "seed": 0} for task in TASKS for m in METHODS]


def measure(case: Row, data: Path, kept: Path) -> Row:
    """Embed all cells, and judge those that no method was fitted on and whose labels are hidden."""
    cells, train, test, yardstick = corrected(case["task"], data, case["seed"])
    labels, batches = (cells.obs[c].astype(str).to_numpy() for c in ("label", "batch"))
    hidden = cells.copy()
    hidden.obs["label"] = np.where(np.isin(np.arange(len(labels)), test), None, labels)
    z, told = _embedded(case["method"], hidden, train, case["seed"], kept)
    counts = sp.csr_matrix(cells.X)
    space = Space.of(counts[yardstick], n_genes=cells.n_vars, n_components=50)
    before = space.place(counts[test])
    scores = integration_scores(z[test], labels[test], batches[test], pre=before, seed=0)
    return {
        **development(case), **told, "cells": len(test),
        "scores": {k: v.value for k, v in {**scores, **summary(scores)}.items()},
    }  # fmt: skip


def _embedded(
    method: str, cells: anndata.AnnData, train: np.ndarray, seed: int, kept: Path
) -> tuple[np.ndarray, Row]:
    if method in ("PCA", "Harmony"):
        x = log_cp10k(sp.csr_matrix(cells.X)).toarray()
        z = PCA(50, random_state=seed).fit(x[train]).transform(x)
        if method == "Harmony":
            table = cells.obs[["batch"]].astype(str)
            fixed = harmonypy.run_harmony(z, table, "batch", random_state=seed, verbose=False)
            z = np.asarray(fixed.Z_corr)
            z = z if len(z) == cells.n_obs else z.T
        return z, {}
    schema = ch.Schema(counts="X", batch="obs/batch")
    if method.startswith("scVI"):
        model = ch.SCVI() if method == "scVI" else ch.SCVI(keep="last")
        fitted, told = fit(model, cells, schema, train, seed, kept / "fits")
        return fitted.embed(cells, progress=False), told
    schema = schema.with_(label="obs/label")
    fitted, told = fit(ch.CFGen(), cells, schema, train, seed, kept / "fits")
    to: Any = None if method == "CFGen, not moved" else {"batch": _largest(cells.obs["batch"])}
    return fitted.embed(cells, to=to, progress=False), told


def _largest(batch: pd.Series) -> str:
    return str(batch.value_counts().index[0])


def render(rows: list[Row]) -> list[str]:
    """Return the sums of the scores, the highest total of each data set in bold; all scores are folded."""
    keys = list(rows[0]["scores"])
    best = {
        task: max(row["scores"]["total"] for row in rows if row["case"]["task"] == task)
        for task in dict.fromkeys(row["case"]["task"] for row in rows)
    }
    short, full = [], []
    for row in rows:
        task, method, scores = row["case"]["task"], row["case"]["method"], row["scores"]
        who = (titled(task), SAID.get(method, method))
        full.append((*who, *(f"{scores[k]:.3f}" for k in keys)))
        cells = [f"{scores[k]:.3f}" for k in SHORT]
        if scores["total"] == best[task]:
            cells[-1] = f"**{cells[-1]}**"
        short.append((*who, *cells))
    return [
        *markdown(("data", "embedding", *SHORT), short),
        "",
        *folded("All scores", markdown(("data", "embedding", *keys), full)),
    ]
