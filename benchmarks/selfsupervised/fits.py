"""Fits of thirty seconds: as many epochs as go into it, by a short fit on the same cells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import chreode as ch
from chreode import config, store
from chreode.data.cells import Cells
from chreode.data.read import Data
from chreode.trials.digest import digest, fingerprint
from chreode.version import code_hash

from ..common import Row, Stopwatch

#: Time of a fit on a core of its own.
SECONDS = 30.0
#: Epochs beyond which none is expected to gain: the default of all models here.
MOST = 400
_SHORT = 3


def budgeted(
    model: Any, data: Data, schema: ch.Schema, rows: np.ndarray, folder: Path
) -> tuple[Any, Row]:
    """Return the model with the epochs that fit, and what an epoch costs; `folder` remembers it."""
    about = {
        "data": fingerprint(Cells(data, schema)), "rows": digest(rows), "model": model.key,
        "config": config.as_dict(model), "code": code_hash(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    place = folder / f"{digest(about)}.json"
    if not place.exists():
        with Stopwatch() as watch:
            short = dataclasses.replace(model, max_epochs=_SHORT)
            history = short.fit(data, schema, rows=rows, progress=False).history
        # what else runs on the machine is not the model's cost, and the first epoch loads and compiles
        epoch = watch.own() * float(history["seconds"].iloc[1:_SHORT].median())
        folder.mkdir(parents=True, exist_ok=True)
        with store.aside(place) as made:
            made.write_text(json.dumps(epoch))
    epoch = json.loads(place.read_text())
    epochs = max(1, min(MOST, int(SECONDS / epoch)))
    return dataclasses.replace(model, max_epochs=epochs), {"epochs": epochs, "epoch_seconds": epoch}
