"""How few evaluations of the network are enough: solvers and steps on one fit."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy import stats

import chreode as ch
from chreode import ode
from chreode.bench.generation import class_table
from chreode.bench.yardstick import MIN_CLASS, split
from chreode.data.cells import Cells
from chreode.metrics import generation as measured
from chreode.metrics.space import Space

from ..common import Row, folded
from ..speed.ratios import markdown
from .fits import fit
from .tasks import development, prepare, titled

FINE, USUAL = "dopri5, 1e-5", "dopri5, 1e-3"
TRIED: dict[str, dict[str, Any]] = {
    FINE: {"solver": "dopri5", "tolerance": 1e-5},
    USUAL: {"solver": "dopri5", "tolerance": 1e-3},
    **{
        f"{solver}, {steps}": {"solver": solver, "steps": steps}
        for solver, few in (("euler", (6, 12)), ("midpoint", (2, 4, 6, 16)), ("heun", (3, 6)), ("rk4", (3,)))
        for steps in few
    },
}  # fmt: skip
#: The rows of the first table; the default is in bold.
DEFAULT = "midpoint, 4"
SHORT = (USUAL, DEFAULT, "midpoint, 2", "heun, 3", "euler, 6")
#: The same noise for every solver; W2 of one draw moves by as much as solvers differ.
DRAWS = 12


def cases() -> list[Row]:
    return [{"task": task, "seed": 0} for task in ("pbmc3k", "kang")]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema = prepare(case["task"], data, case["seed"])
    classes, attributes = class_table(Cells(cells, schema))
    train, reference, spare, yardstick = split(classes, case["seed"])
    fitted, told = fit(ch.CFGen(), cells, schema, train, case["seed"], kept / "fits")
    counts = sp.csr_matrix(cells.X)
    space = Space.of(counts[yardstick])
    of_real = classes[reference]
    given = {n: values.to_numpy()[of_real] for n, values in attributes.items()}
    real = space.place(counts[reference])
    found, own = {}, fitted.module.options
    for name, options in TRIED.items():
        fitted.module.flow.options = dataclasses.replace(own, **options)
        seconds, scores = 0.0, []
        for draw in range(DRAWS):
            start = time.perf_counter()
            made = fitted.generate(len(reference), given=given, seed=draw, progress=False)
            seconds += time.perf_counter() - start
            scores.append(_judged(real, space.place(sp.csr_matrix(made.X)), of_real))
        found[name] = {
            **{key: [score[key] for score in scores] for key in scores[0]},
            "evaluations": _evaluations(fitted, given, options),
            "cells_per_second": DRAWS * len(reference) / seconds,
        }  # fmt: skip
    return {
        **development(case),
        **told,
        "found": found,
        "ceiling": _judged(real, space.place(counts[spare]), of_real, classes[spare]),
    }


def _judged(
    real: np.ndarray, fake: np.ndarray, of_real: np.ndarray, of_fake: np.ndarray | None = None
) -> dict[str, float]:
    """Return means over classes of what W2 says, and of what it flatters: clouds that are too narrow."""
    of_fake = of_real if of_fake is None else of_fake
    scores = []
    for number in np.unique(of_real):
        x, y = real[of_real == number], fake[of_fake == number]
        if min(len(x), len(y)) >= MIN_CLASS:
            scores.append(
                (
                    measured.wasserstein2(x, y),
                    measured.manifold(x, y).recall,
                    y.var(0).sum() / x.var(0).sum(),
                )
            )
    return dict(zip(("w2", "recall", "spread"), map(float, np.mean(scores, axis=0)), strict=True))


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
    """Return the default beside other solvers; all solvers and how certain differences are, are folded."""
    short, full = [], []
    for row in rows:
        task, ceiling = titled(row["case"]["task"]), row["ceiling"]
        usual = np.array(row["found"][USUAL]["w2"]) - ceiling["w2"]
        means: dict[str, tuple[str, ...]] = {}
        for name, told in row["found"].items():
            w2 = np.array(told["w2"])
            more = w2 - ceiling["w2"] - usual  # draw by draw, of the same noise
            half = stats.t.ppf(0.975, len(more) - 1) * more.std(ddof=1) / np.sqrt(len(more))
            means[name] = tuple(f"{np.mean(told[key]):.3f}" for key in ("w2", "recall", "spread"))
            full.append(
                (
                    task,
                    name,
                    str(told["evaluations"]),
                    means[name][0],
                    f"{w2.mean() - ceiling['w2']:.3f}",
                    f"{1 + more.mean() / usual.mean():.2f} ± {half / usual.mean():.2f}",
                    *means[name][1:],
                    f"{told['cells_per_second']:,.0f}",
                )
            )
        for name in SHORT:
            said = f"**{name}**" if name == DEFAULT else name
            short.append((task, said, str(row["found"][name]["evaluations"]), *means[name]))
        w2, recall, spread = (f"{ceiling[key]:.3f}" for key in ("w2", "recall", "spread"))
        full.append((task, "real cells", "", w2, "", "", recall, spread, ""))
        short.append((task, "real cells", "", w2, recall, spread))
    first = (
        "data",
        "solver, steps or tolerance",
        "evaluations",
        "W2",
        "recall",
        "variance over real",
    )
    header = (*first[:4], "W2 above real cells", "share of Dopri5's", *first[4:], "cells/s")
    return [*markdown(first, short), "", *folded("All solvers", markdown(header, full))]
