"""Fits with the steps that they need to come to rest, and who does not get them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import chreode as ch
from chreode.data.cells import Cells
from chreode.models.neuralode import EVERY, Penalised
from chreode.trials.digest import fingerprint
from chreode.version import code_hash

from ..common import Row, Stopwatch

#: What one fit may take of one core. Steps are a model's own, and doubled for as long as it still improves
#: and twice the time of the last fit is within this; one that improves even then is left out, and named.
SECONDS = 120.0
STAGES = ("match_steps", "piece_steps", "path_steps")
METHODS: dict[str, Any] = {
    "NODE": ch.NeuralODE(),
    "NODE, exact starts": ch.NeuralODE(jitter=0.0),
    # of blood the analog chooses two components inside the donor that is learned from
    "lineage NODE": ch.LineageNODE(n_components=2),
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


def expected_seconds(model: Any, data: Any, schema: ch.Schema, rows: Any) -> float:
    """Return how long a fit takes, by a short one on the same series."""
    sparse = isinstance(model, Penalised)
    few = {**dict.fromkeys(STAGES, EVERY), **({"strength": model.strengths[-1]} if sparse else {})}
    short = dataclasses.replace(model, **few)
    with Stopwatch() as watch:
        history = short.fit(data, schema, rows=rows, seed=0, progress=False).history
    cost = history[history["phase"] != "strengths"].groupby("phase", sort=False)["seconds"].sum()
    times = (len(model.strengths) + 1 if sparse else 1, 1, 1)
    steps = [getattr(model, stage) * n for stage, n in zip(STAGES, times, strict=True)]
    return watch.own() * sum(n / EVERY * seconds for n, seconds in zip(steps, cost, strict=True))


def at_rest(model: Any, judged: Callable[[Any], ch.bench.Bench]) -> tuple[Any, ch.bench.Bench]:
    """Return the model with the steps that bring it to rest, if they are within the time, and its bench."""
    while True:
        with Stopwatch() as watch:
            bench = judged(model)
        row = bench.methods[bench.methods["role"].eq("method")].iloc[0]
        if row["state"] != "still improving" or 2 * row["seconds"] * watch.own() > SECONDS:
            return model, bench
        model = dataclasses.replace(model, **{stage: 2 * getattr(model, stage) for stage in STAGES})


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
    # a folder per data set: baselines are judged once
    folder = kept / code_hash()[:12] / fingerprint(Cells(data, schema))
    judged = partial(
        ch.bench.dynamics, data, schema, seeds=(seed,), into=folder, progress=False, **about
    )
    told: Row = {}
    models = method != "baselines"
    if not models:
        bench = judged([])
    else:
        model, rows = METHODS[method], (~held_out).to_numpy()
        needed = expected_seconds(model, data, schema, rows)
        if needed > SECONDS:
            return {"methods": {}, "left_out": {method: f"its own steps take about {needed:.0f} s"}}
        model, bench = at_rest(model, lambda model: judged([model]))
        told["steps"] = [getattr(model, stage) for stage in STAGES]
    chosen = bench.methods["role"].eq("method") == models
    names = bench.methods.index[chosen]
    return {
        "data": bench.about["data"], "threads": bench.about["threads"], **told,
        "methods": {
            method if models else name: {
                "seconds": bench.methods.loc[name, "seconds"],
                "state": bench.methods.loc[name, "state"],
                "note": "; ".join(bench.methods.loc[name, "notes"]),
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
