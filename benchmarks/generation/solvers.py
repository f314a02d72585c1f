"""How few evaluations of the network are enough: solvers and steps on one fit."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import chreode as ch
from chreode import ode
from chreode.bench.generation import class_table, scored, split

from ..common import Row
from ..speed.ratios import markdown
from .fits import fit
from .tasks import prepare

TRIED: dict[str, dict[str, Any]] = {
    "dopri5, 1e-5": {"solver": "dopri5", "tolerance": 1e-5},
    "dopri5, 1e-3": {"solver": "dopri5", "tolerance": 1e-3},
    **{
        f"{solver}, {steps}": {"solver": solver, "steps": steps}
        for solver, few in (("euler", (5, 10, 20, 40)), ("midpoint", (2, 3, 4, 6, 16)),
                            ("heun", (2, 3, 5, 8)), ("rk4", (2, 4)))
        for steps in few
    },
}  # fmt: skip
DRAWS = 3
#: W2 is flattered by clouds that are too narrow, as few steps make them: hence the others.
JUDGED = ("w2", "auc", "recall")


def cases() -> list[Row]:
    return [{"task": task, "seed": 0} for task in ("pbmc3k", "kang")]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema = prepare(case["task"], data, case["seed"])
    classes, attributes = class_table(cells, schema)
    train, reference, spare = split(classes, case["seed"])
    fitted, told = fit(ch.CFGen(), cells, schema, train, case["seed"], kept / "fits")
    counts = sp.csr_matrix(cells.X)
    given = {n: values.to_numpy()[classes[reference]] for n, values in attributes.items()}
    real = counts[reference], classes[reference]
    others = {"train": counts[train], "spare": counts[spare], "seed": case["seed"]}
    found = {}
    own = fitted.module.options
    for name, options in TRIED.items():
        fitted.module.flow.options = dataclasses.replace(own, **options)
        rows = []
        for draw in range(DRAWS):
            start = time.perf_counter()
            made = fitted.generate(len(reference), given=given, seed=draw, progress=False)
            seconds = time.perf_counter() - start
            scores = scored(*real, sp.csr_matrix(made.X), classes[reference], **others)[0]
            rows.append([*(scores[key] for key in JUDGED), len(reference) / seconds])
        *means, speed = np.mean(rows, axis=0)
        found[name] = {
            **dict(zip(JUDGED, map(float, means), strict=True)), "cells_per_second": float(speed),
            "evaluations": _evaluations(fitted, given, options),
        }  # fmt: skip
    ceiling = scored(*real, counts[spare], classes[spare], **others)[0]["w2"]
    return {**told, "found": found, "ceiling": ceiling}


def _evaluations(fitted: ch.Fitted, given: dict[str, Any], options: dict[str, Any]) -> int:
    """Count the calls of the network for one chunk of cells."""
    called = []
    hook = fitted.module.flow.field.network.register_forward_hook(lambda *_: called.append(1))
    few = {name: values[:200] for name, values in given.items()}
    fitted.generate(200, given=few, progress=False)
    hook.remove()
    assert options["solver"] in ode.METHODS
    return len(called)


def render(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        excess = {name: told["w2"] - row["ceiling"] for name, told in row["found"].items()}
        lines += [
            (
                row["case"]["task"], name, str(told["evaluations"]), f"{told['w2']:.3f}",
                f"{excess[name]:.3f}", f"{excess[name] / excess['dopri5, 1e-3']:.2f}",
                f"{told['auc']:.3f}", f"{told['recall']:.3f}",
                f"{told['cells_per_second']:,.0f}",
            )
            for name, told in row["found"].items()
        ]  # fmt: skip
    header = ("", "solver, steps or tolerance", "evaluations", "W2", "above real cells", "share of Dopri5's",
              "AUC", "recall", "cells/s")  # fmt: skip
    return markdown(header, lines)
