"""Do generated cells help to find rare types? Beside oversampling and class weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import chreode as ch
from chreode.bench.augmentation import METRICS, augmentation, split
from chreode.bench.generation import class_table
from chreode.data.cells import Cells
from chreode.version import code_hash

from ..common import Row, folded, spread
from ..speed.ratios import markdown
from .fits import budgeted
from .tasks import development, prepare, titled


def cases() -> list[Row]:
    return [
        {"task": task, "seed": seed} for task in ("pbmc3k", "kang", "mop") for seed in (0, 1, 2)
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema = prepare(
        case["task"], data, case["seed"], lambda classes: split(classes, case["seed"]).yardstick
    )
    train = split(class_table(Cells(cells, schema))[0], case["seed"]).train
    model, budget = budgeted(ch.CFGen(), cells, schema, train)
    folder = kept / "augmentation" / code_hash() / f"{case['task']}-{case['seed']}"
    bench = augmentation(cells, schema, [model], seeds=(case["seed"],), into=folder, progress=False)
    table = bench.scores.pivot_table(index="method", columns="metric", values="value")
    return {
        **development(case),
        **budget,
        "data": bench.about["data"],
        "scores": table.to_dict("index"),
    }


#: The scores of the first table.
SHORT = {
    "knn_rare": "recall, neighbours", "knn_precision": "precision, neighbours",
    "logistic_rare": "recall, logistic", "logistic_precision": "precision, logistic",
}  # fmt: skip
#: What the page calls the rows.
SAID = {"CFGen": "cells of CFGen"}


def render(rows: list[Row]) -> list[str]:
    """Return recall and precision of rare types, means over seeds; intervals and other types are folded."""
    short, full = [], []
    for task in dict.fromkeys(row["case"]["task"] for row in rows):
        here = [row for row in rows if row["case"]["task"] == task]
        for method in here[0]["scores"]:
            scores = [row["scores"][method] for row in here if method in row["scores"]]
            who = (titled(task), SAID.get(method, method))
            full.append((*who, *(spread([of[key] for of in scores]) for key in METRICS)))
            short.append((*who, *(f"{np.mean([of[key] for of in scores]):.3f}" for key in SHORT)))
    header = ("data", "added", *(name for name, *_ in METRICS.values()))
    return [
        *markdown(("data", "added", *SHORT.values()), short),
        "",
        *folded("All types, mean over seeds (lowest to highest)", markdown(header, full)),
    ]
