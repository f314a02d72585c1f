"""Every method on every task, with the same time for each fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import chreode as ch
from chreode import config
from chreode.metrics.scaled import scaled_totals
from chreode.models.selfsupervised.views import MIXING
from chreode.version import code_hash

from ..common import Row, folded, spread, still_improving
from ..speed.ratios import markdown
from ..tables import shown
from . import tuning
from .fits import budgeted
from .tasks import SEEDS, TASKS, development, prepare
from .tuning import CLASSES

#: Rows that need no model of the caller.
CONTROLS = "controls"
#: It needs two modalities, which the cells lack on which options were chosen: it has its defaults.
PAIRED = "ScCLIP"
WITH_PROTEINS = ("midas", "midas, p4", "cite")
#: The reference of this task is one batch: CLAIRE cannot learn from it, and nothing is mixed in.
ALONE = "cite"


def options(task: str) -> dict[str, dict[str, Any]]:
    """Return what was chosen on other cells for each model that a task has, by the names of rows."""
    found: dict[str, dict[str, Any]] = {**tuning.best(shown("selfsupervised", "tuning")[0])}
    if task in WITH_PROTEINS:
        found[PAIRED] = {}
    if task == ALONE:
        found.pop("CLAIRE")
        found = {
            name: {**of, "augment": [view for view in of["augment"] if view not in MIXING]}
            if "augment" in of else of
            for name, of in found.items()
        }  # fmt: skip
    return found


def cases() -> list[Row]:
    """Return a case for each task, method and seed; other options are another case."""
    tasks = [task for task in TASKS if not development({"task": task})["development"]]
    return [
        {"task": task, "method": method, "seed": seed, "options": of}
        for seed in SEEDS
        for task in tasks
        for method, of in {CONTROLS: {}, **options(task)}.items()
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    name = case["method"]
    model = None if name == CONTROLS else CLASSES[name](**tuning.of(case["options"]))
    return probed(case, name, model, data, kept)


def probed(case: Row, name: str, model: Any, data: Path, kept: Path) -> Row:
    """Return what the bench says of a model on a task; of the rows beside it where there is no model."""
    cells, schema, task = prepare(case["task"], data)
    batch = cells.obs[schema.batch.removeprefix("obs/")].astype(str)
    reference = np.flatnonzero(~batch.isin(task.held_out).to_numpy())
    methods, budget = {}, {}
    if model is not None:
        hidden = "missing" in task.tasks and name != PAIRED
        where = schema.with_(protein=None) if hidden else schema
        model, budget = budgeted(model, cells, where, reference, kept / "epochs")
        methods = {name: model}
    # a folder per task and seed: the rows beside the methods are judged once
    folder = kept / "bench" / code_hash() / f"{case['task']}-{case['seed']}"
    bench = ch.bench.probe(
        cells, schema, methods, held_out=task.held_out or None, tasks=task.tasks,
        seeds=(case["seed"],), into=folder, progress=False,
    )  # fmt: skip
    chosen = bench.methods["role"].eq("method") == bool(methods)
    return {
        **development(case), "data": bench.about["data"], "threads": bench.about["threads"], **budget,
        "config": config.as_dict(model) if methods else {},
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


# the tables

#: Tables of the first screen: heading, tasks and metrics (their columns).
SHORT = {
    "Batch correction: total (0.6 bio + 0.4 batch)": [
        (task, "total", task) for task in ("kang-ctrl", "lines", "mop", "tusi", "midas")
    ],
    "Typing of cells of two held-out batches: macro-F1": [
        ("kang-ctrl, two donors", "knn_shared_f1", "Kang: neighbours"),
        ("kang-ctrl, two donors", "linear_shared_f1", "linear"),
        ("kang-ctrl, two donors", "knn_worst", "worst type"),
        ("mop, two libraries", "knn_shared_f1", "mop: neighbours"),
        ("mop, two libraries", "linear_shared_f1", "linear"),
    ],
    "Missing protein: Pearson correlation": [
        ("midas, p4", "cell_r", "midas: per cell"), ("midas, p4", "protein_r", "per protein"),
        ("cite", "cell_r", "CITE-seq: per cell"), ("cite", "protein_r", "per protein"),
    ],
}  # fmt: skip
#: Columns of each task where all is shown: metric, its heading.
COLUMNS = {
    "correction": {"bio": "bio", "batch": "batch", "total": "total", "scaled": "min-max Total"},
    "typing": {
        "knn_shared_f1": "macro-F1, kNN", "linear_shared_f1": "macro-F1, linear",
        "knn_worst": "worst type", "knn_unseen_auroc": "unseen, AUROC",
        "knn_f1_at_0.1": "F1 at 10 %", "knn_f1_at_0.05": "F1 at 5 %",
    },
    "missing": {
        "cell_r": "Pearson per cell", "protein_r": "Pearson per protein",
        "worst_protein": "worst protein",
    },
}  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return a table per question: means over seeds, the best method bold; all scores of all tasks folded."""
    found = by_task(rows)
    lines: list[str] = []
    for heading, columns in SHORT.items():
        lines += [f"**{heading}.**", "", *_short(found, columns), ""]
    for task, methods in found.items():
        full = _full(methods, COLUMNS[TASKS[task].tasks[0]])
        lines += [*folded(f"{task}: all scores, mean (lowest to highest of three seeds)", full), ""]
    return lines


