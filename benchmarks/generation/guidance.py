"""What the weight of guidance does: likeness, variety and depth of the cells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import chreode as ch
from chreode.bench.generation import class_table
from chreode.bench.yardstick import scored, split
from chreode.data.cells import Cells

from ..common import Row, folded
from ..speed.ratios import markdown
from .fits import fit
from .tasks import development, prepare, titled

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
TASKS = ("pbmc3k", "kang", "tusi")


def cases() -> list[Row]:
    return [
        {"task": task, "guide": guide, "seed": 0}
        for task in TASKS
        for guide in (("joint", "each") if task == "kang" else ("joint",))
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema = prepare(case["task"], data, case["seed"])
    classes, attributes = class_table(Cells(cells, schema))
    train, reference, spare, yardstick = split(classes, case["seed"])
    fitted, told = fit(ch.CFGen(), cells, schema, train, case["seed"], kept / "fits")
    fitted.module.options = dataclasses.replace(fitted.module.options, guide=case["guide"])
    counts = sp.csr_matrix(cells.X)
    given = {n: values.to_numpy()[classes[reference]] for n, values in attributes.items()}
    real = counts[reference], classes[reference]
    others = {
        "train": counts[train], "yardstick": counts[yardstick],
        "of_yardstick": classes[yardstick], "seed": case["seed"],
    }  # fmt: skip
    scores = {}
    for weight in WEIGHTS:
        made = fitted.generate(
            len(reference), given=given, guidance=weight, seed=case["seed"], progress=False
        )
        x = sp.csr_matrix(made.X)
        found = scored(*real, x, classes[reference], **others)[0]
        found["log_depth"] = _log_depth(x) - _log_depth(real[0])
        scores[str(weight)] = found
    ceiling = scored(*real, counts[spare], classes[spare], **others)[0]
    return {**development(case), **told, "scores": scores, "ceiling": ceiling}


def _log_depth(counts: sp.csr_matrix) -> float:
    return float(np.log(np.maximum(counts.sum(1), 1)).mean())


def render(rows: list[Row]) -> list[str]:
    """Return W2 by weight and data, the smallest in bold; all scores are folded."""
    keys = {
        "w2": "W2", "mmd": "MMD²", "auc": "AUC", "precision": "precision", "recall": "recall",
        "coverage": "coverage", "variance": "variances", "fold_change": "fold changes",
        "depth": "depth", "log_depth": "mean log depth minus that of real cells",
    }  # fmt: skip
    columns, full = {}, []
    for row in rows:
        task, guide = row["case"]["task"], row["case"]["guide"]
        for weight, scores in [*row["scores"].items(), ("real cells", row["ceiling"])]:
            values = (f"{scores[key]:.3g}" if key in scores else "" for key in keys)
            full.append((f"{titled(task)}, {guide}", weight, *values))
        w2 = {weight: scores["w2"] for weight, scores in row["scores"].items()}
        told = {weight: f"{value:.3g}" for weight, value in w2.items()}
        least = min(w2, key=w2.__getitem__)
        told[least] = f"**{told[least]}**"
        several = sum(other["case"]["task"] == task for other in rows) > 1
        name = f"{titled(task)}, {guide}" if several else titled(task)
        columns[name] = told | {"real cells": f"{row['ceiling']['w2']:.3g}"}
    weights = [*map(str, WEIGHTS), "real cells"]
    short = [(weight, *(of.get(weight, "") for of in columns.values())) for weight in weights]
    return [
        *markdown(("ω", *columns), short),
        "",
        *folded("All scores", markdown(("data", "ω", *keys.values()), full)),
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Draw likeness and variety over the weight."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    keys = {"w2": "W2", "precision": "precision", "recall": "recall", "depth": "depth (K-S)"}
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for panel, (key, name) in zip(figure.subplots(1, len(keys)), keys.items(), strict=True):
        for row in rows:
            values = [row["scores"][str(w)][key] for w in WEIGHTS]
            (line,) = panel.plot(WEIGHTS, values, "o-", markersize=3,
                                 label=f"{row['case']['task']}, {row['case']['guide']}")  # fmt: skip
            panel.axhline(row["ceiling"][key], color=line.get_color(), linestyle=":", linewidth=1)
        panel.set(xlabel="weight ω", title=name)
        panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "guidance"}):  # the same rows, the same file
        figure.savefig(path, metadata={"Date": None})
