"""Throughput of a training of SCVI, and the memory of one from file to first epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import Ratio, laps, mark, markdown, median, named, ratio, spread

THEIRS = Side("scvi-tools", "scvi_tools", rival=True)
OURS = (
    Side("chreode, no compiler", "chreode", env={"CHREODE_KERNEL": "0"}),
    Side("chreode, kernel", "chreode"),
)
BF16 = Side("chreode, kernel, bf16", "chreode", options={"precision": "bf16"})
ARCHITECTURE = {"n_hidden": 128, "n_layers": 1, "n_latent": 10}
ADAM = {"lr": 1e-3, "eps": 0.01, "weight_decay": 1e-6}
TRAIN = 0.9


def cases(quick: bool) -> list[Case]:
    data = {"cells": 2_000 if quick else 50_000, "genes": 2_000, "density": 0.08, "seed": 0}
    epochs = 2 if quick else 6  # the first warms up
    found = []
    for likelihood in ("nb", "zinb"):
        for batch_size in (128, 512):
            settings = {
                **data,
                "likelihood": likelihood,
                "batch_size": batch_size,
                "epochs": epochs,
            }
            sides = (THEIRS, *OURS, *((BF16,) if batch_size == 512 else ()))
            cost = epochs * data["cells"] * 7e-4 + 40
            found.append(Case("training", f"{likelihood}, {batch_size}", sides, settings, cost))
    for batch_size in (128, 512):
        settings = {**data, "likelihood": "zinb", "batch_size": batch_size, "epochs": 1}
        repeats = 1 if quick else 3
        cost = repeats * (data["cells"] * 7e-4 + 40)
        case = Case("training", f"memory, {batch_size}", (THEIRS, *OURS), settings, cost, repeats)
        found.append(case)
    return found


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    return simulated(
        folders.scratch, **{k: settings[k] for k in ("cells", "genes", "density", "seed")}
    )


# the sides: laps are "import", "load", "set-up", "warm-up" (the first epoch) and "epoch"


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import torch

    import chreode as ch
    from chreode.losses import kernel

    from .epochs import announcing

    torch.set_num_threads(given["threads"])
    model = announcing(
        ch.SCVI, Laps(lap), **ARCHITECTURE, dropout=0.1, likelihood=given["likelihood"],
        batch_size=given["batch_size"], max_epochs=given["epochs"], lr=ADAM["lr"],
        weight_decay=ADAM["weight_decay"],
    )  # fmt: skip
    lap("import")
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    model.fit(
        cells, ch.Schema(counts="X", batch="obs/batch"), rows=_train(cells.n_obs), validation=0,
        seed=given["seed"], device="cpu", precision=given.get("precision", "fp32"), progress=False,
    )  # fmt: skip
    lap("epoch" if given["epochs"] > 1 else "warm-up", kernel=kernel.available())


def scvi_tools(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import scvi

    from .epochs import rival_callback

    scvi.settings.num_threads = given["threads"]
    scvi.settings.seed = given["seed"]
    lap("import")
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells, **ARCHITECTURE, dropout_rate=0.1, gene_likelihood=given["likelihood"]
    )
    train = _train(cells.n_obs)
    rest = np.setdiff1d(np.arange(cells.n_obs), train)
    model.train(
        max_epochs=given["epochs"], accelerator="cpu", devices=1, batch_size=given["batch_size"],
        early_stopping=False, enable_progress_bar=False, plan_kwargs=ADAM,
        datasplitter_kwargs={"external_indexing": [train, rest, np.array([], int)]},
        callbacks=[rival_callback(Laps(lap))],
    )  # fmt: skip
    lap("epoch" if given["epochs"] > 1 else "warm-up")


class Laps:
    """Called when an epoch begins: names what came before it."""

    def __init__(self, lap: Callable[..., None]) -> None:
        self.lap, self.begun = lap, 0

    def __call__(self, _: Any) -> None:
        self.lap(("set-up", "warm-up", "epoch")[min(self.begun, 2)])
        self.begun += 1


def _train(n_cells: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(n_cells)
    return np.sort(order[: round(TRAIN * n_cells)])


# the tables


def render(rows: list[Row]) -> list[str]:
    timed = [row for row in rows if not _of_memory(row)]
    memory = [row for row in rows if _of_memory(row)]
    pace = ("likelihood, minibatch", "", "ms/step", "times as fast", "first epoch, s")
    more = (*pace[:2], "first, s", "cells/s", "ms/step", "times as fast", "by processor time")
    space = ("", "", "peak, MiB", "above the imports, MiB", "times less")
    return [
        *markdown(pace, (line for row in timed for line in _short(row))),
        "",
        *markdown(space, (line for row in memory for line in _memory(row, median))),
        "",
        *folded("Time, with ranges and 95 % intervals",
                markdown(more, (line for row in timed for line in _throughput(row)))),
        "",
        *folded("Memory, with ranges and 95 % intervals",
                markdown(space, (line for row in memory for line in _memory(row, spread)))),
    ]  # fmt: skip


def _of_memory(row: Row) -> bool:
    return row["settings"]["epochs"] == 1


def steps(row: Row) -> int:
    """Return the steps of an epoch."""
    return round(round(TRAIN * row["settings"]["cells"]) / row["settings"]["batch_size"])


def _first(row: Row, label: str) -> np.ndarray:
    return laps(row, label, "set-up") + laps(row, label, "warm-up")


def _short(row: Row) -> Iterator[tuple[str, ...]]:
    seconds = {label: laps(row, label, "epoch") for label in row["runs"]}
    for label, of in seconds.items():
        who = row["case"] + mark(row, "epoch"), named(row, label)
        pace = median(1e3 * of / steps(row)), _against(seconds, label, Ratio.plain)
        yield *who, *pace, median(_first(row, label))


def _throughput(row: Row) -> Iterator[tuple[str, ...]]:
    n = round(TRAIN * row["settings"]["cells"])
    seconds = {label: laps(row, label, "epoch") for label in row["runs"]}
    cpu = {label: laps(row, label, "epoch", "cpu_seconds") for label in row["runs"]}
    for label, of in seconds.items():
        pace = spread(_first(row, label)), spread(n / of), spread(1e3 * of / steps(row))
        against = (_against(table, label) for table in (seconds, cpu))
        yield row["case"] + mark(row, "epoch"), named(row, label), *pace, *against


def peaks(row: Row) -> dict[str, np.ndarray]:
    """Return the highest resident memory of every side, MiB."""
    return {
        label: np.array([max(lap["peak_mib"] for lap in run) for run in runs])
        for label, runs in row["runs"].items()
    }


def _memory(row: Row, told: Callable[[np.ndarray], str]) -> Iterator[tuple[str, ...]]:
    found = peaks(row)
    say = Ratio.plain if told is median else str
    for label, peak in found.items():
        above = peak - laps(row, label, "import", "resident_mib")
        against = _against(found, label, say)
        yield row["case"], named(row, label), told(peak), told(above), against


def _against(values: dict[str, np.ndarray], label: str, told: Callable[[Ratio], str] = str) -> str:
    return "1" if label == THEIRS.label else told(ratio(values[THEIRS.label], values[label]))