#: Tasks and metrics of the table on a model's page.
OWN = [
    ("lines", "total", "lines: total"), ("kang-ctrl, two donors", "knn_shared_f1", "Kang: macro-F1"),
    ("mop, two libraries", "knn_shared_f1", "mop: macro-F1"), ("midas", "total", "midas: total"),
    ("midas, p4", "protein_r", "midas: Pearson per protein"),
]  # fmt: skip


def of_model(rows: list[Row], name: str) -> list[str]:
    """Return the table of a model's page: its row, beside those that users would else take."""
    found = by_task(rows)
    beside = ("PCA", "scVI", name)
    return _short({task: {k: of[k] for k in beside if k in of} for task, of in found.items()}, OWN)


def by_task(rows: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return what each row of each task says, a list over seeds; min-max Totals are of all rows of a task."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        of = found.setdefault(row["case"]["task"], {})
        for name, told in row["methods"].items():
            scores = {metric: value for metric, (value, *_) in told["scores"].items()}
            of.setdefault(name, []).append({**told, "scores": scores, "epochs": row.get("epochs")})
    for methods in found.values():
        means = {name: _means(of) for name, of in methods.items() if of[0]["role"] != "ceiling"}
        for name, total in scaled_totals(pd.DataFrame(means).T).items():
            for told in methods[str(name)]:
                told["scores"]["scaled"] = float(total)
    return found


def _means(of: list[Row]) -> dict[str, float]:
    """Return the mean over seeds of every score that all of them have."""
    scores = pd.DataFrame([told["scores"] for told in of])
    return scores.dropna(axis=1).mean().to_dict()


def _short(
    found: dict[str, dict[str, list[Row]]], columns: list[tuple[str, str, str]]
) -> list[str]:
    means = {
        task: {name: _means(of) for name, of in found.get(task, {}).items()} for task, *_ in columns
    }
    names = dict.fromkeys(name for task, *_ in columns for name in means[task])
    table = pd.DataFrame(
        [[means[task].get(name, {}).get(metric, np.nan) for task, metric, _ in columns] for name in names],
        index=list(names), dtype=float,
    )  # fmt: skip
    roles = {name: of[0]["role"] for methods in found.values() for name, of in methods.items()}
    contest = table[[roles[name] != "ceiling" for name in table.index]]
    best = contest.max().where(contest.nunique() > 1)  # of equals none is
    lines = [
        (_named(name, roles[name]), *(_shown(value, value == best[k]) for k, value in row.items()))
        for name, row in table.iterrows()
    ]
    return markdown(("method", *(heading for *_, heading in columns)), lines)


def _named(name: str, role: str) -> str:
    return name if role == "method" else f"{name} ({role})"


def _shown(value: float, best: bool) -> str:
    told = "–" if np.isnan(value) else f"{value:.3f}"
    return f"**{told}**" if best else told


def _full(methods: dict[str, list[Row]], columns: dict[str, str]) -> list[str]:
    lines = []
    for name, of in methods.items():
        values = [spread([told["scores"].get(metric, np.nan) for told in of]) for metric in columns]
        notes = ["still improving"] if any(map(still_improving, of)) else []
        notes += [note for told in of for note in told["note"].split("; ") if "collapsed" in note]
        epochs = of[0]["epochs"]
        lines.append(
            (
                _named(name, of[0]["role"]),
                *values,
                str(epochs or ""),
                "; ".join(dict.fromkeys(notes)),
            )
        )
    return markdown(("method", *columns.values(), "epochs", "note"), lines)
