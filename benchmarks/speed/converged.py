"""Wall clock to the best held-out ELBO of an early-stopped run of scvi-tools, on real cells.

scvi-tools trains with early stopping; the mark is the ELBO of its best epoch on the validation cells.
chreode trains on the same split until it is as good. The judge of both is the evaluator of the
comparison of integration; its time is not counted.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import mark, markdown

sys.path.append(str(Path(__file__).parents[1] / "integration"))

THEIRS = Side("scvi-tools", "scvi_tools", rival=True)
OURS = Side("chreode", "chreode")
SPLIT = ("training", "validation", "test")


def cases(quick: bool) -> list[Case]:
    # 400 is what scvi-tools chooses below 20,000 cells; its warm-up of 400 would never end
    epochs = {"max_epochs": 400, "kl_warmup": 50, "patience": 45, "draws": 10, "cells": None}
    if quick:
        epochs = {"max_epochs": 6, "kl_warmup": 3, "patience": 3, "draws": 2, "cells": 1_000}
    tasks = {"kang-ctrl": 1_100, "mop": 1_500}  # seconds
    return [
        Case(
            "converged", f"{task}, seed {seed}", (THEIRS, OURS),
            {"task": task, "seed": seed, **epochs}, 60 if quick else cost, alternate=False,
        )
        for seed in ((0,) if quick else (0, 1, 2))
        for task, cost in tasks.items()
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    from tasks import prepare as read_task

    task = read_task(settings["task"], folders.data, _settings(settings))
    file = folders.scratch / f"{task.name}.npz"
    task.save(file)
    return {"file": str(file), "sha256": task.sha256, "mark": str(file.with_suffix(".mark.json"))}


def _settings(given: Row) -> Any:
    from exchange import Settings

    return Settings(
        epochs=given["max_epochs"], warmup=given["kl_warmup"] / given["max_epochs"],
        draws=given["draws"], cells=given["cells"],
    )  # fmt: skip


@dataclass
class _Judge:
    """The ELBO of held-out cells by the evaluator, for the same draws of z on both sides."""

    task: Any
    settings: Any
    seed: int
    explain: Callable[..., dict[str, np.ndarray]]

    def elbo(self, fit: Any, part: str, draws: int | None = None) -> float:
        """Return the mean over the cells of a part, with the first `draws` draws."""
        from evaluator import held_out_elbo
        from exchange import TEST, TRAIN, shared_noise

        # `explain` looks at the test cells
        chosen = self.task.part == SPLIT.index(part)
        view = replace(self.task, part=np.where(chosen, TEST, TRAIN))
        noise = shared_noise(view, self.settings, self.seed)[:draws]
        return float(held_out_elbo(view.counts[chosen], self.explain(fit, view, noise)).mean())


# the sides: laps are "set-up" and "epoch", which includes its validation


def scvi_tools(given: Prepared, lap: Callable[..., None]) -> None:
    import pandas as pd
    import scvi
    from anndata import AnnData
    from exchange import TEST, TRAIN, VALIDATION, Task
    from fit_scvi_tools import explain

    from .epochs import rival_callback

    task, settings = Task.load(Path(given["file"])), _settings(given)
    scvi.settings.num_threads, scvi.settings.seed = given["threads"], given["seed"]
    lap("import")
    obs = pd.DataFrame({"batch": pd.Categorical(task.batch)})
    obs.index = obs.index.astype(str)
    cells = AnnData(task.counts, obs=obs, var=pd.DataFrame(index=task.genes))
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells, n_hidden=settings.n_hidden, n_latent=settings.n_latent,
        n_layers=settings.n_layers, dropout_rate=settings.dropout,
    )  # fmt: skip
    curve: list[float] = []
    best: dict[str, Any] = {}

    def remember(trainer: Any) -> None:
        curve.append(-float(trainer.callback_metrics["elbo_validation"]))
        if curve[-1] >= max(curve):
            best.update({k: v.clone() for k, v in model.module.state_dict().items()})

    def begin(trainer: Any) -> None:
        lap.stop()
        if trainer.current_epoch > 0:
            remember(trainer)
        lap("epoch" if trainer.current_epoch > 0 else "set-up")

    model.train(
        max_epochs=settings.epochs, accelerator="cpu", devices=1, batch_size=settings.batch_size,
        early_stopping=True, early_stopping_patience=given["patience"], enable_progress_bar=False,
        callbacks=[rival_callback(begin)],
        datasplitter_kwargs={
            "external_indexing": [task.rows(part) for part in (TRAIN, VALIDATION, TEST)]
        },
        plan_kwargs={
            "lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay,
            "n_epochs_kl_warmup": given["kl_warmup"],
        },
    )  # fmt: skip
    lap.stop()
    remember(model.trainer)
    model.module.load_state_dict(best)
    judge = _Judge(task, settings, given["seed"], explain)
    found = {part: judge.elbo(model, part) for part in SPLIT[1:]}
    first = judge.elbo(model, "validation", 1)
    Path(given["mark"]).write_text(json.dumps({"first": first, "all": found["validation"]}))
    lap("epoch", validation_elbo=curve, best_epoch=int(np.argmax(curve)), elbo=found)


class _ReachedError(Exception):
    """Training was ended because the mark was reached."""


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import torch
    from exchange import TEST, VALIDATION, Task
    from fit_chreode import as_anndata, explain

    import chreode as ch
    from chreode.losses import kernel

    from .epochs import announcing

    torch.set_num_threads(given["threads"])
    task, settings = Task.load(Path(given["file"])), _settings(given)
    wanted = json.loads(Path(given["mark"]).read_text())
    judge = _Judge(task, settings, given["seed"], explain)
    curve: list[float] = []

    def reached(fit: Any) -> bool:
        """Judge by one draw of z; only what passes is judged by all."""
        curve.append(judge.elbo(fit, "validation", 1))
        return curve[-1] >= wanted["first"] and judge.elbo(fit, "validation") >= wanted["all"]

    def last_lap(fit: Any, *, reached: bool) -> None:
        elbo = {part: judge.elbo(fit, part) for part in SPLIT[1:]}
        facts = {"validation_elbo": curve, "elbo": elbo, "kernel": kernel.available()}
        lap("epoch", reached=reached, **facts)

    begun = []

    def begin(fit: Any) -> None:
        lap.stop()
        if begun and reached(fit):
            last_lap(fit, reached=True)
            raise _ReachedError
        lap("epoch" if begun else "set-up")
        begun.append(fit)

    model = announcing(
        ch.SCVI, begin, n_latent=settings.n_latent, n_hidden=settings.n_hidden, n_layers=settings.n_layers,
        dropout=settings.dropout, kl_warmup=settings.warmup,
        batch_size=settings.batch_size, max_epochs=settings.epochs, lr=settings.lr,
        weight_decay=settings.weight_decay, patience=given["patience"],
    )  # fmt: skip
    lap("import")
    try:
        fitted = model.fit(
            as_anndata(task), ch.Schema(counts="X", batch="obs/batch"), seed=given["seed"],
            rows=np.flatnonzero(task.part != TEST), validation=task.rows(VALIDATION),
            device="cpu", progress=False,
        )  # fmt: skip
        lap.stop()
        last_lap(fitted, reached=reached(fitted))
    except _ReachedError:
        pass


# the table


def render(rows: list[Row]) -> list[str]:
    short, full = [], []
    for row in rows:
        theirs, ours = (row["runs"][side.label][0][-1] for side in (THEIRS, OURS))
        to_best, whole, own = times(row)
        shares = [f"{own / to_best:.2f}", f"{own / whole:.2f}"]
        if not reached(row):
            shares = ["**not reached**"] * 2
        name = row["case"] + mark(row, "epoch")
        short.append((name, f"{to_best:.0f}", f"{whole:.0f}", f"{own:.0f}", *shares))
        full.append(
            (
                name,
                _elbo(theirs),
                f"{theirs['best_epoch'] + 1}",
                f"{len(theirs['validation_elbo'])}",
                _elbo(ours),
                f"{len(ours['validation_elbo'])}",
            )
        )
    header = (
        "", "scvi-tools to its best epoch, s", "until it stops, s", "chreode to the same ELBO, s",
        "share of the time to the best epoch", "share of the whole",
    )  # fmt: skip
    more = (
        "", "scvi-tools, ELBO of validation / test", "best epoch", "epochs",
        "chreode, ELBO of validation / test", "epochs",
    )  # fmt: skip
    return [*markdown(header, short), "", *folded("ELBO and epochs", markdown(more, full))]


def _elbo(end: Row) -> str:
    return f"{end['elbo']['validation']:.2f} / {end['elbo']['test']:.2f}"


def reached(row: Row) -> bool:
    """Return whether chreode came to the mark."""
    return bool(row["runs"][OURS.label][0][-1]["reached"])


def times(row: Row) -> tuple[float, float, float]:
    """Return seconds of scvi-tools to its best epoch and until it stopped, and of chreode to the mark."""
    theirs, ours = (row["runs"][side.label][0] for side in (THEIRS, OURS))
    return _seconds(theirs, theirs[-1]["best_epoch"] + 1), _seconds(theirs), _seconds(ours)


def _seconds(run: list[Row], epochs: int | None = None) -> float:
    """Return set-up and so many epochs (None: all)."""
    timed = [lap["seconds"] for lap in run if lap["name"] == "epoch"]
    set_up = sum(lap["seconds"] for lap in run if lap["name"] == "set-up")
    return set_up + math.fsum(timed[:epochs])
