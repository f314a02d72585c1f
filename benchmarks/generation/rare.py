"""Do generated cells help to find rare types? Beside oversampling and class weights."""

from __future__ import annotations

from pathlib import Path

import chreode as ch
from chreode.bench.augmentation import METRICS, augmentation, split
from chreode.bench.generation import class_table
from chreode.data.cells import Cells
from chreode.version import code_hash

from ..common import Row, spread
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


def render(rows: list[Row]) -> list[str]:
    lines = []
    for task in dict.fromkeys(row["case"]["task"] for row in rows):
        here = [row for row in rows if row["case"]["task"] == task]
        for method in here[0]["scores"]:
            values = (
                [row["scores"][method][key] for row in here if method in row["scores"]]
                for key in METRICS
            )
            lines.append((titled(task), method, *map(spread, values)))
    return markdown(("", "", *(name for name, *_ in METRICS.values())), lines)
