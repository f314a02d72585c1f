"""Forecasts of starts, donors and lineages never seen, and what is said to drive them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import read
from ..align import learn_spec, open_source
from ..data.series import SeriesBatch, SeriesSource
from ..errors import BlowUpError, ConfigError, SchemaError
from ..metrics import dynamics as measure
from ..model import Model
from ..models.neuralode import NeuralODE
from ..read import Data
from ..schema import Schema
from .contest import Contestant, contest, contestants
from .forecasters import BASELINES, Learn
from .ledger import provenance
from .table import Bench
from .trials import Result

#: Of the smoother that makes starts and denoised targets, as a share of the time.
BANDWIDTH = 0.03
#: Times of a test series; beyond, neighbouring cells are averaged.
_MOST = 10_000


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given: series of the training cells and of every level, and what is true."""

    data: Data
    schema: Schema
    train: np.ndarray
    validation: np.ndarray
    learned: SeriesBatch
    levels: Mapping[str, SeriesBatch]
    bandwidth: float
    signs: np.ndarray | None
    progress: bool | None


def dynamics(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[Model] = (),
    *,
    tests: Mapping[str, Any],
    validation: Any = None,
    edges: pd.DataFrame | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    into: str | Path | None = None,
    progress: bool | None = None,
) -> Bench:
    """Fit on some trajectories, and forecast others from their starts.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `time`, `expression` or `counts`, and `trajectory` where there are several.
    methods
        Neural ODEs to be fitted.
    tests
        Cells to forecast (masks, positions or names) by how far they are from those learned from:
        ``{"new start": …, "new donor": …}``. All others are learned from.
    validation
        Cells that models choose their strength by (default: as each model chooses).
    edges
        True edges, if they are known: ``source, target, sign``.
    seeds
        Seeds of fits.
    into
        Folder that keeps every result as it comes, and from which the same call goes on.
    progress
        Show progress bars (default: on a terminal).

    Returns
    -------
    Bench
        By level the mean squared error of cells, the same of smoothed paths (*denoised*), and R² of both
        against the mean of the training cells; precision of edges, and how sparse weights and edges are.
        Beside what a page of code can forecast. A path that blows up has an infinite error.
    """
    for model in methods:
        if not isinstance(model, NeuralODE):
            raise ConfigError(f"{model.key} forecasts no paths, which this bench compares.")
    data = read.read(data)
    given = _given(data, schema, tests, validation, edges, progress)
    rows = [
        *(
            Contestant(name, "baseline", partial(_judge_baseline, learn))
            for name, learn in BASELINES.items()
        ),
        *contestants(methods, lambda model: partial(_judge_model, model)),
    ]
    about = {**provenance(data, schema), "train": len(given.train), "levels": list(given.levels)}
    return contest(
        "dynamics",
        rows,
        _metric_table(given),
        given,
        about,
        seeds=seeds,
        into=into,
        progress=progress,
    )[0]


