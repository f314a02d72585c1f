"""Fits of half a minute: as many steps as go into them, by a short fit on the same series."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

import chreode as ch
from chreode.bench.ledger import digest, fingerprint
from chreode.models.neuralode import EVERY, Penalised

from ..common import ROOT, Row

#: Wall clock of a fit.
SECONDS = 30.0
#: Shares of it: slopes (under all strengths together), pieces, whole paths.
DENSE, SPARSE = (0.2, 0.4, 0.4), (0.5, 0.25, 0.25)
METHODS: dict[str, Any] = {
    "NODE": ch.NeuralODE(),
    "NODE, exact starts": ch.NeuralODE(jitter=0.0),
    "SONODE": ch.SecondOrderNODE(),
    "L1": ch.L1(),
    "C-NODE": ch.CNODE(),
    "L0": ch.L0(),
    "group lasso": ch.GroupLasso(),
    "LassoNet": ch.LassoNet(),
    "magnitude pruning": ch.MagnitudePruning(),
    # strengths per input: those of the default, times about as many as there are; steps of the solver are
    # fixed, since none that adapts gets through a field that is drawn anew at every evaluation in time
    "PathReg, as published": ch.PathReg(
        variant="published", strengths=(0.01, 0.03, 0.1, 0.3, 1.0), solver="rk4"
    ),
    "PathReg": ch.PathReg(),
}


def budgeted(model: Any, data: Any, schema: ch.Schema, rows: Any) -> tuple[Any, Row]:
    """Return the model with the steps that fit, at most its own, and what a short fit said of their cost."""
    names = ("match_steps", "piece_steps", "path_steps")
    sparse = isinstance(model, Penalised)
    few = {**dict.fromkeys(names, EVERY), **({"strength": model.strengths[-1]} if sparse else {})}
    history = (
        dataclasses.replace(model, **few)
        .fit(data, schema, rows=rows, seed=0, progress=False)
        .history
    )
    cost = history[history["phase"] != "strengths"].groupby("phase", sort=False)["seconds"].sum()
    times = (len(model.strengths) + 1 if sparse else 1, 1, 1)
    steps = {
        name: max(1, min(getattr(model, name), int(SECONDS * share / repeats * EVERY / seconds)))
        for name, share, repeats, seconds in zip(
            names, SPARSE if sparse else DENSE, times, cost, strict=True
        )
    }
    return dataclasses.replace(model, **steps), {"steps": list(steps.values())}


def judge(
    method: str,
    data: Any,
    schema: ch.Schema,
    kept: Path,
    *,
    seed: int,
    held_out: pd.Series,
    **about: Any,
) -> Row:
    """Return the row of a method, or of all baselines where it is "baselines"."""
    models, told = [], {}
    if method != "baselines":
        model, told = budgeted(METHODS[method], data, schema, (~held_out).to_numpy())
        models = [model]
    # a folder per data set: baselines are judged once
    sources = sorted((ROOT / "src").rglob("*.py"))
    code = digest([file.read_text(encoding="utf-8") for file in sources])
    folder = kept / code[:12] / fingerprint(data, schema)
    bench = ch.bench.dynamics(
        data, schema, models, seeds=(seed,), into=folder, progress=False, **about
    )
    chosen = bench.methods["role"].eq("method") == bool(models)
    names = bench.methods.index[chosen]
    return {
        "data": bench.about["data"], "threads": bench.about["threads"], **told,
        "methods": {
            method if models else name: {
                "seconds": bench.methods.loc[name, "seconds"],
                "state": bench.methods.loc[name, "state"],
                "scores": _of(bench.scores, name, "metric"),
                "series": _of(bench.by_class.assign(
                    key=bench.by_class["metric"] + ", " + bench.by_class["class"]
                ), name, "key"),
            }
            for name in names
        },
        "curve": bench.curves.drop(columns=["method", "seed"], errors="ignore").to_dict("records"),
    }  # fmt: skip


def _of(table: pd.DataFrame, method: str, key: str) -> dict[str, float]:
    mine = table[table["method"] == method]
    return dict(zip(mine[key], map(float, mine["value"]), strict=True))
