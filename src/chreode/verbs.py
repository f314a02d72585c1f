"""What a fitted model is asked: stream cells → a capability of the module → slots, with provenance.

Every function here is a method of `Fitted`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int
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
from .nn.attributes import attribute_names
from .read import Data
from .schema import NUMBER_ROLES, Schema

if TYPE_CHECKING:
    from .fitted import Fitted

Conditions = Mapping[str, Any]


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
    verb = "embed" if to is None else "predict"
    source, usable = _open(self, verb, data, schema, progress, to)
    target = _encode(self, to)
    out = None
    for rows, batch in _stream(source, usable, "embed", progress):
        under = () if to is None else (_under(batch, target),)
        z = _ask(self.module.embed, batch, *under).numpy()
        if out is None:
            out = np.full((len(source), z.shape[1]), np.nan, np.float32)
        out[rows] = z
    assert out is not None, "no cells"
    key = key_added or f"X_{self.model.key}{'' if to is None else '_to'}"
    data.obsm[key] = out
    _write_provenance(self, data, key, **({} if to is None else {"to": to}))
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
        noise = Rng(seed).scope("noise", number)
        parts.append(_ask(self.module.posterior, batch, n_samples, noise=noise).numpy())
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

    more: dict[str, Any] = {} if library is None else {"library": library}
    more |= {"role": role} if self.module.drawn else {}

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for _, batch in _stream(source, usable, "reconstruct", progress):
            found = _ask(self.module.reconstruct, batch, _under(batch, target), **more)
            yield {role: found.numpy()}

    return collect_cells(
        chunks(), data.obs.iloc[usable], {role: self.spec.features[decoded[0]]},
        _uns(self, "reconstruct", to=to), counts=False, into=into,
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
) -> Data | Path:
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
    cells' own, with the columns of `to` replaced. From a model of several kinds of counts: a MuData.
    """
    data = read.read(data)
    source, usable = _open(self, "predict", data, schema, progress, to)
    _room(self, len(usable), into)
    target = _encode(self, to)

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        for number, (_, batch) in enumerate(_stream(source, usable, "predict", progress)):
            noise = Rng(seed).scope("noise", number)
            yield _blocks(
                self, _ask(self.module.predict, batch, _under(batch, target), noise=noise)
            )

    obs = data.obs.iloc[usable].assign(**{self.column(k): v for k, v in _as_mapping(to).items()})
    return collect_cells(
        chunks(), obs, _features(self),
        _uns(self, "predict", to=to, seed=seed), counts=self.model.scale == "counts", into=into,
    )  # fmt: skip


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
        Conditions by role or covariate name, in any combination and order: one value for all cells,
        or one for each. What is left open is drawn from the training cells that agree with it (from
        all of them if none does).
    guidance
        Weight of the conditions, for models that have one; 1 is the model as trained, 0 ignores
        them, above 1 draws cells more typical of them. A weight per attribute (``{"label": 2}``, the
        others 1) composes the attributes instead of telling them together.

    Returns
    -------
    A new AnnData (or the path `into`): integer counts in ``X`` for models of counts; ``obs`` holds
    the conditions. From a model of several kinds of counts: a MuData of such.
    """
    _require(self, "generate")
    _at_least("n", n, 0)
    options = _guidance(self, guidance)
    _room(self, n, into)
    columns = _draw_conditions(self, n, given, Rng(seed).numpy("conditions"))
    size = int(np.clip(CHUNK_VALUES // max(map(len, _features(self).values())), 16, 4096))

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        starts = range(0, n, size)
        with bar(len(starts), "generate", progress) as shown:
            for number, start in enumerate(starts):
                rows = torch.arange(start, min(start + size, n))
                batch = CellBatch(rows, {}, columns={k: v[rows] for k, v in columns.items()})
                noise = Rng(seed).scope("noise", number)
                yield _blocks(self, _ask(self.module.generate, batch, noise=noise, **options))
                shown.update()

    obs = _decode_conditions(self, columns, n)
    return collect_cells(
        chunks(), obs, _features(self),
        _uns(self, "generate", given=_told(given), guidance=guidance, seed=seed),
        counts=self.model.scale == "counts", into=into,
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
        noise, exact = Rng(seed).scope("noise", number), bound == "importance"
        out[rows] = _ask(self.module.score, batch, n_samples, exact, noise=noise).double().numpy()
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


def _drawn(self: Fitted) -> dict[str, str]:
    """Return the roles that new cells have, and what their modalities are called."""
    roles = self.module.drawn or tuple(self.spec.features)[:1]
    places = dict(self.schema.places())
    names = [places[role].modality or role for role in roles]
    return dict(zip(roles, roles if len({*names}) < len(names) else names, strict=True))


def _room(self: Fitted, n: int, into: str | Path | None) -> None:
    """Refuse new cells that have no place to go."""
    drawn = _drawn(self)
    width = sum(self.spec.n_features(role) for role in drawn)
    refuse_what_cannot_be_kept(n, width, into, ".h5mu" if len(drawn) > 1 else ".h5ad")


def _blocks(self: Fitted, drawn: Tensor | Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    names = _drawn(self)
    values = {next(iter(names)): drawn} if isinstance(drawn, Tensor) else drawn
    return {name: values[role].numpy() for role, name in names.items()}


def _features(self: Fitted) -> dict[str, tuple[str, ...]]:
    return {name: self.spec.features[role] for role, name in _drawn(self).items()}


def _guidance(self: Fitted, guidance: float | Mapping[str, float]) -> dict[str, Any]:
    """Check the weights, and return what to tell a module that has guidance."""
    weights = guidance if isinstance(guidance, Mapping) else {"guidance": guidance}
    for name, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not (number and np.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"guidance: {name}={weight!r}: expected a finite number of at least 0."
            )
    if getattr(self.module, "guided", False):
        names = [*chain.from_iterable(attribute_names(self.spec))]
        for name in weights if isinstance(guidance, Mapping) else ():
            if name not in names:
                raise ConfigError(f"guidance: there is no attribute {name!r}.{near(name, names)}")
        return {"guidance": guidance}
    if guidance != 1.0:
        raise CapabilityError(f"{self.model.key} has no guidance; leave it at 1.")
    return {}


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
    """Return the aligned cells and the rows that have the modalities the verb reads.

    A condition that `to` replaces is not read, unless the model looks at it first: so cells of a
    batch that was never seen can be decoded as cells of a known one.
    """
    _require(self, verb)
    schema = schema or self.schema
    looks = verb if self.model.inverts and verb != "reconstruct" else "embed"
    replaced = set(_as_mapping(to)) - set(self.model.reads(looks))
    roles = [r for r in self.model.reads(verb) if r in self.spec.roles and r not in replaced]
    source = open_query(data, schema, self.spec, roles, self.feature_weight(), progress=progress)
    self.model.refuse_missing(source)
    measured = [source.measured(role) for role in source.matrices]
    enough = np.logical_or if self.model.partial else np.logical_and
    return source, np.flatnonzero(enough.reduce(measured))


def _stream(
    source: Source,
    rows: np.ndarray,
    what: str,
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> Iterator[tuple[np.ndarray, CellBatch]]:
    with bar(len(rows), what, progress) as shown:
        for batch in source.batches(rows):
            yield batch.rows.numpy(), batch
            shown.update(len(batch))


def _ask(capability: Callable[..., Any], *about: Any, noise: Any = None, **options: Any) -> Any:
    """Return what the module answers, without gradients, under a stream of noise.

    Both end with the call: a verb that hands out its results one by one may be left in the middle of
    them, and what follows elsewhere must not find torch changed.
    """
    with torch.inference_mode(), noise or nullcontext():
        return capability(*about, **options)


def _as_mapping(to: Conditions | str | None) -> Conditions:
    return {"perturbation": to} if isinstance(to, str) else (to or {})


def _encode(self: Fitted, to: Conditions | str | None) -> list[tuple[str, int | None, int | float]]:
    return [condition_code(self.spec, key, value) for key, value in _as_mapping(to).items()]


def _under(batch: CellBatch, target: Iterable[tuple[str, int | None, int | float]]) -> CellBatch:
    """Return the batch with the conditions of `target` in place of its own."""
    target = list(target)
    if not target:
        return batch
    columns: dict[str, Tensor] = {}
    for name, position, code in target:
        if position is None:
            columns[name] = torch.full((len(batch),), code)
        else:
            values = columns.get(name, batch.columns[name]).clone()
            values[:, position] = code
            columns[name] = values
    return batch.with_columns(**columns)


def _draw_conditions(
    self: Fitted, n: int, given: Conditions | None, generator: np.random.Generator
) -> dict[str, Tensor]:
    """Return the conditions of n cells: what is given, and the rest as training cells have it."""
    pool = self.statistics
    size = len(next(iter(pool.values()))) if pool else 0
    drawn = np.zeros(n, int)
    for told, rows in _alike(n, given or {}):
        agreeing = np.ones(size, bool)
        for name, position, code in _encode(self, told):
            if isinstance(code, int):  # numbers hardly ever agree
                values = pool[name] if position is None else pool[name][:, position]
                agreeing &= values == code
        candidates = np.flatnonzero(agreeing) if agreeing.any() else np.arange(size)
        drawn[rows] = generator.choice(candidates, len(rows)) if size else 0
    columns = {k: torch.from_numpy(np.ascontiguousarray(v[drawn])) for k, v in pool.items()}
    for told, rows in _alike(n, given or {}):
        for name, position, code in _encode(self, told):
            (columns[name] if position is None else columns[name][:, position])[rows] = code
    return columns


def _alike(n: int, given: Conditions) -> Iterator[tuple[Conditions, Int[np.ndarray, " rows"]]]:
    """Yield the cells that are given the same, with what that is: values are one for all, or one each."""
    each = {k: v for k, v in given.items() if not isinstance(v, str) and np.ndim(v) == 1}
    for name, values in each.items():
        if len(values) != n:
            raise ConfigError(f"given: {name} has {len(values)} values for {n} cells.")
    if not each:
        yield given, np.arange(n)
        return
    table = pd.DataFrame({k: np.asarray(v, dtype=object) for k, v in each.items()})
    for values, rows in table.groupby(list(each), sort=True, dropna=False).indices.items():
        told = dict(zip(each, values if isinstance(values, tuple) else (values,), strict=True))
        yield {**given, **told}, rows


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
            elif name in ("continuous", *NUMBER_ROLES):
                obs[self.column(key)] = code
    return obs


def _told(given: Conditions | None) -> dict[str, Any]:
    return {
        k: v if isinstance(v, str) or np.ndim(v) == 0 else "one for each cell"
        for k, v in (given or {}).items()
    }


def _record(self: Fitted, **more: Any) -> str:
    told = {k: self.provenance[k] for k in ("model", "version", "config", "spec", "seed")}
    return json.dumps({**told, **more}, sort_keys=True)


def _uns(self: Fitted, verb: str, **more: Any) -> dict[str, Any]:
    return {"chreode": {verb: _record(self, scale=self.model.scale, **more)}}


def _write_provenance(self: Fitted, data: Data, key: str, **more: Any) -> None:
    data.uns["chreode"] = {**data.uns.get("chreode", {}), key: _record(self, **more)}
