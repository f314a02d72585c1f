"""Options of every method, tried on the stimulated cells of Kang: as many, for the same time, for all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import chreode as ch
from chreode import config
from chreode.version import code_hash

from ..common import Row
from ..speed.ratios import markdown
from .fits import budgeted
from .tasks import DEVELOPMENT, development, prepare

#: The models, by the names of their rows.
CLASSES: dict[str, Any] = {
    "scVI": ch.SCVI, "scVI, joint": ch.SCVI, "SimCLR": ch.SimCLR, "MoCo": ch.MoCo,
    "SimSiam": ch.SimSiam, "NNCLR": ch.NNCLR, "BYOL": ch.BYOL, "VICReg": ch.VICReg,
    "Barlow Twins": ch.BarlowTwins, "masked autoencoder": ch.MaskedAutoencoder, "CLEAR": ch.CLEAR,
    "CLAIRE": ch.CLAIRE, "Concerto": ch.Concerto, "ScCLIP": ch.ScCLIP,
}  # fmt: skip
#: Another seed than those of the tables.
SEED = 5
_VIEWS: list[dict[str, Any]] = [
    {"augment": ["mask"], "mask": 0.2}, {"augment": ["mask", "bbknn"], "mask": 0.2},
]  # fmt: skip


def _with_views(*own: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**views, **options} for views in _VIEWS for options in own]


_TEMPERATURE = {"temperature": 0.5}, {"temperature": 0.2}
_RATE = {"lr": 1e-3}, {"lr": 3e-4}
#: Four sets of options for each method.
GRID: dict[str, list[dict[str, Any]]] = {
    "scVI": [{}, {"n_latent": 30}, {"n_layers": 2}, {"dispersion": "gene-batch"}],
    "scVI, joint": [{"joint": weight, "n_latent": n} for weight in (1.0, 10.0) for n in (10, 30)],
    "SimCLR": _with_views(*_TEMPERATURE),
    "MoCo": _with_views(*_TEMPERATURE),
    "SimSiam": _with_views(*_RATE),
    "NNCLR": _with_views(*_TEMPERATURE),
    "BYOL": _with_views({"momentum": 0.996}, {"momentum": 0.95}),
    "VICReg": _with_views(*_RATE),
    "Barlow Twins": _with_views({"redundancy": 5e-3}, {"redundancy": 5e-2}),
    "masked autoencoder": [
        *({"mask": share} for share in (0.25, 0.5, 0.75)), {"mask": 0.5, "n_latent": 16},
    ],
    "CLEAR": [{"temperature": t, "momentum": m} for t in (0.2, 0.5) for m in (0.999, 0.95)],
    "CLAIRE": [
        *({"refine": share} for share in (0.05, 0.5, 1.0)), {"refine": 0.5, "momentum": 0.9},
    ],
    "Concerto": [{"temperature": t, "lr": lr} for t in (0.1, 0.2) for lr in (1e-3, 3e-4)],
}  # fmt: skip


def cases() -> list[Row]:
    return [{"method": m, "options": options} for m, tried in GRID.items() for options in tried]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema, task = prepare(DEVELOPMENT[0], data)
    model = CLASSES[case["method"]](**of(case["options"]))
    rows = np.arange(cells.n_obs)
    model, budget = budgeted(model, cells, schema, rows, kept / "epochs")
    bench = ch.bench.probe(
        cells, schema, {"it": model}, held_out=task.held_out, tasks=task.tasks, seeds=(SEED,),
        depths=(1,), into=kept / "bench" / code_hash() / "tuning", progress=False,
    )  # fmt: skip
    table = bench.table().loc["it"]
    scores = {
        k: float(table[k]) for k in ("bio", "batch", "total", "knn_shared_f1", "linear_shared_f1")
    }
    return {
        **development({"task": DEVELOPMENT[0]}), **budget, "config": config.as_dict(model),
        "scores": scores, "note": table["note"], "chosen by": (scores["total"] + scores["knn_shared_f1"]) / 2,
    }  # fmt: skip


def of(kept: dict[str, Any]) -> dict[str, Any]:
    """Return options as a model takes them; a row keeps tuples as lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}


def best(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Return the options of each method whose mean of total and macro-F1 is the highest.

    Raises
    ------
    ValueError
        If not every set of options was tried, or a score is missing.
    """
    asked = cases()
    rows = [row for row in rows if row["case"] in asked and math.isfinite(row["chosen by"])]
    missing = [case for case in asked if case not in [row["case"] for row in rows]]
    if missing:
        raise ValueError(f"Measure these first: {missing}")
    found: dict[str, Row] = {}
    for row in rows:
        name = row["case"]["method"]
        if name not in found or row["chosen by"] > found[name]["chosen by"]:
            found[name] = row
    return {name: row["case"]["options"] for name, row in found.items()}


def render(rows: list[Row]) -> list[str]:
    """Return every set of options that was tried; what was chosen is bold."""
    chosen = best(rows)
    lines = []
    for row in rows:
        name, options = row["case"]["method"], row["case"]["options"]
        mark = "**" if chosen[name] == options else ""
        told = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "default"
        values = (row["scores"]["total"], row["scores"]["knn_shared_f1"], row["chosen by"])
        lines.append((name, f"{mark}{told}{mark}", *(f"{value:.3f}" for value in values)))
    return markdown(("method", "options", "total", "macro-F1, kNN", "mean of both"), lines)
