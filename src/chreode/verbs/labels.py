"""What type each cell is of.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

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

    Labels that the cells have already are not read.

    Parameters
    ----------
    data
        AnnData, MuData, what `chreode.open` returned, or a path. Features are matched by name. Cells
        are streamed, so data on disk stay there.
    schema
        Where the roles live in `data`, if not where they lived in the fit.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    A row per cell: ``label``; ``confidence``, its probability; and the probability of every label, in a
    column of its name. NaN for cells that lack the modality.
    ``obs["<model>_label"]`` : the label, categorical.
    ``obs["<model>_confidence"]`` : its probability, float32.
    ``uns["chreode"]`` : under both names, JSON of model, version, configuration, spec and seed.
    """
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "classify", run, settings)
    slots = {what: f"{self.model.key}_{what}" for what in ("label", "confidence")}
    for slot in slots.values():
        refuse_slot(cells.data, slot)
    source, usable = open_cells(self, "classify", cells, run, hidden=("label",))
    names = self.spec.categories["label"]
    found = np.full((len(source), len(names)), np.nan, np.float32)
    with on_device(self, run) as (module, device):
        for rows, batch in stream(source, usable, "classify", run, device):
            found[rows] = evaluate(module.classify, batch, **options).numpy()
    best = np.full(len(source), -1)
    best[usable] = found[usable].argmax(1)
    table = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(best, list(names)),
            "confidence": found[np.arange(len(best)), best],
        },
        index=cells.names,
    )
    for what, slot in slots.items():
        cells.data.obs[slot] = table[what]
        write_provenance(self, cells.data, slot)
    columns = [_column(name, (*table, *names)) if name in table else name for name in names]
    return pd.concat([table, pd.DataFrame(found, index=cells.names, columns=columns)], axis=1)


def _column(name: str, taken: tuple[str, ...]) -> str:
    """Return a name for the probability of a label whose own is taken."""
    while name in taken:
        name += " (probability)"
    return name
