"""Forecasts of starts, donors and lineages never seen, and what is said to drive them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..compute.settings import settled
from ..config.arguments import checked
from ..data.align import gene_positions, learn_spec, open_source
from ..data.cells import Cells
from ..data.read import Data
from ..data.series import SeriesBatch
from ..data.series_source import SeriesSource
from ..errors import ConfigError, DataError, SchemaError, counted, near
from ..metrics import dynamics as measure
from ..model import Model
from ..run import Run
from ..schema import Schema
from ..trials.digest import digest, provenance
from ..trials.runner import run_of_trials
from ..trials.trial import Result
from .contest import Contestant, contest, contestants
from .forecasters import BASELINES, CEILING, Learn, halves
from .table import Bench

#: Of the smoother that makes starts and denoised targets, as a share of the time.
BANDWIDTH = 0.03
#: Times of a series that is learned from, and of one that is forecast: beyond, neighbours are averaged.
_LEARNED, _FORECAST = 100, 10_000


@dataclass(frozen=True, eq=False)
class Unseen:
    """Series to be forecast, and the positions of genes that are absent from them throughout."""

    batch: SeriesBatch
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given: series of the training cells and of every level, and what is true."""

    data: Data
    schema: Schema
    train: np.ndarray
    validation: np.ndarray
    learned: SeriesBatch
    levels: Mapping[str, Sequence[Unseen]]
    bandwidth: float
    signs: np.ndarray | None
    pairs: np.ndarray
    run: Run

    def digest(self) -> str:
        """Name all that results depend on beside the data and the method."""
        unseen = [(level, u) for level, of in self.levels.items() for u in of]
        names = [[level, list(u.absent), list(u.batch.names)] for level, u in unseen]
        asked = [x.numpy() for _, u in unseen for x in (u.batch.times, u.batch.weight)]
        return digest(names, *asked, self.train, self.validation, self.signs, self.pairs)


