"""What latent dimensions do to features, and how much of each view they explain.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from ..compute.settings import settled
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.places import holder
from ..data.read import Data
from ..errors import ConfigError
from ..run import Run
from ..schema import Schema
from .answering import (
    evaluate,
    modality_names,
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
def loadings(
    self: FittedState, data: AnnData | MuData | None = None
) -> pd.DataFrame | dict[str, pd.DataFrame]:
    """Return what each latent dimension does to each feature, for models with a linear decoder.

    Returns
    -------
    Features x latent dimensions. Of a model of several views: such a table for each, by modality (by role,
    where a modality holds several). Of a model with several kinds of latent dimensions: one for each, by
    name.
    ``varm["<model>_loadings"]`` of `data`, if given : the same, float32; NaN for features not trained. Of
    several views: in each modality. Of several kinds: ``varm["<model>_<name>_loadings"]``. Views in
    ``obsm`` have no such slot.
    """
    self.require("loadings")
    found = self.module.loadings()
    if isinstance(found, Tensor):
        (table,) = (one for _, _, one in _tables(self, {"": found}))
        if data is not None:
            _in_memory(data)
            _write(self, data, f"{self.model.key}_loadings", table)
        return table
    tables = list(_tables(self, found))
    if data is not None:
        _in_memory(data)
        _write_all(self, data, tables)
    names = modality_names(self, [r for r in found if r in self.spec.features])
    return {names.get(name, name): table for name, _, table in tables}


def _tables(self: FittedState, found: dict[str, Tensor]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the name of each set of loadings, the role of its features, and its table."""
    for name, values in found.items():
        role = name if name in self.spec.features else next(iter(self.spec.features))
        kind = f"{self.model.key}_{name}" if name and name != role else self.model.key
        columns = [f"{kind}_{i}" for i in range(values.shape[1])]
        index = list(self.spec.features[role])
        yield name, role, pd.DataFrame(values.detach().numpy(), index=index, columns=columns)


def _in_memory(data: Any) -> None:
    if not isinstance(data, (AnnData, MuData)):
        raise ConfigError("loadings: expected an AnnData in memory, or no data for the table.")


def _write(self: FittedState, owner: Any, key: str, table: pd.DataFrame) -> None:
    refuse_slot(owner, key)
    owner.varm[key] = table.reindex(owner.var_names).to_numpy(np.float32)
    write_provenance(self, owner, key)


def _write_all(
    self: FittedState, data: AnnData | MuData, tables: list[tuple[str, str, pd.DataFrame]]
) -> None:
    """Write every table beside the features that it is of; nothing, if one has no place."""
    places = dict(self.schema.places())
    held = [(name, role, holder(data, places[role], role), t) for name, role, t in tables]
    shared = [id(owner) for name, role, owner, _ in held if name == role]
    for name, role, owner, table in held:
        if places[role].slot == "obsm":
            continue
        alone = name == role and shared.count(id(owner)) == 1
        kind = "" if alone else f"_{name.replace('/', '_')}"
        _write(self, owner, f"{self.model.key}{kind}_loadings", table)


@settled()
@checked
def variance_explained(
    self: FittedState,
    data: Data | str | Path,
    *,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> pd.DataFrame:
    """Return how much of each view each factor explains, and all of them together.

    Returns
    -------
    R² = 1 − Σ (x − x̂)² / Σ (x − mean)² over the entries of `data` that were measured, the mean being that
    of the fit. A row per factor, as if it were alone, and a row ``all``; a column per view, called as in
    `loadings`. Rows need not add up to the last. NaN for a view that no cell has. Writes nothing.

    References
    ----------
    Argelaguet et al. (2018), Molecular Systems Biology 14:e8124.
    """
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "variance_explained", run, settings)
    source, usable = open_cells(self, "variance_explained", cells, run)
    squares: dict[str, Any] = {}
    with on_device(self, run) as (module, device):
        for _, batch in stream(source, usable, "variance explained", run, device):
            for role, part in evaluate(module.variance_explained, batch, **options).items():
                squares[role] = squares.get(role, 0) + part.double().numpy()
    names = modality_names(self, list(squares))
    with np.errstate(invalid="ignore"):  # of a view that is not there
        shares = {names[role]: 1 - total[1:] / total[0] for role, total in squares.items()}
    n = len(next(iter(squares.values()))) - 2
    return pd.DataFrame(shares, index=[*(f"{self.model.key}_{i}" for i in range(n)), "all"])
