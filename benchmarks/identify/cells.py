"""What embeddings tell of factors that are known: R² for wells that no reader has seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

import chreode as ch
from chreode import config
from chreode.bench.digest import fingerprint
from chreode.data.cells import Cells

from ..common import Row, Stopwatch
from .wells import DATA, r2, read

#: Of every fit: for SimCLR with its default views 50 and 400 gave the same R² within .03 (seed 0).
EPOCHS = 50
SEEDS = (0, 1, 2)
#: The views of these models are varied; the second number of seeds is for the intervals.
VARIED: dict[str, tuple[Any, int]] = {"SimCLR": (ch.SimCLR, 5), "VICReg": (ch.VICReg, 3)}
#: Models as they are. SimCLR and VICReg with "mask" are theirs.
MODELS: dict[str, Any] = {
    "MoCo": ch.MoCo, "SimSiam": ch.SimSiam, "NNCLR": ch.NNCLR, "BYOL": ch.BYOL,
    "Barlow Twins": ch.BarlowTwins, "masked autoencoder": ch.MaskedAutoencoder, "CLEAR": ch.CLEAR,
    "CLAIRE": ch.CLAIRE, "Concerto": ch.Concerto, "scVI": ch.SCVI,
}  # fmt: skip
#: Closed forms, which have no seed, and the weights that SimCLR starts from: a rate of 0 moves none.
PLAIN: dict[str, Any] = {
    "PCA, 10": ch.PCA(n_latent=10), "PCA, 64": ch.PCA(n_latent=64),
    "untrained": ch.SimCLR(lr=0.0, max_epochs=1),
}  # fmt: skip
UNTRAINED = "untrained"
AS_IT_IS = "default"
#: Each augmentation alone, at its default strength; five of them weaker and stronger too.
VIEWS: dict[str, dict[str, Any]] = {
    "none": {"augment": ()},
    **{n: {"augment": (n,)} for n in ("mask", "swap", "crossover", "thin", "noise")},
    **{n: {"augment": (n,)} for n in ("programmes", "mnn", "bbknn")},
    "mask, weak": {"augment": ("mask",), "mask": 0.05},
    "mask, strong": {"augment": ("mask",), "mask": 0.6},
    "swap, weak": {"augment": ("swap",), "swap": 0.03},
    "swap, strong": {"augment": ("swap",), "swap": 0.4},
    "crossover, weak": {"augment": ("crossover",), "crossover": 0.05},
    "crossover, strong": {"augment": ("crossover",), "crossover": 0.6},
    "thin, weak": {"augment": ("thin",), "thin": 0.5},
    "thin, strong": {"augment": ("thin",), "thin": 0.01},
    "noise, weak": {"augment": ("noise",), "noise_scale": 0.05},
    "noise, strong": {"augment": ("noise",), "noise_scale": 0.8},
}  # fmt: skip
N_DEFAULT = 9


def cases() -> list[Row]:
    """Return the cases, those first without which there is no answer; then strengths, then seeds."""
    default, strengths = list(VIEWS)[:N_DEFAULT], list(VIEWS)[N_DEFAULT:]
    found = [
        *_of(PLAIN, (AS_IT_IS,), 0), *_of(["SimCLR"], default, 0), *_of(MODELS, (AS_IT_IS,), 0),
        *_of(["SimCLR"], strengths, 0), *_of(["VICReg"], list(VIEWS), 0),
    ]  # fmt: skip
    for seed in range(1, max(n for _, n in VARIED.values())):
        varied = [name for name, (_, n) in VARIED.items() if seed < n]
        found += _of(varied, list(VIEWS), seed)
        if seed in SEEDS:
            found += _of([UNTRAINED, *MODELS], (AS_IT_IS,), seed)
    return found


def _of(models: Any, views: Any, seed: int) -> list[Row]:
    return [
        {"data": data, "model": model, "views": name, "seed": seed}
        for model in models for name in views for data in DATA
    ]  # fmt: skip


def model_of(case: Row) -> Any:
    """Return the model of a case with its options."""
    if case["model"] in PLAIN:
        return PLAIN[case["model"]]
    if case["model"] in VARIED:
        return VARIED[case["model"]][0](max_epochs=EPOCHS, **VIEWS[case["views"]])
    return MODELS[case["model"]](max_epochs=EPOCHS)


@cache
def opened(name: str, folder: Path) -> tuple[Any, str]:
    """Return the wells and a hash of what a fit reads of them."""
    wells = read(name, folder)
    return wells, fingerprint(Cells(wells, DATA[name].schema))


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (the contract of a table)
    wells, of_data = opened(case["data"], data)
    model, about = model_of(case), DATA[case["data"]]
    with Stopwatch() as watch:
        fitted = model.fit(wells, about.schema, seed=case["seed"], progress=False)
    x = fitted.embed(wells, progress=False)
    return {
        "r2": r2(x, wells.obs, about.factors), "n_latent": x.shape[1], "cells": wells.n_obs,
        "genes": wells.n_vars, "epochs": getattr(model, "max_epochs", None), "data": of_data,
        "config": config.as_dict(model), "state": fitted.provenance["state"],
        "threads": torch.get_num_threads(), **watch.times(),
    }  # fmt: skip
