"""Cells as a model sees them: decoded, under other conditions, and new.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.settings import settled
from ..config.arguments import checked
from ..data.batch import CellBatch
from ..data.cells import Cells
from ..data.collect import collect_cells, refuse_what_cannot_be_kept
from ..data.read import Data, refuse_over
from ..data.source import CHUNK_VALUES
from ..errors import ConfigError, SchemaError, near
from ..run import Run
from ..schema import NUMBER_ROLES, Schema
from .answering import (
    at_least,
    blocks,
    check_output,
    evaluate,
    features,
    on_device,
    open_cells,
    settings_of,
    stream,
    tell_left_out,
    uns,
    var_of,
)
from .conditions import (
    Conditions,
    as_mapping,
    at_start,
    decode_conditions,
    draw_conditions,
    encode,
    shortened,
    with_conditions,
)
from .state import FittedState


@settled()
@checked
def reconstruct(
    self: FittedState,
    data: Data | str | Path,
    *,
    role: str = "counts",
    to: Conditions | str | None = None,
    library: float | None = None,
    into: str | Path | None = None,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> AnnData | Path:
    """Return the expected values of every trained feature, without the noise of counting.

    Parameters
    ----------
    role
        Matrix role to decode.
    to
        Conditions to decode under, instead of the cell's own: ``{"batch": "p3"}`` is the corrected
        expression as it would have been seen in batch p3. Nothing is corrected without it.
    library
        Total to scale every cell to (None: the cell's own depth). Models of counts only.
    into
        Write to this .h5ad instead of memory.

    Returns
    -------
    A new AnnData with float32 in ``X`` and the cells' ``obs`` and ``var`` (or the path `into`). Cells
    without what the model reads are left out.
    ``uns["chreode"]["reconstruct"]`` says the scale: counts, log1p of counts per 10,000, or that of the
    `expression` of the fit.
    """
    cells = Cells.of(data, schema or self.schema)
    run, options = settings_of(self, "reconstruct", run, settings)
    decoded = [r for r in self.spec.features if r.partition("/")[0] in ("counts", "expression")]
    if role != "counts":
        decoded = [r for r in self.spec.features if r == role]
    if not decoded:
        raise SchemaError(f"This model does not decode {role!r}.{near(role, self.spec.features)}")
    if library is not None and self.scale != "counts":
        raise ConfigError(f"This {self.model.key} decodes {self.scale}; it has no library to set.")
    if library is not None and not 0 < library < np.inf:
        raise ConfigError(f"library={library}: expected a finite number above 0.")
    refuse_over(cells.data, into)
    source, usable = open_cells(self, "reconstruct", cells, run, to)
    refuse_what_cannot_be_kept(len(usable), self.spec.n_features(decoded[0]), into)
    target = encode(self, to)

    options |= {} if library is None else {"library": library}
    options |= {"role": role} if self.module.drawn else {}

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with on_device(self, run) as (module, device):
            for _, batch in stream(source, usable, "reconstruct", run, device):
                found = evaluate(
                    module.reconstruct, batch, with_conditions(batch, target), **options
                )
                yield {role: found.numpy()}

    return collect_cells(
        chunks(), cells.obs.iloc[usable], {role: var_of(self, decoded[0], cells)},
        uns(self, "reconstruct", to=to), counts=False, into=into,
    )  # fmt: skip


@settled()
@checked
def predict(
    self: FittedState,
    data: Data | str | Path,
    *,
    to: Conditions | str | None = None,
    seed: int = 0,
    into: str | Path | None = None,
    schema: Schema | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Data | Path:
    """Return the same cells as they would be measured under other conditions, or what was not measured.

    Self-supervised models, such as SimCLR, fill in protein from expression if they were fitted with both.
    Other models change conditions.

    Parameters
    ----------
    to
        Conditions by role, covariate or obs column; a bare string means `perturbation`. ``{}`` keeps the
        cells' own conditions (posterior predictive counts); a model of time carries them to the last time
        of the fit where none is named. From models that multiply a perturbation by its dose, cells of dose 0
        need a dose too: ``{"perturbation": "KLF1", "dose": 10}``. Models that fill in a modality have no
        conditions to change: leave it out.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts, log1p of counts
    per 10,000 or what `expression` held for others, and expected counts (float32, NaN where nothing is known)
    of a modality that is filled in; ``uns["chreode"]["predict"]`` says which. ``obs`` and ``var`` are the
    cells' own, with the columns of `to` replaced; what these held is in ``measured_…``. Cells without what
    the model reads are left out; where a modality is filled in, a warning counts them. Where cells are
    carried in time, ``start_time`` is their own time and the other columns are named ``start_…``, as in
    `trajectory`. From a model of several kinds of counts: a MuData.
    """
    self.require("predict")
    _refuse_conditions(self, to)
    cells = Cells.of(data, schema or self.schema)
    if self.module.fills:  # its place need not be there
        cells = cells.narrowed({*self.spec.roles} - {*self.module.drawn})
    run, options = settings_of(self, "predict", run, settings)
    refuse_over(cells.data, into)
    source, usable = open_cells(self, "predict", cells, run, to)
    check_output(self, len(usable), into)
    if self.module.fills:
        tell_left_out(source, usable)
    target = encode(self, to)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        with on_device(self, run) as (module, device):
            for number, (_, batch) in enumerate(stream(source, usable, "predict", run, device)):
                noise = Rng(seed).scope("noise", number)
                yield blocks(
                    self,
                    evaluate(
                        module.predict,
                        batch,
                        with_conditions(batch, target),
                        noise=noise,
                        **options,
                    ),
                )

    moved = {**self.module.implied("predict"), **as_mapping(self, to)}
    numbers = (*self.spec.continuous, *NUMBER_ROLES)  # which the command line gives as text
    values = {self.column(k, schema): float(v) if k in numbers else v for k, v in moved.items()}
    obs = cells.obs.iloc[usable].copy()
    if "time" in moved:
        began = {"start_time": source.columns["time"][usable]} if "time" in source.columns else {}
        obs = at_start(obs, [*values, self.column("trajectory", schema)], **began)
    else:  # under which conditions each cell was measured
        own = {f"measured_{name}": obs[name] for name in values if name in obs}
        obs = obs.assign(**{name: v for name, v in own.items() if name not in obs})
    for name, value in values.items():
        obs[name] = value
    scale = {"scale": "counts"} if self.module.fills else {}
    return collect_cells(
        chunks(), obs, features(self, cells), uns(self, "predict", to=to, seed=seed, **scale),
        counts=self.model.scale == "counts" and not self.module.fills, into=into,
    )  # fmt: skip


def _refuse_conditions(self: FittedState, to: Conditions | str | None) -> None:
    """Refuse conditions for a model that has none to change, and a question without any for the others."""
    if self.module.fills and to:
        filled = " and ".join(self.module.drawn)
        raise ConfigError(
            f"{self.model.key} fills in {filled} and has no conditions to change: leave out to."
        )
    if not self.module.fills and to is None:
        raise ConfigError(
            f"Say under which conditions {self.model.key} is to predict, as in to={{'batch': 'p3'}}. to={{}} "
            "keeps the cells' own."
        )


@settled()
@checked
def generate(
    self: FittedState,
    n: int,
    *,
    given: Conditions | None = None,
    seed: int = 0,
    into: str | Path | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Data | Path:
    """Return new cells.

    Parameters
    ----------
    n
        Number of cells.
    given
        Conditions by role, covariate or obs column, in any combination and order: one value for all
        cells, or one for each. What is left open is drawn from the training cells that agree with most of
        it, in the proportions that all training cells have. From models that multiply a perturbation by its
        dose, the dose of a perturbation is one of perturbed cells.
    settings
        Fields of `run`, and what the model offers beside, as CFGen does ``guidance``, the weight of the
        conditions: 1 is the model as trained, 0 ignores them, above 1 draws cells more typical of them. A
        weight per attribute (``{"label": 2}``, the others 1) composes the attributes instead of giving them
        together.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts; ``obs`` holds
    the conditions. From a model of several kinds of counts: a MuData of such.
    """
    self.require("generate")
    run, options = settings_of(self, "generate", run, settings)
    at_least("n", n, 0)
    check_output(self, n, into)
    columns = draw_conditions(self, n, given, Rng(seed).numpy("conditions"))
    size = int(np.clip(CHUNK_VALUES // max(map(len, features(self).values())), 16, 4096))

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        starts = range(0, n, size)
        with (
            on_device(self, run) as (module, device),
            bar(len(starts), "generate", run.progress) as shown,
        ):
            for number, start in enumerate(starts):
                rows = np.arange(start, min(start + size, n))
                chunk = {k: self.spec.narrowed(k, v[rows]) for k, v in columns.items()}
                tensors = {k: torch.from_numpy(v).to(device) for k, v in chunk.items()}
                batch = CellBatch(torch.from_numpy(rows).to(device), {}, columns=tensors)
                noise = Rng(seed).scope("noise", number)
                yield blocks(self, evaluate(module.generate, batch, noise=noise, **options))
                shown.update()

    obs = decode_conditions(self, columns, n)
    return collect_cells(
        chunks(), obs, features(self),
        uns(self, "generate", given=shortened(given), seed=seed, **options),
        counts=self.model.scale == "counts", into=into,
    )  # fmt: skip
