"""What a fitted model is asked: stream cells → a capability of the module → slots, with provenance.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float
from mudata import MuData

from . import read
from .answering import (
    Conditions,
    as_mapping,
    ask,
    at_least,
    blocks,
    decode_conditions,
    draw_conditions,
    encode,
    features,
    guidance_options,
    open_cells,
    refuse_slot,
    require,
    room,
    stream,
    told,
    under,
    uns,
    write_provenance,
)
from .arguments import checked
from .collect import collect_cells, refuse_what_cannot_be_kept
from .data.batch import CellBatch
from .data.source import CHUNK_VALUES
from .errors import CapabilityError, ConfigError, SchemaError, near
from .learn.phase import bar
from .learn.rng import Rng
from .read import Data
from .schema import NUMBER_ROLES, Schema
from .surroundings import settled

if TYPE_CHECKING:
    from .fitted import Fitted


@settled()
@checked
def embed(
    self: Fitted,
    data: Data | str | Path,
    *,
    to: Conditions | str | None = None,
    key_added: str | None = None,
    schema: Schema | None = None,
    progress: bool | None = None,
) -> Float[np.ndarray, "cells z"]:
    """Return the latent coordinates of cells.

    Parameters
    ----------
    data
        AnnData, MuData, what `chreode.open` returned, or a path. Features are matched by name. Cells
        are streamed, so data on disk stay there.
    to
        Conditions to move every cell to, for models that can say where in their latent space it would
        then be: ``{"batch": "p3"}`` gives coordinates with the batches taken out.
    key_added
        Slot to write (default ``X_<model>``, or ``X_<model>_to`` under other conditions).
    schema
        Where the roles live in `data`, if not where they lived in the fit.

    Returns
    -------
    float32, cells x latent dimensions; NaN for cells that lack the modality.
    ``obsm[key_added]`` : the same.
    ``uns["chreode"][key_added]`` : JSON of model, version, configuration, spec and seed.
    """
    data = read.read(data)
    if to is not None and not self.model.inverts:
        raise CapabilityError(
            f"{self.model.key} embeds cells under no other conditions; leave out to."
        )
    key = key_added or f"X_{self.model.key}{'' if to is None else '_to'}"
    refuse_slot(data, key)
    verb = "embed" if to is None else "predict"
    source, usable = open_cells(self, verb, data, schema, progress, to)
    target = encode(self, to)
    out = None
    for rows, batch in stream(source, usable, "embed", progress):
        other = () if to is None else (under(batch, target),)
        z = ask(self.module.embed, batch, *other).numpy()
        if out is None:
            out = np.full((len(source), z.shape[1]), np.nan, np.float32)
        out[rows] = z
    assert out is not None, "no cells"
    data.obsm[key] = out
    write_provenance(self, data, key, **({} if to is None else {"to": to}))
    return out


@settled()
@checked
def posterior(
    self: Fitted,
    data: Data | str | Path,
    *,
    n_samples: int = 1,
    seed: int = 0,
    schema: Schema | None = None,
    progress: bool | None = None,
) -> Float[np.ndarray, "n_samples cells z"]:
    """Return draws of the latent coordinates given each cell's data.

    Returns
    -------
    float32, samples x cells x latent dimensions. Writes nothing.
    """
    at_least("n_samples", n_samples, 1)
    data = read.read(data)
    source, usable = open_cells(self, "posterior", data, schema, progress)
    parts = []
    for number, (_, batch) in enumerate(stream(source, usable, "posterior", progress)):
        noise = Rng(seed).scope("noise", number)
        parts.append(ask(self.module.posterior, batch, n_samples, noise=noise).numpy())
    drawn = np.concatenate(parts, axis=1)
    out = np.full((n_samples, len(source), drawn.shape[2]), np.nan, np.float32)
    out[:, usable] = drawn
    return out


@settled()
@checked
def reconstruct(
    self: Fitted,
    data: Data | str | Path,
    *,
    role: str = "counts",
    to: Conditions | str | None = None,
    library: float | None = None,
    into: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool | None = None,
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
    A new AnnData with float32 in ``X`` and the cells' ``obs`` (or the path `into`).
    ``uns["chreode"]["reconstruct"]`` says the scale: counts, log1p of counts per 10,000, or that of the
    `expression` of the fit.
    """
    data = read.read(data)
    decoded = [r for r in self.spec.features if r.partition("/")[0] in ("counts", "expression")]
    if role != "counts":
        decoded = [r for r in self.spec.features if r == role]
    if not decoded:
        raise SchemaError(f"This model does not decode {role!r}.{near(role, self.spec.features)}")
    if library is not None and self.scale != "counts":
        raise ConfigError(f"This {self.model.key} decodes {self.scale}; it has no library to set.")
    read.refuse_over(data, into)
    source, usable = open_cells(self, "reconstruct", data, schema, progress, to)
    refuse_what_cannot_be_kept(len(usable), self.spec.n_features(decoded[0]), into)
    target = encode(self, to)

    more: dict[str, Any] = {} if library is None else {"library": library}
    more |= {"role": role} if self.module.drawn else {}

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for _, batch in stream(source, usable, "reconstruct", progress):
            found = ask(self.module.reconstruct, batch, under(batch, target), **more)
            yield {role: found.numpy()}

    return collect_cells(
        chunks(), data.obs.iloc[usable], {role: self.spec.features[decoded[0]]},
        uns(self, "reconstruct", to=to), counts=False, into=into,
    )  # fmt: skip


