"""Fits of five minutes: as many epochs as go into them, by a short fit on the same cells."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import chreode as ch
from chreode import config
from chreode.data.cells import Cells
from chreode.data.read import Data
from chreode.trials.digest import digest, fingerprint
from chreode.version import code_hash

from ..common import Row, Stopwatch, say

#: Time of a fit on a core of its own.
MINUTES = 5.0
#: Share of it that the autoencoder gets, of a model that has two phases.
FIRST = 0.4
#: Epochs beyond which none is expected to gain: the defaults of scvi-tools, the paper's, and ours.
MOST = {"scvi": (400,), "cfgen": (400, 3000)}
PAPER = (300, 1500)


def budgeted(model: Any, data: Data, schema: ch.Schema, rows: np.ndarray) -> tuple[Any, Row]:
    """Return the model with the epochs that fit, and what a short fit said of their cost."""
    few = {"max_epochs": 5, **({"flow_epochs": 20} if model.key == "cfgen" else {})}
    told = schema if "label" in model.uses else ch.Schema(counts=schema.counts)
    with Stopwatch() as watch:
        short = dataclasses.replace(model, **few).fit(data, told, rows=rows, progress=False)
    # what else runs on the machine is not the model's cost, and the first epoch loads and compiles
    cost = watch.own() * _learned(short.history).groupby("phase", sort=False)["seconds"].median()
    shares = [1.0] if len(cost) == 1 else [FIRST, 1 - FIRST]
    most = PAPER if getattr(model, "preset", "") == "paper" else MOST[model.key]
    epochs = [
        max(1, min(limit, int(60 * MINUTES * share / seconds)))
        for limit, share, seconds in zip(most, shares, cost, strict=True)
    ]
    chosen = dataclasses.replace(model, **dict(zip(few, epochs, strict=True)))
    return chosen, {"epochs": epochs, "epoch_seconds": [*map(float, cost)]}


def fit(
    model: Any, data: Data, schema: ch.Schema, rows: np.ndarray, seed: int, folder: Path
) -> tuple[ch.Fitted, Row]:
    """Return the fit of a model under the budget, and how it came about; `folder` keeps it."""
    about = {
        "data": fingerprint(Cells(data, schema)), "model": model.key, "config": config.as_dict(model),
        "rows": digest(rows), "seed": seed, "minutes": MINUTES, "code": code_hash(),
    }  # fmt: skip
    place = folder / digest(about)
    told = {k: about[k] for k in ("data", "model", "config", "seed", "code")}
    told["threads"] = torch.get_num_threads()
    if not place.exists():
        chosen, _ = budgeted(model, data, schema, rows)
        start = time.perf_counter()
        fitted = chosen.fit(data, schema, rows=rows, seed=seed, progress=False)
        say(f"fitted {model.key}, seed {seed}, in {time.perf_counter() - start:.0f} s")
        fitted.save(place)
    fitted = ch.load(place)
    told["epochs"] = _learned(fitted.history).groupby("phase", sort=False).size().to_list()
    told["seconds"] = float(fitted.history["seconds"].sum())
    told["state"] = fitted.provenance["state"]
    return fitted, told


def _learned(history: pd.DataFrame) -> pd.DataFrame:
    """Return the phases that have epochs."""
    return history[history["phase"] != "effects"]
