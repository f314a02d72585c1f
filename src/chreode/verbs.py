"""What a fitted model is asked: stream cells → a capability of the module → slots, with provenance.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float
from torch import Tensor

from . import read
from .align import condition_code, open_query
from .collect import collect_cells, refuse_what_cannot_be_kept
from .data.batch import CellBatch
from .data.source import CHUNK_VALUES, Source
from .errors import CapabilityError, ConfigError, SchemaError, near
from .learn.phase import bar
from .learn.rng import Rng
from .module import capabilities
from .read import Data
from .schema import Schema

if TYPE_CHECKING:
    from .fitted import Fitted

Conditions = Mapping[str, Any]


def embed(
    self: Fitted,
    data: Data | str | Path,
    *,
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
    key_added
        Slot to write (default ``X_<model>``).
    schema
        Where the roles live in `data`, if not where they lived in the fit.

    Returns
    -------
    float32, cells x latent dimensions; NaN for cells that lack the modality.
    ``obsm[key_added]`` : the same.
    ``uns["chreode"][key_added]`` : JSON of model, version, configuration, spec and seed.
    """
    data = read.read(data)
    source, usable = _open(self, "embed", data, schema, progress)
    out = None
    for rows, batch in _stream(source, usable, "embed", progress):
        z = self.module.embed(batch).numpy()
        if out is None:
            out = np.full((len(source), z.shape[1]), np.nan, np.float32)
        out[rows] = z
    assert out is not None, "no cells"
    key = key_added or f"X_{self.model.key}"
    data.obsm[key] = out
    _write_provenance(self, data, key)
    return out


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
    _at_least("n_samples", n_samples, 1)
    data = read.read(data)
    source, usable = _open(self, "posterior", data, schema, progress)
    parts = []
    for number, (_, batch) in enumerate(_stream(source, usable, "posterior", progress)):
        with Rng(seed).scope("noise", number):
            parts.append(self.module.posterior(batch, n_samples).numpy())
    drawn = np.concatenate(parts, axis=1)
    out = np.full((n_samples, len(source), drawn.shape[2]), np.nan, np.float32)
    out[:, usable] = drawn
    return out


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
    ``uns["chreode"]["reconstruct"]`` says the scale: counts, or log1p of counts per 10,000.
    """
    data = read.read(data)
    decoded = [r for r in self.spec.features if r.partition("/")[0] in ("counts", "expression")]
    if role != "counts":
        decoded = [r for r in self.spec.features if r == role]
    if not decoded:
        raise SchemaError(f"This model does not decode {role!r}.{near(role, self.spec.features)}")
    if library is not None and self.model.scale != "counts":
        raise ConfigError(f"{self.model.key} decodes {self.model.scale}; it has no library to set.")
    source, usable = _open(self, "reconstruct", data, schema, progress, to)
    refuse_what_cannot_be_kept(len(usable), self.spec.n_features(decoded[0]), into)
    target = _encode(self, to)

    def chunks() -> Iterator[np.ndarray]:
        for _, batch in _stream(source, usable, "reconstruct", progress):
            more = () if library is None else (library,)
            yield self.module.reconstruct(batch, _under(batch, target), *more).numpy()

    obs = data.obs.iloc[usable]
    return collect_cells(
        chunks(), obs, self.spec.features[decoded[0]], _uns(self, "reconstruct", to=to),
        counts=False, into=into,
    )  # fmt: skip


def predict(
    self: Fitted,
    data: Data | str | Path,
    *,
    to: Conditions | str,
    seed: int = 0,
    into: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool | None = None,
) -> AnnData | Path:
    """Return the same cells as they would be measured under other conditions.

    Parameters
    ----------
    to
        Conditions by role or covariate name; a bare string means `perturbation`. ``{}`` keeps the
        cells' own conditions (posterior predictive counts).

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts, log1p of counts
    per 10,000 for models of log-expression; ``uns["chreode"]["predict"]`` says which. ``obs`` is the
    cells' own, with the columns of `to` replaced.
    """
    data = read.read(data)
    source, usable = _open(self, "predict", data, schema, progress, to)
    refuse_what_cannot_be_kept(len(usable), len(next(iter(self.spec.features.values()))), into)
    target = _encode(self, to)

    def chunks() -> Iterator[np.ndarray]:
        for number, (_, batch) in enumerate(_stream(source, usable, "predict", progress)):
            with Rng(seed).scope("noise", number):
                yield self.module.predict(batch, _under(batch, target)).numpy()

    obs = data.obs.iloc[usable].assign(**{self.column(k): v for k, v in _as_mapping(to).items()})
    return collect_cells(
        chunks(), obs, next(iter(self.spec.features.values())),
        _uns(self, "predict", to=to, seed=seed), counts=self.model.scale == "counts", into=into,
    )  # fmt: skip


def generate(
    self: Fitted,
    n: int,
    *,
    given: Conditions | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    into: str | Path | None = None,
    progress: bool | None = None,
) -> AnnData | Path:
    """Return new cells.

    Parameters
    ----------
    n
        Number of cells.
    given
        Conditions by role or covariate name, in any combination. What is left open is drawn from
        the training cells that agree with it (from all of them if none does).
    guidance
        Weight of the conditions, for models that have one; 1 is the model as trained.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts; ``obs`` holds
    the conditions.
    """
    _require(self, "generate")
    _at_least("n", n, 0)
    if guidance != 1.0 and not getattr(self.module, "guided", False):
        raise CapabilityError(f"{self.model.key} has no guidance; leave it at 1.")
    width = len(next(iter(self.spec.features.values())))
    refuse_what_cannot_be_kept(n, width, into)
    columns = _draw_conditions(self, n, given, Rng(seed).numpy("conditions"))
    size = int(np.clip(CHUNK_VALUES // width, 16, 4096))

    def chunks() -> Iterator[np.ndarray]:
        starts = range(0, n, size)
        with torch.inference_mode(), bar(len(starts), "generate", progress) as shown:
            for number, start in enumerate(starts):
                rows = torch.arange(start, min(start + size, n))
                batch = CellBatch(rows, {}, columns={k: v[rows] for k, v in columns.items()})
                with Rng(seed).scope("noise", number):
                    yield self.module.generate(batch).numpy()
                shown.update()

    obs = _decode_conditions(self, columns, n)
    return collect_cells(
        chunks(), obs, next(iter(self.spec.features.values())),
        _uns(self, "generate", given=given, seed=seed), counts=self.model.scale == "counts", into=into,
    )  # fmt: skip


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
    _at_least("n_samples", n_samples, 1)
    if bound not in ("elbo", "importance"):
        raise ConfigError(f"bound={bound!r}: expected 'elbo' or 'importance'.")
    data = read.read(data)
    source, usable = _open(self, "score", data, schema, progress)
    out = np.full(len(source), np.nan)
    for number, (rows, batch) in enumerate(_stream(source, usable, "score", progress)):
        with Rng(seed).scope("noise", number):
            out[rows] = self.module.score(batch, n_samples, bound == "importance").double().numpy()
    return out


def loadings(self: Fitted, data: AnnData | None = None) -> pd.DataFrame:
    """Return what each latent dimension does to each feature, for models with a linear decoder.

    Returns
    -------
    Features x latent dimensions.
    ``varm["<model>_loadings"]`` of `data`, if given : the same, float32; NaN for features not trained.
    """
    _require(self, "loadings")
    names = next(iter(self.spec.features.values()))
    values = self.module.loadings().detach().numpy()
    table = pd.DataFrame(
        values, index=list(names), columns=[f"{self.model.key}_{i}" for i in range(values.shape[1])]
    )
    if data is not None:
        key = f"{self.model.key}_loadings"
        data.varm[key] = table.reindex(data.var_names).to_numpy(np.float32)
        _write_provenance(self, data, key)
    return table


# what the verbs share


def _require(self: Fitted, verb: str) -> None:
    if verb not in capabilities(self.module):
        raise CapabilityError(
            f"{type(self.model).__name__} cannot {verb}; it can {', '.join(self.verbs)}."
        )


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}.")


def _open(
    self: Fitted,
    verb: str,
    data: Data,
    schema: Schema | None,
    progress: bool | None,  # noqa: FBT001 (tri-state)
    to: Conditions | str | None = None,
) -> tuple[Source, np.ndarray]:
    """Return the aligned cells and the rows that have every modality the verb reads.

    A condition that `to` replaces is not read, unless the encoder looks at it: so cells of a batch
    that was never seen can be decoded as cells of a known one.
    """
    _require(self, verb)
    schema = schema or self.schema
    replaced = set(_as_mapping(to)) - set(self.model.reads("embed"))
    roles = [r for r in self.model.reads(verb) if r in self.spec.roles and r not in replaced]
    source = open_query(data, schema, self.spec, roles, self.feature_weight(), progress=progress)
    self.model.refuse_missing(source)
    usable = np.arange(len(source))
    if not self.model.partial:
        for role in source.matrices:
            usable = usable[source.measured(role)[usable]]
    return source, usable


def _stream(
    source: Source,
    rows: np.ndarray,
    what: str,
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> Iterator[tuple[np.ndarray, CellBatch]]:
    with torch.inference_mode(), bar(len(rows), what, progress) as shown:
        for batch in source.batches(rows):
            yield batch.rows.numpy(), batch
            shown.update(len(batch))


def _as_mapping(to: Conditions | str | None) -> Conditions:
    return {"perturbation": to} if isinstance(to, str) else (to or {})


def _encode(self: Fitted, to: Conditions | str | None) -> list[tuple[str, int | None, int | float]]:
    return [condition_code(self.spec, key, value) for key, value in _as_mapping(to).items()]


def _under(batch: CellBatch, target: Iterable[tuple[str, int | None, int | float]]) -> CellBatch:
    """Return the batch with the conditions of `target` in place of its own."""
    columns: dict[str, Tensor] = {}
    for name, position, code in target:
        if position is None:
            columns[name] = torch.full((len(batch),), int(code))
        else:
            values = columns.get(name, batch.columns[name]).clone()
            values[:, position] = code
            columns[name] = values
    return batch.with_columns(**columns)


def _draw_conditions(
    self: Fitted, n: int, given: Conditions | None, generator: np.random.Generator
) -> dict[str, Tensor]:
    pool = self.statistics
    size = len(next(iter(pool.values()))) if pool else 0
    agreeing = np.ones(size, bool)
    target = _encode(self, given)
    for name, position, code in target:
        if name != "continuous":
            values = pool[name] if position is None else pool[name][:, position]
            agreeing &= values == code
    candidates = np.flatnonzero(agreeing) if agreeing.any() else np.arange(size)
    drawn = generator.choice(candidates, n) if size else np.zeros(n, int)
    columns = {k: torch.from_numpy(np.ascontiguousarray(v[drawn])) for k, v in pool.items()}
    return dict(_under(CellBatch(torch.arange(n), {}, columns=columns), target).columns)


def _decode_conditions(self: Fitted, columns: Mapping[str, Tensor], n: int) -> pd.DataFrame:
    obs = pd.DataFrame(index=pd.Index([f"{self.model.key}_{i}" for i in range(n)], dtype=object))
    for name, values in columns.items():
        stacked = {"categorical": self.spec.categorical, "continuous": self.spec.continuous}.get(
            name
        )
        for i, key in enumerate(stacked if stacked is not None else [name]):
            code = (values[:, i] if stacked is not None else values).numpy()
            if key in self.spec.categories:
                obs[self.column(key)] = pd.Categorical.from_codes(
                    code, list(self.spec.categories[key])
                )
            elif name == "continuous":
                obs[key] = code
    return obs


def _record(self: Fitted, **more: Any) -> str:
    told = {k: self.provenance[k] for k in ("model", "version", "config", "spec", "seed")}
    return json.dumps({**told, **more}, sort_keys=True)


def _uns(self: Fitted, verb: str, **more: Any) -> dict[str, Any]:
    return {"chreode": {verb: _record(self, scale=self.model.scale, **more)}}


def _write_provenance(self: Fitted, data: Data, key: str) -> None:
    data.uns["chreode"] = {**data.uns.get("chreode", {}), key: _record(self)}