@settled()
@checked
def dynamics(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[Model] = (),
    *,
    tests: Mapping[str, Any],
    knockouts: Mapping[str, Any] | None = None,
    validation: Any = None,
    edges: pd.DataFrame | None = None,
    regulators: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    into: str | Path | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Bench:
    """Fit on some trajectories, and forecast others from their starts.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `time`, `expression` or `counts`, and `trajectory` where there are several.
    methods
        Models of time to be fitted, as neural ODEs are.
    tests
        Cells to forecast (masks, positions or names) by how far they are from those learned from:
        ``{"new start": …, "new donor": …}``. All others are learned from.
    knockouts
        Cells without a gene, by its name (several as ``A+B``): forecast with what is known to be absent,
        and judged by all other genes. They are not learned from.
    validation
        Cells that models choose their strength by (default: as each model chooses). They are forecast too,
        as the level *validation*.
    edges
        True edges, if they are known: ``source, target, sign``.
    regulators, targets
        Genes that could drive others, and that could be driven, if not all: edges are judged among pairs of
        these, and chance is the share of these that are true. Say so where the reference knows of no others.
    seeds
        Seeds of fits.
    into
        Folder that keeps every result as it comes, and from which the same call goes on.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    Bench
        By level the mean squared error of cells, the same of smoothed paths (*denoised*), and R² of both
        against the mean of the training cells; precision of edges, and how sparse weights and edges are.
        Beside what a page of code can forecast, and a ceiling: what every other time of a series tells of
        those between. A path that blows up has an infinite error.
    """
    for model in methods:
        if "time" not in model.needs:
            raise ConfigError(f"{model.key} forecasts no paths, which this bench compares.")
    run, cells = run_of_trials(run, settings), Cells.of(data, schema)
    given = _given(
        cells, tests, knockouts or {}, validation, edges, (regulators, targets), run
    )  # fmt: skip
    rows = [
        *(
            Contestant(name, "baseline", partial(_judge_baseline, learn))
            for name, learn in BASELINES.items()
        ),
        *contestants(methods, lambda model: partial(_judge_model, model)),
        Contestant(CEILING, "ceiling", partial(_judge_baseline, halves)),
    ]
    about = {
        **provenance(cells), "train": len(given.train), "levels": list(given.levels),
        "given": given.digest(),
    }  # fmt: skip
    bench, outcomes = contest(
        "dynamics", rows, _metric_table(given), given, about, seeds=seeds, into=into, run=run
    )  # fmt: skip
    further = {
        name: pd.DataFrame(
            {"method": method, "seed": seed, **row}
            for method, of in outcomes.items()
            for seed, outcome in of.items()
            for row in outcome.row.get(name, [])
        )
        for name in ("by_class", "curves")
    }
    return replace(bench, **further)


def _given(
    cells: Cells,
    tests: Mapping[str, Any],
    knockouts: Mapping[str, Any],
    validation: Any,
    edges: pd.DataFrame | None,
    among: tuple[Sequence[str] | None, Sequence[str] | None],
    run: Run,
) -> _Given:
    named = {role.partition("/")[0] for role in cells.places}
    if "time" not in named or not named & {"expression", "counts"}:
        raise SchemaError("bench.dynamics needs time, and expression or counts: name their places.")
    role = "expression" if "expression" in named else "counts"
    roles = [role, "time", *({"trajectory"} & named)]
    everything = np.arange(len(cells))
    rows = {name: cells.positions(some, f"tests[{name!r}]") for name, some in tests.items()}
    without = {genes: cells.positions(c, f"knockouts[{genes!r}]") for genes, c in knockouts.items()}
    held_out = np.concatenate([np.zeros(0, int), *rows.values(), *without.values()])
    spare = np.zeros(0, int) if validation is None else cells.positions(validation, "validation")
    train = np.setdiff1d(everything, np.concatenate([held_out, spare]))
    _require_cells(
        {"to learn from": train, **{f"of {name!r}": some for name, some in rows.items()}}
    )
    spec = learn_spec(cells, roles, everything)
    source = open_source(cells, spec, roles, {})
    span = source.scaled("time")[train]
    bandwidth = BANDWIDTH * float(span.max() - span.min())

    def series(known: np.ndarray, n_times: int = _FORECAST) -> SeriesBatch:
        of = SeriesSource.of(source, known=known, n_times=n_times, bandwidth=bandwidth)
        return of.series(known)

    if len(spare):
        rows["validation"] = spare
    levels = {name: [Unseen(series(some))] for name, some in rows.items()}
    if without:
        levels["knock-out"] = [
            Unseen(series(some), gene_positions(spec, "knockouts", genes))
            for genes, some in without.items()
        ]
    signs = None if edges is None else _signs(edges, spec.features[role])
    judged = zip(("regulators", "targets"), among, strict=True)
    drives, driven = (_among(name, genes, spec.features[role]) for name, genes in judged)
    pairs = drives[:, None] & driven
    return _Given(
        cells.data, cells.schema, train, spare, series(train, _LEARNED), levels, bandwidth, signs, pairs, run
    )  # fmt: skip


def _require_cells(parts: Mapping[str, np.ndarray]) -> None:
    for which, cells in parts.items():
        if not len(cells):
            raise DataError(
                f"There are no cells {which}: tests name some to forecast, and leave others to learn from."
            )


def _signs(edges: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Return true edges as genes x genes, row the source."""
    lacking = [c for c in ("source", "target", "sign") if c not in edges]
    if lacking:
        raise SchemaError(
            f"edges: there is no column {lacking[0]!r}.{near(lacking[0], edges.columns)}"
        )
    at = {
        c: _known(f"edges, {c!r}", [str(g) for g in edges[c]], genes) for c in ("source", "target")
    }
    sign = pd.to_numeric(edges["sign"], errors="coerce").to_numpy(float)
    if not np.isfinite(sign).all():
        raise SchemaError("edges: 'sign' must be 1 (activates) or -1 (represses) in every row.")
    signs = np.zeros((len(genes), len(genes)))
    signs[at["source"], at["target"]] = sign
    return signs


def _among(name: str, some: Sequence[str] | None, genes: Sequence[str]) -> np.ndarray:
    """Return which of the genes these are, all by default."""
    found = np.full(len(genes), some is None)
    if some is not None:
        found[_known(name, some, genes)] = True
    return found


def _known(name: str, some: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """Return where these are among the genes; one that is not is refused by name."""
    found = pd.Index(genes).get_indexer(pd.Index(some, dtype=object))
    unknown = pd.unique(np.asarray(some, object)[found < 0])
    if len(unknown):
        more = f", nor {counted(len(unknown) - 1, 'other')}," if len(unknown) > 1 else ""
        raise SchemaError(
            f"{name}: there is no gene {unknown[0]!r}{more} in the data.{near(unknown[0], genes)} "
            "Correct such names, or leave them out."
        )
    return found


def _metric_table(given: _Given) -> pd.DataFrame:
    rows = []
    for level in given.levels:
        for key, name, best, meaning in (
            ("mse", "MSE", 0.0, "mean squared error of cells"),
            ("r2", "R²", 1.0, "1 less that error over the training mean's"),
            ("denoised", "MSE, denoised", 0.0, "mean squared error of smoothed paths"),
            ("denoised_r2", "R², denoised", 1.0, "1 less that error over the training mean's"),
            (
                "scaling",
                "scaling",
                0.0,
                "the part of it that a line per gene and series would remove",
            ),
        ):
            rows.append((f"{key}, {level}", f"{name}, {level}", level, best, meaning))
    if given.signs is not None:
        rows += [
            ("auprc", "edges", "edges", 1.0, "area under precision and recall of edges"),
            ("lift", "lift", "edges", np.nan, "that over the density of true edges"),
            ("signed", "signed edges", "edges", 1.0, "the same of edges with their signs"),
            ("signed_lift", "signed lift", "edges", np.nan, "that over its value by chance"),
            ("hamming", "Hamming", "edges", 0.0, "share of pairs called wrongly"),
            ("sign", "signs", "edges", 1.0, "share of right signs of true edges that were called"),
        ]
    rows.append(("edges_zero", "pairs without effect", "sparsity", np.nan, "share of all pairs"))
    if given.signs is not None:
        name = "the same, of genes that drive none"
        rows.append(("spurious_zero", name, "sparsity", 1.0, "share of pairs"))
    rows.append(("weights_zero", "weights at 0", "sparsity", np.nan, "share of weights below 1e-5"))
    columns = ["metric", "name", "group", "best", "about"]
    return pd.DataFrame(rows, columns=columns).set_index("metric")


def _judge_baseline(learn: Learn, seed: int, given: _Given) -> Result:  # noqa: ARG001 (no chance in them)
    start = time.perf_counter()
    found = learn(given.learned, given.bandwidth)
    scores, by_class = _forecasts(given, found.forecast if found.oracle else _blind(found.forecast))
    if found.edges is not None:
        spread = given.learned.spread()
        scores |= _of_edges(found.edges * spread[:, None] / spread, given)
    seconds = time.perf_counter() - start
    row = {"scores": scores, "by_class": by_class, "note": found.note}
    return {**row, "state": "rested", "seconds": seconds}, {}


def _judge_model(model: Model, seed: int, given: _Given) -> Result:
    start = time.perf_counter()
    rows = np.union1d(given.train, given.validation)
    spare = given.validation if len(given.validation) else 0.1
    fitted = model.fit(
        given.data, given.schema, rows=rows, validation=spare, seed=seed, run=given.run
    )
    seconds = time.perf_counter() - start
    module = fitted.module
    scores, by_class = _forecasts(given, _blind(module.forecast))
    weights = torch.cat([w.flatten() for w in module.field.effective()]).detach().numpy()
    scores |= {
        "weights_zero": measure.zeros(weights),
        **_of_edges(module.edges().numpy(), given),
    }
    curves = []
    if "none" in fitted.history:
        along = fitted.history.dropna(subset="none")
        curves = along[["strength", "held_out", "none"]].to_dict("records")
    row = {"scores": scores, "by_class": by_class, "curves": curves}
    return {**row, "state": fitted.provenance["state"], "seconds": seconds}, {}


def _of_edges(edges: np.ndarray, given: _Given) -> dict[str, float]:
    scores, signs = {"edges_zero": measure.zeros(edges)}, given.signs
    if signs is None:
        return scores
    idle = ~signs.any(1)
    if idle.any():
        scores["spurious_zero"] = measure.zeros(edges[idle])
    return {**scores, **measure.edge_precision(edges, signs, given.pairs)}


def _blind(forecast: Any) -> Any:
    """Return the forecast of series whose values it is not shown: of their starts and times alone."""

    def of(batch: SeriesBatch, absent: tuple[int, ...]) -> torch.Tensor:
        hidden = torch.full_like(batch.values, torch.nan)
        found: torch.Tensor = forecast(replace(batch, values=hidden), absent)
        return found

    return of


def _forecasts(given: _Given, forecast: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the errors of every level, in which each series has the same say, and of every series."""
    centre = BASELINES["training mean"](given.learned, given.bandwidth).forecast
    scores: dict[str, float] = {}
    by_class = []
    for level, tests in given.levels.items():
        parts = pd.concat([_errors(given, test, forecast, centre) for test in tests])
        by_class += [
            {"class": f"{level}: {name}", "metric": key, "value": value}
            for key in ("mse", "denoised")
            for name, value in parts[key].items()
        ]
        mean = parts.mean()
        scores |= {f"{key}, {level}": mean[key] for key in ("mse", "denoised", "scaling")}
        scores |= {
            f"{name}, {level}": measure.explained(mean[key], mean[f"{key} of mean"])
            for name, key in (("r2", "mse"), ("denoised_r2", "denoised"))
        }
    return scores, by_class


def _errors(given: _Given, test: Unseen, forecast: Any, centre: Any) -> pd.DataFrame:
    """Return the errors of each series; infinite where a path blows up."""
    batch = test.batch
    kept = np.setdiff1d(np.arange(batch.values.shape[2]), test.absent)
    with torch.no_grad():
        forecasts = forecast(batch, test.absent)
    mean_path, course = centre(batch, test.absent), batch.smoothed(batch.times, given.bandwidth)[0]
    # squares of what is far out are more than single precision holds
    found, plain, smooth, values, weight = (
        x.double().numpy()[..., kept]
        for x in (forecasts, mean_path, course, batch.values, batch.weight)
    )
    even = (weight > 0).any(2, keepdims=True) * np.ones_like(weight)
    rows = []
    for guess, mean, truth, denoised, w, e in zip(
        found, plain, values, smooth, weight, even, strict=True
    ):
        finite = np.isfinite(guess).all()
        rows.append({
            "mse": measure.forecast_error(guess, truth, w) if finite else np.inf,
            "mse of mean": measure.forecast_error(mean, truth, w),
            "denoised": measure.forecast_error(guess, denoised, e) if finite else np.inf,
            "denoised of mean": measure.forecast_error(mean, denoised, e),
            "scaling": measure.scaling_error(guess, denoised, e)[0] if finite else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows, index=batch.names)
