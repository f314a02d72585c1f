"""How each row of a bench of integration embeds the cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from .. import config
from ..compute.convergence import State
from ..data.cells import Cells
from ..data.read import Data
from ..errors import CapabilityError, SchemaError, counted, near
from ..fitted import Fitted
from ..metrics.table import BASELINE
from ..model import Model
from ..registry import find, keys
from ..run import Run
from ..schema import Place, Schema
from ..trials.cluster import opened
from ..trials.digest import digest

#: Rows of the table beside the ones asked for: two baselines and a ceiling.
HARMONY, CEILING = "Harmony", "label oracle"
#: Cells that Harmony needs: a thirtieth of them, rounded, are its clusters.
_HARMONY_CELLS = 16


@dataclass(frozen=True, eq=False)
class Given:
    """What every trial is given; `cells` are the positions of those that are scored."""

    data: Data | Path
    schema: Schema
    named: Mapping[str, pd.Series]
    x_pca: Float[np.ndarray, "cells z"]
    cells: Int[np.ndarray, " n"]
    metrics: Sequence[str] | None
    draws: int
    run: Run


#: What is to be scored, with or without names.
Asked: TypeAlias = Sequence[str | Model | Fitted] | Mapping[str, str | Model | Fitted]
#: Embeds all cells under a seed, and says how the fit for it stood when it stopped.
Embed: TypeAlias = Callable[[Given, int], tuple[np.ndarray, State]]


@dataclass(eq=False)
class Method:
    """How to embed the cells, under which seeds, and what the result depends on beside the seed.

    `model` is what embeds them, fitted or not, where there is one: it can embed other cells too.
    """

    name: str
    role: str
    embed: Embed
    seeds: Sequence[int]
    about: Mapping[str, Any]
    note: str = ""
    model: Model | Fitted | None = None


def rows_of(cells: Cells, methods: Asked, seeds: Sequence[int], baseline: Model) -> list[Method]:
    """Return the rows of the table.

    Methods of a mapping are named by its keys. Several configurations of one model are named by their options
    too, and what is of one name still is numbered. A model that is the baseline has its row already.
    """
    pairs = methods.items() if isinstance(methods, Mapping) else [(_name(m), m) for m in methods]
    table = [
        Method(BASELINE, "baseline", _pca, seeds[:1], {"baseline": BASELINE}),
        Method(HARMONY, "baseline", _harmony, seeds, {"baseline": HARMONY}),
        *(_method(name, method, cells, seeds) for name, method in pairs if method != baseline),
        Method(CEILING, "ceiling", _oracle, seeds[:1], {"ceiling": CEILING}),
    ]
    times, met = Counter(row.name for row in table), Counter[str]()
    for row in table:
        if times[row.name] > 1 and "config" in row.about:
            plain = config.as_dict(find(row.about["model"])())
            options = row.about["config"].items()
            row.name = " ".join([row.name, *(f"{k}={v}" for k, v in options if v != plain[k])])
        met[row.name] += 1
        if met[row.name] > 1:
            row.name = f"{row.name} ({met[row.name]})"
    return table


def _name(method: str | Model | Fitted) -> str:
    if isinstance(method, str):
        return method
    return type(method.model if isinstance(method, Fitted) else method).__name__


def _method(name: str, method: str | Model | Fitted, cells: Cells, seeds: Sequence[int]) -> Method:
    if isinstance(method, str):
        data = cells.data
        key = next((k for k in (method, f"X_{method}") if k in data.obsm), None)
        if key is None:
            named = next((k for k in keys() if method in (k, find(k).__name__)), None)
            made = f" Did you mean the model chreode.{find(named).__name__}()?" if named else ""
            raise SchemaError(f"There is no obsm[{method!r}].{made or near(method, data.obsm)}")
        about: dict[str, Any] = {"obsm": key, "values": digest(_slot(cells, key))}
        remark = "one seed: a ready-made embedding"
        return Method(
            key if name == method else name,
            "method",
            partial(_read_slot, key),
            seeds[:1],
            about,
            remark,
        )
    if isinstance(method, Fitted):
        weights = [tensor.numpy() for tensor in method.module.state_dict().values()]
        about = {"fitted": dict(method.provenance), "weights": digest(*weights)}
        remark = "one seed: a fitted model"
        own = [method.provenance["seed"]]
        return Method(name, "method", partial(embed_with, method), own, about, remark, method)
    about = {"model": method.key, "config": config.as_dict(method)}
    return Method(name, "method", partial(_fit_and_embed, method), seeds, about, model=method)


def ready(cells: Cells, table: Sequence[Method]) -> Iterator[Float[np.ndarray, "cells z"]]:
    """Yield the embeddings that stand in the data already."""
    yield from (_slot(cells, row.about["obsm"]) for row in table if "obsm" in row.about)


def _slot(cells: Cells, key: str) -> Float[np.ndarray, "cells z"]:
    values: Any = cells.matrix_at(Place("obsm", key), "obsm").matrix
    return np.asarray(values.toarray() if sp.issparse(values) else values, np.float32)


def _pca(given: Given, _: int) -> tuple[np.ndarray, State]:
    return given.x_pca, "rested"


def _read_slot(key: str, given: Given, _: int) -> tuple[np.ndarray, State]:
    return _slot(Cells(opened(given.data), given.schema), key), "rested"


def embed_with(fitted: Fitted, given: Given, _: int) -> tuple[np.ndarray, State]:
    """Embed all cells with a fitted model."""
    data = opened(given.data)
    schema = _where(fitted, given.schema, data)
    x = fitted.embed(shallow(data), schema=schema, run=given.run)
    return x, fitted.provenance["state"]


def _where(fitted: Fitted, named: Schema, data: Data) -> Schema:
    """Return where a fitted model reads these data: where roles are named, else as in its fit.

    A bench may judge by another batch or label than the fit read, so these stay if the data have them.
    """
    roles = named.as_dict()
    for role, place in fitted.schema.places():
        owner = getattr(data, "mod", {}).get(place.modality) if place.modality else data
        if role in ("batch", "label") and owner is not None and place.key in owner.obs:
            roles.pop(role, None)
    return Schema.from_dict(fitted.schema.as_dict() | roles)


def _fit_and_embed(model: Model, given: Given, seed: int) -> tuple[np.ndarray, State]:
    data = opened(given.data)
    return embed_with(model.fit(data, given.schema, seed=seed, run=given.run), given, seed)


def _harmony(given: Given, seed: int) -> tuple[np.ndarray, State]:
    try:
        import harmonypy
    except ImportError as error:
        raise CapabilityError("harmonypy is not installed, pip install 'chreode[bench]'") from error
    x, batch = given.x_pca, given.named["batch"]
    if batch.nunique() < 2:
        raise CapabilityError("there is one batch only")
    kept = np.isfinite(x).all(1)
    if kept.sum() < _HARMONY_CELLS:
        raise CapabilityError(
            f"it takes {counted(_HARMONY_CELLS, 'cell')}, to have a cluster, and got {kept.sum()}"
        )
    table = pd.DataFrame({"batch": batch[kept].to_numpy()})
    fixed = harmonypy.run_harmony(x[kept], table, "batch", random_state=seed, verbose=False)
    out = np.full_like(x, np.nan)
    corrected = np.asarray(fixed.Z_corr, np.float32)
    out[kept] = corrected if corrected.shape == x[kept].shape else corrected.T
    return out, "rested"


def _oracle(given: Given, seed: int) -> tuple[np.ndarray, State]:
    # cells without a label are of no type: they have a place of their own
    codes = pd.factorize(given.named["label"], use_na_sentinel=False)[0]
    hot = np.eye(codes.max() + 1, dtype=np.float32)[codes]
    noise = np.random.default_rng(seed).normal(scale=0.1, size=hot.shape)
    return hot + noise.astype(np.float32), "rested"


def shallow(data: Data) -> Data:
    """Return the same cells in a new object, so that a verb writes nothing to the user's."""
    if isinstance(data, anndata.AnnData):
        return anndata.AnnData(
            data.X, obs=data.obs, var=data.var, layers=dict(data.layers), obsm=dict(data.obsm),
            raw=data.raw,
        )  # fmt: skip
    return data.copy()