@settled()
@checked
def predict(
    self: Fitted,
    data: Data | str | Path,
    *,
    to: Conditions | str,
    seed: int = 0,
    into: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool | None = None,
) -> Data | Path:
    """Return the same cells as they would be measured under other conditions.

    Parameters
    ----------
    to
        Conditions by role, covariate or obs column; a bare string means `perturbation`. ``{}`` keeps the
        cells' own conditions (posterior predictive counts); a model of time carries them to the last time
        of the fit where none is named.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts, log1p of counts
    per 10,000 or what `expression` held for others; ``uns["chreode"]["predict"]`` says which. ``obs`` is the
    cells' own, with the columns of `to` replaced. From a model of several kinds of counts: a MuData.
    """
    data = read.read(data)
    read.refuse_over(data, into)
    source, usable = open_cells(self, "predict", data, schema, progress, to)
    room(self, len(usable), into)
    target = encode(self, to)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for number, (_, batch) in enumerate(stream(source, usable, "predict", progress)):
            noise = Rng(seed).scope("noise", number)
            yield blocks(self, ask(self.module.predict, batch, under(batch, target), noise=noise))

    moved = {"time": self.module.clock_times(2)[-1]} if "trajectory" in self.verbs else {}
    moved |= as_mapping(self, to)
    numbers = (*self.spec.continuous, *NUMBER_ROLES)  # which the command line gives as text
    values = {self.column(k, schema): float(v) if k in numbers else v for k, v in moved.items()}
    obs = data.obs.iloc[usable].copy()
    for name, value in values.items():
        obs[name] = value
    return collect_cells(
        chunks(), obs, features(self),
        uns(self, "predict", to=to, seed=seed), counts=self.model.scale == "counts", into=into,
    )  # fmt: skip


