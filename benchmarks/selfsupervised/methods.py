"""Every method on every task, with the same time for each fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import chreode as ch
from chreode import config
from chreode.version import code_hash

from ..common import Row, spread, still_improving
from ..speed.ratios import markdown
from .fits import budgeted
from .tasks import SEEDS, TASKS, development, prepare
from .tuned import TUNED

#: Rows that need no model of the caller.
CONTROLS = "controls"
#: ScCLIP needs two modalities.
PAIRED = ("ScCLIP",)


#: The models, by the names of their rows.
CLASSES: dict[str, Any] = {
    "scVI": ch.SCVI, "scVI, joint": ch.SCVI, "SimCLR": ch.SimCLR, "MoCo": ch.MoCo,
    "SimSiam": ch.SimSiam, "NNCLR": ch.NNCLR, "BYOL": ch.BYOL, "VICReg": ch.VICReg,
    "Barlow Twins": ch.BarlowTwins, "masked autoencoder": ch.MaskedAutoencoder, "CLEAR": ch.CLEAR,
    "CLAIRE": ch.CLAIRE, "Concerto": ch.Concerto, "ScCLIP": ch.ScCLIP,
}  # fmt: skip


def models() -> dict[str, Any]:
    """Return the models by the names of their rows, with the options that were chosen on other cells."""
    return {name: cls(**TUNED.get(name, {})) for name, cls in CLASSES.items()}


def cases() -> list[Row]:
    tasks = [task for task in TASKS if not development({"task": task})["development"]]
    return [
        {"task": task, "method": method, "seed": seed}
        for method in (CONTROLS, *models())
        for task in tasks
        for seed in SEEDS
        if method not in PAIRED or task == "midas"
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema, task = prepare(case["task"], data)
    batch = cells.obs[schema.batch.removeprefix("obs/")].astype(str)
    reference = np.flatnonzero(~batch.isin(task.held_out).to_numpy())
    methods, budget = {}, {}
    if case["method"] != CONTROLS:
        model = models()[case["method"]]
        where = schema.with_(protein=None) if "missing" in task.tasks else schema
        model, budget = budgeted(model, cells, where, reference, kept / "epochs")
        methods = {case["method"]: model}
    # a folder per task and seed: the rows beside the methods are judged once
    folder = kept / "bench" / code_hash() / f"{case['task']}-{case['seed']}"
    bench = ch.bench.probe(
        cells, schema, methods, held_out=task.held_out or None, tasks=task.tasks,
        seeds=(case["seed"],), into=folder, progress=False,
    )  # fmt: skip
    chosen = bench.methods["role"].eq("method") == bool(methods)
    return {
        **development(case), "data": bench.about["data"], "threads": bench.about["threads"], **budget,
        "config": config.as_dict(next(iter(methods.values()))) if methods else {},
        "methods": {name: _told(bench, name) for name in bench.methods.index[chosen]},
    }  # fmt: skip


def _told(bench: Any, name: str) -> Row:
    """Return what a row of the bench says: scores with their intervals, single classes, state and notes."""
    row = bench.methods.loc[name]
    scores = bench.scores[bench.scores["method"] == name].dropna(subset=["value"])
    classes = bench.by_class
    classes = classes[classes["method"] == name] if "method" in classes else classes
    return {
        "role": row["role"], "seconds": row["seconds"], "state": row["state"],
        "note": "; ".join(row["notes"]),
        "scores": {m: [round(v, 5), round(low, 5), round(high, 5)] for m, v, low, high in
                   scores[["metric", "value", "low", "high"]].itertuples(index=False)},
        "by_class": {} if classes.empty else {
            metric: of.set_index("class")["value"].round(4).to_dict()
            for metric, of in classes.groupby("metric")
        },
    }  # fmt: skip


# the table

#: Columns of each task: metric, its heading.
COLUMNS = {
    "correction": {"bio": "bio", "batch": "batch", "total": "total"},
    "typing": {
        "knn_shared_f1": "macro-F1, kNN", "linear_shared_f1": "macro-F1, linear",
        "knn_worst": "worst type", "knn_unseen_auroc": "unseen, AUROC", "knn_f1_at_0.1": "F1 at 10 %",
    },
    "missing": {
        "cell_r": "Pearson per cell", "protein_r": "Pearson per protein",
        "worst_protein": "worst protein",
    },
}  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return a table per task: raw scores, means over seeds with the lowest and the highest."""
    lines: list[str] = []
    for name, task in TASKS.items():
        here = [row for row in rows if row["case"]["task"] == name]
        if not here:
            continue
        lines += [f"### {name}", "", *_table(here, COLUMNS[task.tasks[0]]), ""]
    return lines


def _table(rows: list[Row], columns: dict[str, str]) -> list[str]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        for name, told in row["methods"].items():
            found.setdefault(name, []).append({**told, "epochs": row.get("epochs")})
    lines = []
    for name, of in found.items():
        values = [
            spread([row["scores"].get(metric, [np.nan])[0] for row in of]) for metric in columns
        ]
        notes = ["still improving"] if any(map(still_improving, of)) else []
        role = "" if of[0]["role"] == "method" else f" ({of[0]['role']})"
        lines.append((f"{name}{role}", *values, "; ".join(notes)))
    return markdown(("method", *columns.values(), "note"), lines)