def _given(
    data: Data,
    schema: Schema,
    tests: Mapping[str, Any],
    validation: Any,
    edges: pd.DataFrame | None,
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> _Given:
    named = {role.partition("/")[0] for role, _ in schema.places()}
    if "time" not in named or not named & {"expression", "counts"}:
        raise SchemaError("bench.dynamics needs time, and expression or counts: name their places.")
    role = "expression" if "expression" in named else "counts"
    roles = [role, "time", *({"trajectory"} & named)]
    everything = np.arange(data.n_obs)
    levels = {name: read.positions(data, rows) for name, rows in tests.items()}
    held_out = np.unique(np.concatenate([np.zeros(0, int), *levels.values()]))
    spare = np.zeros(0, int) if validation is None else read.positions(data, validation)
    train = np.setdiff1d(everything, np.concatenate([held_out, spare]))
    spec = learn_spec(data, schema, roles, everything)
    source = open_source(data, schema, spec, roles, {})
    span = source.columns["time"][train]
    bandwidth = BANDWIDTH * float(span.max() - span.min())
    series = {
        name: SeriesSource.of(source, known=rows, n_times=_MOST, bandwidth=bandwidth).series(rows)
        for name, rows in {"": train, **levels}.items()
    }
    signs = None
    if edges is not None:
        genes = pd.Index(spec.features[role])
        signs = np.zeros((len(genes), len(genes)))
        signs[genes.get_indexer(edges["source"]), genes.get_indexer(edges["target"])] = edges[
            "sign"
        ]
    learned = series.pop("")
    return _Given(data, schema, train, spare, learned, series, bandwidth, signs, progress)


def _metric_table(given: _Given) -> pd.DataFrame:
    rows = []
    for level in given.levels:
        for key, name, best, said in (
            ("mse", "MSE", 0.0, "mean squared error of cells"),
            ("r2", "R²", 1.0, "1 less that error over the training mean's"),
            ("denoised", "MSE, denoised", 0.0, "mean squared error of smoothed paths"),
            ("denoised_r2", "R², denoised", 1.0, "1 less that error over the training mean's"),
            ("scaling", "of this, scaling", 0.0, "what a line per gene and series would mend"),
        ):
            rows.append((f"{key}, {level}", f"{name}, {level}", level, best, said))
    if given.signs is not None:
        rows += [
            ("auprc", "edges", "edges", 1.0, "area under precision and recall of edges"),
            ("lift", "lift", "edges", np.nan, "that over the density of true edges"),
            ("signed", "signed edges", "edges", 1.0, "the same of edges with their signs"),
            ("signed_lift", "signed lift", "edges", np.nan, "that over its value by chance"),
            ("hamming", "Hamming", "edges", 0.0, "share of pairs called wrongly"),
            ("sign", "signs", "edges", 1.0, "share of right signs of true edges that were called"),
        ]
    rows += [
        ("weights_zero", "weights 0", "sparsity", np.nan, "share of weights below 1e-5"),
        ("edges_zero", "edges 0", "sparsity", np.nan, "share of pairs without an effect"),
    ]
    columns = ["metric", "name", "group", "best", "about"]
    return pd.DataFrame(rows, columns=columns).set_index("metric")


def _judge_baseline(learn: Learn, seed: int, given: _Given) -> Result:  # noqa: ARG001 (no chance in them)
    start = time.perf_counter()
    found = learn(given.learned, given.bandwidth)
    scores = _forecasts(given, found.forecast)
    if found.edges is not None:
        scores |= {"edges_zero": measure.zeros(found.edges)}
        if given.signs is not None:
            scores |= measure.edge_precision(found.edges, given.signs)
    return {"scores": scores, "converged": True, "seconds": time.perf_counter() - start}, {}


def _judge_model(model: Model, seed: int, given: _Given) -> Result:
    start = time.perf_counter()
    rows = np.union1d(given.train, given.validation)
    spare = given.validation if len(given.validation) else 0.1
    fitted = model.fit(
        given.data, given.schema, rows=rows, validation=spare, seed=seed, progress=given.progress
    )
    seconds = time.perf_counter() - start
    module = fitted.module
    scores = _forecasts(given, module.forecast)
    edges = module.edges().numpy()
    weights = torch.cat([w.flatten() for w in module.field.effective()]).detach().numpy()
    scores |= {"weights_zero": measure.zeros(weights), "edges_zero": measure.zeros(edges)}
    if given.signs is not None:
        scores |= measure.edge_precision(edges, given.signs)
    return {
        "scores": scores,
        "converged": bool(fitted.provenance["converged"]),
        "seconds": seconds,
    }, {}


def _forecasts(given: _Given, forecast: Any) -> dict[str, float]:
    """Return the errors of every level; each series has the same say."""
    centre = BASELINES["training mean"](given.learned, given.bandwidth).forecast
    scores: dict[str, float] = {}
    for level, batch in given.levels.items():
        smooth, _ = batch.smoothed(batch.times, given.bandwidth)
        try:
            with torch.no_grad():
                found = forecast(batch).numpy()
        except BlowUpError:
            found = np.full(tuple(batch.values.shape), np.inf)
        plain = centre(batch).numpy()
        weight, even = (
            batch.weight.numpy(),
            batch.observed[..., None].expand_as(batch.weight).numpy(),
        )
        for key, truth, w in (
            ("mse", batch.values, weight),
            ("denoised", smooth, even.astype(float)),
        ):
            own, of_mean = (
                float(np.mean(list(map(measure.forecast_error, guess, truth.numpy(), w))))
                for guess in (found, plain)
            )
            name = "r2" if key == "mse" else "denoised_r2"
            scores |= {
                f"{key}, {level}": own,
                f"{name}, {level}": measure.explained(own, of_mean),
            }
        if np.isfinite(found).all():
            split = [
                measure.scaling_error(*row)[0]
                for row in zip(found, smooth.numpy(), even.astype(float), strict=True)
            ]
            scores[f"scaling, {level}"] = float(np.mean(split))
    return scores
