"""What type each cell is of.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..compute.settings import settled
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..run import Run
from ..schema import Schema
from .answering import (
    evaluate,
    on_device,
    open_cells,
    refuse_slot,
    settings_of,
    stream,
    write_provenance,
)
from .state import FittedState

#: What is told of each cell besides the probabilities; the last by some models alone.
COLUMNS = ("label", "confidence", "novelty")


@settled()
@checked
def classify(
    self: FittedState,
    data: Data | str | Path,
    *,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> pd.DataFrame:
    """Return the most probable label of each cell, out of those of the fit.

    Labels that the cells have already are not read. Some models can tell that a cell is unlike all that they
    learned from: its label is then ``unseen`` (``unseen (new)`` where the fit has a label of that name).

    Parameters
    ----------
    data
        AnnData, MuData, what `chreode.open` returned, or a path. Features are matched by name. Cells
        are streamed, so data on disk stay there.
    schema
        Where the roles live in `data`, if not where they lived in the fit.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.
    settings
        Fields of `run`, and what the model offers beside. Self-supervised models have ``method``, the
        ``"neighbours"`` of a cell or a ``"linear"`` probe, and ``unseen``, the novelty above which a cell is
        called unseen (0.95). Give cells that are not of the fit: one of its own cells is its own nearest.

    Returns
    -------
    A row per cell: ``label``; ``confidence``, the probability of the most probable label of the fit;
    ``novelty``, if the model can tell it; and the probability of every label, in a column of its name. NaN
    for cells that lack the modality.
    ``obs["<model>_label"]`` : the label, categorical.
    ``obs["<model>_confidence"]`` : the confidence, float32.
    ``obs["<model>_novelty"]`` : the novelty, float32, if the model can tell it: the share of labelled
    validation cells of the fit that lie nearer to its training cells (or to the mean of a type, by a linear
    probe) than this cell does. With fewer than 20 of them it is the share of labelled training cells.
    ``uns["chreode"]`` : under these names, JSON of model, version, configuration, spec and seed, and of what
    the model offers beside (``method`` and ``unseen``).
    """
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "classify", run, settings)
    for what in COLUMNS:
        refuse_slot(cells.data, f"{self.model.key}_{what}")
    source, usable = open_cells(self, "classify", cells, run, hidden=("label",))
    names = self.spec.categories["label"]
    found = np.full((len(source), len(names)), np.nan, np.float32)
    novelty = np.full(len(source), np.nan, np.float32)
    best, tells = np.full(len(source), -1), False
    with on_device(self, run) as (module, device):
        for rows, batch in stream(source, usable, "classify", run, device):
            told = evaluate(module.classify, batch, **options)
            tells = isinstance(told, Mapping)
            found[rows] = (told["probability"] if tells else told).numpy()
            best[rows] = found[rows].argmax(1)
            if tells:
                novelty[rows] = told["novelty"].numpy()
                best[rows[told["unseen"].numpy()]] = len(names)
    labels = [*names, *([_free("unseen", names, "new")] if tells else [])]
    columns: dict[str, Any] = {
        "label": pd.Categorical.from_codes(best, labels),
        "confidence": found.max(1),
        **({"novelty": novelty} if tells else {}),
    }
    table = pd.DataFrame(columns, index=cells.names)
    for what in table:
        slot = f"{self.model.key}_{what}"
        cells.data.obs[slot] = table[what]
        write_provenance(self, cells.data, slot, **options)
    own = [
        _free(name, (*COLUMNS, *names), "probability") if name in table else name for name in names
    ]
    return pd.concat([table, pd.DataFrame(found, index=cells.names, columns=own)], axis=1)


def _free(name: str, taken: Collection[str], what: str) -> str:
    """Return a name that is not taken, with what it is behind it if need be."""
    while name in taken:
        name += f" ({what})"
    return name
