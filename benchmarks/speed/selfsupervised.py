"""Throughput of SimCLR: without augmentations, with each alone and all, and a reference beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..common import Row
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, named, ratio, spread

SCSSL = ("mask", "noise", "swap", "crossover")
REFERENCE = Side("reference", "reference", rival=True)
PLAIN = Side("no augmentation", "chreode", options={"augment": []})
DEFAULT = Side("mask, the default", "chreode", options={"augment": ["mask"]})
ALL = Side("all four", "chreode", options={"augment": list(SCSSL)})
FURTHER = (*SCSSL, "thin", "programmes", "bbknn", "mnn")
LIGHTLY = "lightly==1.6.0"


def cases(quick: bool) -> list[Case]:
    epochs = 2 if quick else 6  # the first warms up
    data = {"cells": 2_000 if quick else 20_000, "genes": 4_000, "density": 0.09, "seed": 0}
    settings = {**data, "batch_size": 256, "epochs": epochs}
    each = tuple(Side(f"{name} alone", "chreode", options={"augment": [name]}) for name in FURTHER)
    return [
        Case(
            "selfsupervised", name, sides, settings, epochs * data["cells"] * len(sides) * 2e-4 + 60
        )
        for name, sides in (
            ("beside a reference", (PLAIN, DEFAULT, ALL, REFERENCE)),
            ("each alone", (PLAIN, *each)),
        )
    ]


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    given = simulated(
        folders.scratch, **{k: settings[k] for k in ("cells", "genes", "density", "seed")}
    )
    return {**given, "lightly": str(_wheel(folders.scratch))}


def _wheel(scratch: Path) -> Path:
    """Return lightly's wheel, which is not installed: it would bring another torch with it."""
    name = f"{LIGHTLY.replace('==', '-')}-*.whl"
    if not list(scratch.glob(name)):
        ask = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            LIGHTLY,
            "-d",
            scratch,
        ]
        subprocess.run(ask, check=True)
    return next(scratch.glob(name))


# the sides: laps are "import", "load", "set-up", "warm-up" (the first epoch) and "epoch"


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import torch

    import chreode as ch

    from .epochs import announcing
    from .training import Laps

    torch.set_num_threads(given["threads"])
    model = announcing(
        ch.SimCLR, Laps(lap), augment=tuple(given["augment"]), batch_size=given["batch_size"],
        max_epochs=given["epochs"],
    )  # fmt: skip
    lap("import")
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    model.fit(
        cells, ch.Schema(counts="X", batch="obs/batch"), validation=0, seed=given["seed"], device="cpu",
        progress=False,
    )  # fmt: skip
    lap("epoch")


def reference(given: Prepared, lap: Callable[..., None]) -> None:
    """Learn the same network as scSSL-Bench does: cells augmented one by one, lightly's loss and head."""
    import anndata
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from .training import Laps

    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    nt_xent, head = _lightly(given["lightly"])
    lap("import")
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    counts = cells.X.toarray()
    x = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    encoder = nn.Sequential(
        nn.Linear(x.shape[1], 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.BatchNorm1d(64),
    )
    network = nn.Sequential(encoder, head(64, 64, 64))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-6)
    pairs: Any = _Pairs(x, np.random.default_rng(given["seed"]))
    loader = DataLoader(pairs, batch_size=given["batch_size"], shuffle=True, drop_last=True)
    criterion, begin = nt_xent(temperature=0.5), Laps(lap)
    for _ in range(given["epochs"]):
        begin(None)
        for one, two in loader:
            optimiser.zero_grad()
            criterion(network(one), network(two)).backward()
            optimiser.step()
    lap("epoch")


class _Pairs:
    """Two views of a cell, each augmentation with a chance of a half: scSSL-Bench's default ones."""

    def __init__(self, x: np.ndarray, rng: np.random.Generator) -> None:
        self.x, self.rng = x, rng

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.view(i), self.view(i)

    def view(self, i: int) -> np.ndarray:
        x, rng = self.x[i].copy(), self.rng
        n = len(x)
        if rng.random() < 0.5:
            x[rng.permutation(n)[: n // 5]] = 0
        if rng.random() < 0.5:
            at = rng.permutation(n)[: 4 * n // 5]
            x[at] += rng.normal(0, 0.2, len(at)).astype(np.float32)
        if rng.random() < 0.5:
            one, two = rng.permutation(n)[: n // 10 // 2 * 2].reshape(2, -1)
            x[one], x[two] = x[two], x[one]
        if rng.random() < 0.5:
            at = rng.permutation(n)[: n // 4]
            x[at] = self.x[rng.integers(len(self.x)), at]
        return x


def _lightly(wheel: str) -> tuple[Any, Any]:
    """Return lightly's loss and head; for what it imports of torchvision, and needs elsewhere, a stub."""
    from types import ModuleType

    class Anything(type):
        def __getattr__(cls, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

    class Stub(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(Anything("Stub", (), {}), name)

    parts = (
        "",
        ".models",
        ".models.vision_transformer",
        ".ops",
        ".transforms",
        ".datasets",
        ".io",
        ".utils",
    )
    sys.modules.update({f"torchvision{part}": Stub(f"torchvision{part}") for part in parts})
    sys.path.insert(0, wheel)
    from lightly.loss.ntx_ent_loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    return NTXentLoss, SimCLRProjectionHead


# the table


def render(rows: list[Row]) -> list[str]:
    header = ("SimCLR", "augmentations", "cells/s", "share of the pace without")
    return markdown(header, (line for row in rows for line in _told(row)))


def _told(row: Row) -> Iterator[tuple[str, ...]]:
    seconds = {label: laps(row, label, "epoch") for label in row["runs"]}
    for label, of in seconds.items():
        share = ratio(seconds[PLAIN.label], of)
        told = f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
        who = row["case"] + mark(row, "epoch"), named(row, label)
        yield *who, spread(row["settings"]["cells"] / of), "1" if label == PLAIN.label else told