@settled()
@checked
def generate(
    self: Fitted,
    n: int,
    *,
    given: Conditions | None = None,
    guidance: float | Mapping[str, float] = 1.0,
    seed: int = 0,
    into: str | Path | None = None,
    progress: bool | None = None,
) -> Data | Path:
    """Return new cells.

    Parameters
    ----------
    n
        Number of cells.
    given
        Conditions by role, covariate or obs column, in any combination and order: one value for all
        cells, or one for each. What is left open is drawn from the training cells that agree with most of
        it, in the proportions that all training cells have.
    guidance
        Weight of the conditions, for models that have one; 1 is the model as trained, 0 ignores
        them, above 1 draws cells more typical of them. A weight per attribute (``{"label": 2}``, the
        others 1) composes the attributes instead of telling them together.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts; ``obs`` holds
    the conditions. From a model of several kinds of counts: a MuData of such.
    """
    require(self, "generate")
    at_least("n", n, 0)
    options = guidance_options(self, guidance)
    room(self, n, into)
    columns = draw_conditions(self, n, given, Rng(seed).numpy("conditions"))
    size = int(np.clip(CHUNK_VALUES // max(map(len, features(self).values())), 16, 4096))

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        starts = range(0, n, size)
        with bar(len(starts), "generate", progress) as shown:
            for number, start in enumerate(starts):
                rows = np.arange(start, min(start + size, n))
                told = {k: self.spec.narrowed(k, v[rows]) for k, v in columns.items()}
                tensors = {k: torch.from_numpy(v) for k, v in told.items()}
                batch = CellBatch(torch.from_numpy(rows), {}, columns=tensors)
                noise = Rng(seed).scope("noise", number)
                yield blocks(self, ask(self.module.generate, batch, noise=noise, **options))
                shown.update()

    obs = decode_conditions(self, columns, n)
    return collect_cells(
        chunks(), obs, features(self),
        uns(self, "generate", given=told(given), guidance=guidance, seed=seed),
        counts=self.model.scale == "counts", into=into,
    )  # fmt: skip


@settled()
@checked
def score(
    self: Fitted,
    data: Data | str | Path,
    *,
    bound: Literal["elbo", "importance"] = "elbo",
    n_samples: int = 1,
    seed: int = 0,
    schema: Schema | None = None,
    progress: bool | None = None,
) -> Float[np.ndarray, " cells"]:
    """Return how probable the model finds each cell, in nats.

    Parameters
    ----------
    bound
        ``"elbo"`` (evidence lower bound), or ``"importance"``: the importance-weighted bound
        (Burda 2016), which reaches the log-likelihood as `n_samples` grows. Models with an exact
        likelihood return it for both.
    n_samples
        Draws per cell.

    Returns
    -------
    float64, one value per cell; NaN for cells that lack the modality. Writes nothing.
    """
    at_least("n_samples", n_samples, 1)
    if bound not in ("elbo", "importance"):
        raise ConfigError(f"bound={bound!r}: expected 'elbo' or 'importance'.")
    data = read.read(data)
    source, usable = open_cells(self, "score", data, schema, progress)
    out = np.full(len(source), np.nan)
    for number, (rows, batch) in enumerate(stream(source, usable, "score", progress)):
        noise, exact = Rng(seed).scope("noise", number), bound == "importance"
        out[rows] = ask(self.module.score, batch, n_samples, exact, noise=noise).double().numpy()
    return out


@settled()
@checked
def loadings(self: Fitted, data: AnnData | None = None) -> pd.DataFrame:
    """Return what each latent dimension does to each feature, for models with a linear decoder.

    Returns
    -------
    Features x latent dimensions.
    ``varm["<model>_loadings"]`` of `data`, if given : the same, float32; NaN for features not trained.
    """
    require(self, "loadings")
    names = next(iter(self.spec.features.values()))
    values = self.module.loadings().detach().numpy()
    table = pd.DataFrame(
        values, index=list(names), columns=[f"{self.model.key}_{i}" for i in range(values.shape[1])]
    )
    if data is not None:
        if not isinstance(data, (AnnData, MuData)):
            raise ConfigError("loadings: expected an AnnData in memory, or no data for the table.")
        key = f"{self.model.key}_loadings"
        refuse_slot(data, key)
        data.varm[key] = table.reindex(data.var_names).to_numpy(np.float32)
        write_provenance(self, data, key)
    return table


@settled()
@checked
def trajectory(
    self: Fitted,
    data: Data | str | Path | None = None,
    times: Sequence[float] | None = None,
    *,
    start: str | None = None,
    to: Conditions | None = None,
    into: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool | None = None,
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
    ``X``; ``obs`` is that of the cells, with ``time`` replaced, ``start`` names the cell, and
    ``start_time`` is its own time.

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
    require(self, "trajectory")
    if (data is None) == (start is None):
        raise ConfigError(
            "trajectory begins at cells (data) or at a trajectory of the fit (start)."
        )
    at = self.module.clock_times(20) if times is None else np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not np.isfinite(at).all():
        raise ConfigError("times: expected a list of finite numbers.")
    rising, back = np.unique(at, return_inverse=True)
    scaled = self.spec.narrowed("time", rising)
    if "time" in as_mapping(self, to):
        raise ConfigError("trajectory begins at each cell's own time: leave time out of to.")
    target = encode(self, to)
    role = self.spec.either("expression", "counts")
    if start is not None:
        known = self.spec.categories.get("trajectory", ("all cells",))
        if start not in known:
            raise SchemaError(f"start={start!r}: the fit has no such path.{near(start, known)}")
        batches: Any = [(np.zeros(1, int), self.module.named_start(known.index(start)))]
        usable = np.zeros(1, int)
        obs = pd.DataFrame({self.column("trajectory"): [start]}, index=[start])
        begin = self.spec.outside("time", batches[0][1]["time"].numpy())
    else:
        data = read.read(data)
        read.refuse_over(data, into)
        source, usable = open_cells(self, "trajectory", data, schema, progress)
        obs, batches = data.obs.iloc[usable], stream(source, usable, "trajectory", progress)
        begin = source.columns["time"][usable]
    refuse_what_cannot_be_kept(len(usable) * len(at), self.spec.n_features(role), into)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for _, batch in batches:
            found = ask(self.module.trajectory, under(batch, target), torch.from_numpy(scaled))
            yield {role: found[:, back].flatten(0, 1).numpy()}

    rows = np.repeat(np.arange(len(obs)), len(at))
    table = obs.iloc[rows].assign(
        **{
            "start": obs.index.to_numpy()[rows], "start_time": begin[rows],
            self.column("time", schema): np.tile(at, len(obs)),
        }
    )  # fmt: skip
    table.index = pd.Index([f"{name}_{i}" for name in obs.index for i in range(len(at))])
    return collect_cells(
        chunks(), table, {role: self.spec.features[role]},
        uns(self, "trajectory", to=to), counts=False, into=into,
    )  # fmt: skip


@settled()
@checked
def rank(self: Fitted) -> pd.DataFrame:
    """Return which genes drive which.

    Returns
    -------
    ``source``, ``target``, ``weight`` and ``confidence`` of every edge between different genes that is
    not exactly 0, the strongest first. The weight is the mean of ∂(velocity of target)/∂(source) along
    observed paths, in standard deviations of the genes and in the time from first to last cell: above 0
    the source activates. The confidence is the share of refits on resampled paths in which the edge has
    that sign and is stronger than 95 % of those that are found where paths of genes are exchanged, so
    that none is true; NaN where the fit made no refits (`n_refits`).
    """
    require(self, "rank")
    weight, confidence = (t.numpy() for t in self.module.rank())
    names = np.array(self.spec.features[self.spec.either("expression", "counts")])
    source, target = np.nonzero((weight != 0) & ~np.eye(len(weight), dtype=bool))
    table = pd.DataFrame({
        "source": names[source], "target": names[target], "weight": weight[source, target],
        "confidence": confidence[source, target],
    })  # fmt: skip
    return table.sort_values(
        "weight", key=np.abs, ascending=False, ignore_index=True, kind="stable"
    )
