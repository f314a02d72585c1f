"""Where cells go, and what drives them.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData

from ..compute.settings import settled
from ..config.arguments import checked
from ..data.batch import CellBatch
from ..data.cells import Cells
from ..data.collect import collect_cells, refuse_what_cannot_be_kept
from ..data.places import holder
from ..data.read import Data, refuse_over
from ..errors import ConfigError, SchemaError, near
from ..ranking import Ranking
from ..run import Run
from ..schema import Schema, Spec
from .answering import (
    evaluate,
    on_device,
    open_cells,
    refuse_slot,
    settings_of,
    stream,
    uns,
    var_of,
    write_provenance,
)
from .conditions import (
    Conditions,
    as_mapping,
    at_start,
    encode,
    refuse_no_amount,
    with_conditions,
)
from .state import FittedState


@settled()
@checked
def trajectory(
    self: FittedState,
    data: Data | str | Path | None = None,
    times: Sequence[float] | None = None,
    *,
    start: str | None = None,
    to: Conditions | None = None,
    into: str | Path | None = None,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> AnnData | Path:
    """Return where cells were, and where they will be.

    Parameters
    ----------
    data
        Cells to begin from, each at its own time.
    times
        When to look, before or after it (default: 20 times from the first to the last of the fit).
    start
        In place of `data`: a trajectory of the fit, from its smoothed start; ``"all cells"``, where the fit
        knew of none.
    to
        ``{"knockout": "GATA1"}``: genes that are absent from then on, several as ``A+B``.
    into
        Write to this .h5ad instead of memory.

    Returns
    -------
    A new AnnData (or the path `into`) of cells x times, one cell's times together: float32 expression in
    ``X``; ``obs`` has the time and the trajectory, ``start`` names the cell, ``start_time`` is its own
    time, and its other columns are named ``start_…``, as they are true of the start alone; a name that is
    taken has an underscore behind it. ``var`` is that of the cells.

    Raises
    ------
    ConfigError
        If there are both cells and a start, or neither, or a time lies further beyond those of the fit
        than their span.
    BlowUpError
        If every path leaves the finite numbers; of several, those that do are NaN, and a warning says so.

    Warns
    -----
    ForecastWarning
        Of times more than a tenth of the span beyond those of the fit, and of values that would leave the
        range of their gene in the cells of the fit by more than a tenth of it. All are held in that range,
        or between it and the cell's own value.
    """
    run, options = settings_of(self, "trajectory", run, settings)
    self.require("trajectory")
    if (data is None) == (start is None):
        raise ConfigError("trajectory begins at cells (data) or at a path of the fit (start).")
    at = self.module.clock_times(20) if times is None else _finite(times)
    rising, back = np.unique(at, return_inverse=True)
    scaled = self.spec.narrowed("time", rising)
    if "time" in as_mapping(self, to):
        raise ConfigError("trajectory begins at each cell's own time: leave time out of to.")
    target = encode(self, to)
    role = self.spec.either("expression", "counts")
    cells = None
    if start is not None:
        first, usable = _named_start(self.spec, self.module, start), np.zeros(1, int)
        obs = pd.DataFrame({self.column("trajectory"): [start]}, index=[start])
        begin = self.spec.outside("time", first["time"].numpy())
    else:
        assert data is not None
        cells = Cells.of(data, schema or self.schema)
        refuse_over(cells.data, into)
        source, usable = open_cells(self, "trajectory", cells, run)
        refuse_no_amount(self, source, usable, to)
        obs, begin = cells.obs.iloc[usable], source.columns["time"][usable]
    refuse_what_cannot_be_kept(len(usable) * len(at), self.spec.n_features(role), into)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with on_device(self, run) as (module, device):
            when = torch.from_numpy(scaled).to(device)
            batches = (
                [(usable, _named_start(self.spec, module, start))]
                if start is not None
                else stream(source, usable, "trajectory", run, device)
            )
            for _, batch in batches:
                found = evaluate(module.trajectory, with_conditions(batch, target), when, **options)
                yield {role: found[:, back].flatten(0, 1).numpy()}

    rows, when = np.repeat(np.arange(len(obs)), len(at)), self.column("time", schema)
    kept = [when, self.column("trajectory", schema)]
    table = at_start(obs, kept, start=obs.index.to_numpy(), start_time=begin).iloc[rows]
    table = table.assign(**{when: np.tile(at, len(obs))})
    table.index = pd.Index([f"{name}_{i}" for name in obs.index for i in range(len(at))])
    return collect_cells(
        chunks(), table, {role: var_of(self, role, cells)},
        uns(self, "trajectory", to=to), counts=False, into=into,
    )  # fmt: skip


def _finite(times: Sequence[float]) -> np.ndarray:
    at = np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not np.isfinite(at).all():
        raise ConfigError("times: expected a list of finite numbers.")
    return at


def _named_start(spec: Spec, module: Any, name: str) -> CellBatch:
    """Return the smoothed start of a trajectory of the fit, as a cell on the device of `module`."""
    known = spec.categories.get("trajectory", ("all cells",))
    if name not in known:
        raise SchemaError(f"start={name!r}: the fit has no such path.{near(name, known)}")
    start: CellBatch = module.named_start(known.index(name))
    return start


@settled()
@checked
def rank(
    self: FittedState,
    data: AnnData | MuData | None = None,
    *,
    run: Run = Run(),
    **settings: Any,
) -> pd.DataFrame:
    """Return which genes drive which, or how much each feature matters: the model says which of the two.

    Parameters
    ----------
    data
        Cells, or none, to whose features scores are written.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    Of models of dynamics ``source``, ``target``, ``weight`` and ``confidence`` of every edge between
    different genes that is not exactly 0, the strongest first. The weight is the mean of
    ∂(velocity of target)/∂(source) along observed paths, in standard deviations of the genes and in the time
    from first to last cell: above 0 the source activates. The confidence is the share of refits on resampled
    paths in which the edge has that sign and is stronger than 95 % of those that are found where paths of
    genes are exchanged, so that none is true; NaN where the fit made no refits (`n_refits`).
    Of models that choose features ``feature``, ``score`` and ``confidence`` of each, by importance.
    ``var["<model>_score"]`` of `data`, if given : float32, the score of each feature, or the sum of the
    absolute weights by which it drives others; NaN for features not trained.
    """
    run, options = settings_of(self, "rank", run, settings)
    self.require("rank")
    with on_device(self, run) as (module, _):
        found: Ranking = module.rank(**options)
    role = self.spec.either("expression", "counts")
    names = self.spec.features[role]
    if data is not None:
        if not isinstance(data, (AnnData, MuData)):
            raise ConfigError("rank: expected an AnnData in memory, or no data for the table.")
        key = f"{self.model.key}_score"
        refuse_slot(data, key)
        owner: Any = holder(data, dict(self.schema.places())[role], role)
        score = pd.Series(found.score.detach().cpu().numpy(), index=list(names))
        owner.var[key] = score.reindex(owner.var_names).to_numpy(np.float32)
        write_provenance(self, data, key)
    return found.table(names)
