"""Minibatches from a file: their pace and how well they are mixed; and a million cells, start to end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import Ratio, laps, mark, markdown, median, ratio, spread

OURS = Side("chreode", "chreode")
THEIRS = Side("h5py, random rows", "h5py_rows", rival=True)
MEMORY = Side("in memory, scipy", "in_memory", rival=True)
MILLION = Side("chreode, on disk", "million")
WHOLE = Side("scvi-tools, in memory", "whole", rival=True)
SCHEMA = {"counts": "X", "batch": "obs/batch"}
#: MiB that one epoch and one embedding of a million cells may take.
LIMIT = 2048


def cases(quick: bool) -> list[Case]:
    shape = {"genes": 2_000, "density": 0.08, "seed": 0}
    few = {**shape, "cells": 4_000 if quick else 200_000, "by_type": True, "batch_size": 128}
    many = {**shape, "cells": 4_000 if quick else 1_000_000, "by_type": False}
    epochs = 2 if quick else 4  # the first warms up
    cost = epochs * few["cells"] * 1.5e-4 + 60
    return [
        Case(
            "disk", "page cache full", (THEIRS, OURS, MEMORY),
            {**few, "epochs": epochs, "cold": False}, cost,
        ),
        Case(
            "disk", "page cache empty", (THEIRS, OURS), {**few, "epochs": epochs, "cold": True}, cost
        ),
        Case(
            "disk", f"{many['cells']:,} cells", (MILLION, WHOLE), {**many, "likelihood": "zinb"},
            many["cells"] * 9e-4 + 60, alternate=False,
        ),
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    names = ("cells", "genes", "density", "by_type", "seed")
    return simulated(folders.scratch, **{name: settings[name] for name in names})


# minibatches: every side makes dense tensors of the same number of cells


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import torch

    import chreode as ch
    from chreode.data.align import learn_spec, open_source
    from chreode.data.cells import Cells
    from chreode.data.sampler import Shuffled

    torch.set_num_threads(given["threads"])
    cells = ch.open(given["file"])
    schema, rows = ch.Schema(counts="X"), np.arange(cells.n_obs)
    named = Cells(cells, schema)
    source = open_source(
        named,
        learn_spec(named, ["counts"], rows),
        ["counts"],
        {},
        rows,
    )
    sampler, rng = Shuffled(given["batch_size"]), np.random.default_rng(given["seed"])

    def epoch(number: int) -> Iterable[np.ndarray]:
        for batch in source.minibatches(sampler.batches(source, rows, number, rng)):
            assert batch["counts"].shape[1] == given["genes"]
            yield batch.rows.numpy()

    _epochs(epoch, given, lap)


def h5py_rows(given: Prepared, lap: Callable[..., None]) -> None:
    import h5py
    from anndata.io import sparse_dataset

    with h5py.File(given["file"]) as file:
        _epochs(_drawn(sparse_dataset(file["X"]), given), given, lap)


def in_memory(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata

    _epochs(_drawn(anndata.read_h5ad(given["file"]).X, given), given, lap)


def _drawn(matrix: Any, given: Prepared) -> Callable[[int], Iterable[np.ndarray]]:
    """Return an epoch of rows drawn without replacement; rows of a minibatch rise, as h5py asks."""
    import torch

    rng = np.random.default_rng(given["seed"])

    def epoch(_: int) -> Iterable[np.ndarray]:
        n = given["cells"]
        for rows in np.array_split(rng.permutation(n), round(n / given["batch_size"])):
            rows.sort()
            assert torch.from_numpy(matrix[rows].toarray()).shape[1] == given["genes"]
            yield rows

    return epoch


def _epochs(
    epoch: Callable[[int], Iterable[np.ndarray]], given: Prepared, lap: Callable[..., None]
) -> None:
    """Go through the cells `epochs` times; tell how mixed the types of a minibatch are."""
    kind = _kinds(Path(given["file"]))
    lap("set-up")
    for number in range(given["epochs"]):
        if given["cold"]:
            _forget(Path(given["file"]))
            lap.restart()
        seen = list(epoch(number))
        lap.stop()
        assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(given["cells"]))
        mixed = np.random.default_rng(number).permutation(given["cells"])
        true = np.array_split(mixed, len(seen))
        lap(
            "epoch" if number else "warm-up",
            entropy=_entropy(kind, seen), true_entropy=_entropy(kind, true),
        )  # fmt: skip


def _kinds(file: Path) -> np.ndarray:
    import h5py

    with h5py.File(file) as cells:
        return cells["obs/cell_type/codes"][:]


def _entropy(kind: np.ndarray, batches: list[np.ndarray]) -> float:
    """Return the mean entropy of the types within a minibatch, in nats."""
    shares = (np.bincount(kind[rows]) / len(rows) for rows in batches)
    return float(np.mean([-(s[s > 0] * np.log(s[s > 0])).sum() for s in shares]))


def _forget(file: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)  # what is not yet written cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


# a million cells


def million(given: Prepared, lap: Callable[..., None]) -> None:
    import torch

    import chreode as ch
    from chreode.losses import kernel

    torch.set_num_threads(given["threads"])
    model = ch.SCVI(likelihood=given["likelihood"], max_epochs=1)
    lap("import")
    cells = ch.open(given["file"])
    fitted = model.fit(
        cells, ch.Schema(**SCHEMA), seed=given["seed"], validation=0, device="cpu", progress=False
    )
    lap("epoch")
    shape = fitted.embed(cells, progress=False).shape
    lap("embed", shape=shape, kernel=kernel.available())


def whole(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import scvi

    scvi.settings.num_threads, scvi.settings.seed = given["threads"], given["seed"]
    lap("import")
    cells = anndata.read_h5ad(given["file"])
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood=given["likelihood"])
    model.train(
        max_epochs=1, accelerator="cpu", devices=1, train_size=1.0, early_stopping=False,
        enable_progress_bar=False,
    )  # fmt: skip
    lap("epoch")
    shape = model.get_latent_representation().shape
    lap("embed", shape=shape)


# the tables


def render(rows: list[Row]) -> list[str]:
    cold = [row for row in rows if "cold" in row["settings"]]
    header = ("", "", "first epoch, cells/s", "cells/s", "times as fast", "entropy of types")
    lines = markdown(header, (line for row in cold for line in _paces(row, median, Ratio.plain)))
    for row in rows:
        if "cold" not in row["settings"]:
            lines += ["", *_million(row)]
    whole = markdown(header, (line for row in cold for line in _paces(row, spread, str)))
    return [*lines, "", *folded("With ranges and 95 % intervals", whole)]


def _paces(
    row: Row, told: Callable[[np.ndarray], str], against: Callable[[Ratio], str]
) -> list[tuple[str, ...]]:
    n, theirs = row["settings"]["cells"], laps(row, THEIRS.label, "epoch")
    return [
        (
            row["case"] + mark(row, "epoch"),
            label,
            told(n / laps(row, label, "warm-up")),
            told(n / laps(row, label, "epoch")),
            "1" if label == THEIRS.label else against(ratio(theirs, laps(row, label, "epoch"))),
            f"{_share(row, label):.1%}",
        )
        for label in row["runs"]
    ]


def _share(row: Row, label: str) -> float:
    """Return the median entropy over that of a true shuffle."""
    found, true = (laps(row, label, "epoch", key) for key in ("entropy", "true_entropy"))
    return float(np.median(found / true))


def _million(row: Row) -> list[str]:
    lines = []
    for label, (run,) in row["runs"].items():
        times = {lap["name"]: lap["seconds"] for lap in run}
        peak = max(lap["peak_mib"] for lap in run)
        of = f"{times['epoch']:.0f}", f"{times['embed']:.0f}", f"{peak:,.0f}"
        lines.append(
            (label + mark(row, "epoch", "embed"), *of, "yes" if peak < LIMIT else "**no**")
        )
    header = (row["case"], "one epoch, s", "embed, s", "peak, MiB", f"< {LIMIT:,} MiB")
    return markdown(header, lines)
