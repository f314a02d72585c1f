"""Search for better options of a model, and say whether they beat its own by more than chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData

from .. import config
from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.check import findings, require
from ..data.holdout import hold_out, named_cells
from ..data.read import Data
from ..errors import CapabilityError, ConfigError, FitError, near
from ..fitted import Fitted
from ..model import Model
from ..run import Run
from ..schema import Schema
from .cluster import opened, portable
from .digest import digest, provenance
from .identity import identity
from .trial import Outcome, Result, Trial
from .trials import Runner, running

#: A fitted model and cells that it has not learned from -> a number, the lower the better.
Objective: TypeAlias = Callable[[Fitted, Data], float]
#: Option -> lowest and highest value (a tuple), or values to choose from (a list).
Space: TypeAlias = Mapping[str, tuple[float, float] | Sequence[Any]]

#: Refits of the options given and of the best ones, with further seeds.
REFITS = 3
#: Options searched by default, and how far from the model's own value in both directions.
_FACTORS = {
    "n_latent": 4, "n_factors": 4, "n_hidden": 4, "batch_size": 4, "lr": 10, "weight_decay": 100,
}  # fmt: skip
#: Options searched by default in a range of their own.
_RANGES: dict[str, tuple[float, float]] = {"n_layers": (1, 3), "dropout": (0.0, 0.5)}


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `tune` returns.

    Attributes
    ----------
    best
        The model with the options of the lowest objective; ``best.fit(…)`` fits it.
    trials
        One row per trial: options, objective on the validation cells, seconds, state, seed, note.
        Trial 0 is the model as it was given.
    refits
        One row per refit of the options given and of the best: seed, objective on the test cells.
    about
        Data fingerprint, schema, model, split, versions: what a reader needs to repeat it.
    """

    best: Model
    trials: pd.DataFrame
    refits: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def improved(self) -> bool:
        """Whether every refit of the best options is better than every one of those given.

        If they made no difference, that would happen in 1 of 20 cases (three against three).
        """
        of = dict(tuple(self.refits.groupby("options")["objective"]))
        # a refit that failed has no objective, and is not better than anything
        return "best" in of and bool(of["best"].max(skipna=False) < of["given"].min(skipna=False))

    def intervals(self) -> pd.DataFrame:
        """Return mean, lowest and highest objective of the refits, on cells held out of everything."""
        return self.refits.groupby("options", sort=False)["objective"].agg(["mean", "min", "max"])

    def verdict(self) -> str:
        """Say in words whether the search found something better than the options given."""
        name, number = type(self.best).__name__, self.trials["objective"].idxmin()
        said = {
            options: f"{row['mean']:.5g} ({row['min']:.5g} to {row['max']:.5g})"
            for options, row in self.intervals().iterrows()
        }
        how = f"mean and range of {REFITS} refits on test cells"
        if number == 0:
            return f"No trial was better than {name} as given: {said['given']}, {how}."
        against = f"{said['best']} against {said['given']}, {how}"
        if self.improved:
            return f"Trial {number} beats {name} as given: {against}."
        return f"Trial {number} does not beat {name} as given, beyond what refits differ by: {against}."


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given; rows are positions of cells."""

    data: Data | Path
    schema: Schema
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    objective: Objective
    run: Run


@checked
def tune(
    model: Model,
    data: Data | str | Path,
    schema: Schema,
    *,
    trials: int = 20,
    seed: int = 0,
    space: Space | None = None,
    objective: Objective | None = None,
    rows: Any = None,
    validation: Any = 0.1,
    test: Any = 0.1,
    into: str | Path | None = None,
    ray: bool | int = False,
    run: Run = Run(),
    **settings: Any,
) -> Tuned:
    """Search for better options of a model by fits judged on held-out cells (TPE).

    Trial 0 is the model as given. The best options and those given are then fitted again, under three
    further seeds, and judged on test cells that nothing has seen.

    Parameters
    ----------
    model
        Where the search begins. Its options outside of `space` stay as they are.
    data
        AnnData, MuData or a path.
    schema
        Where each role lives.
    trials
        How many, with trial 0.
    seed
        Of the split, of the search, and of every fit in it.
    space
        Option -> (lowest, highest), or a list of values (default: see `default_space`). A range of
        whole numbers stays whole; one that spans a factor of 10 is searched on a log scale.
    objective
        Of a fitted model and cells that it has not learned from; the lowest is the best (default: minus
        the mean `score` in nats per cell, for models that have one).
    rows
        Cells to use: mask, positions or names (default: all).
    validation
        Share of them by which trials are compared, or these rows themselves.
    test
        Share of them for the refits at the end, or these rows themselves. A share is drawn from rows that
        are not named for the other.
    into
        Folder that keeps the result of every trial as it comes. The same call goes on where it was
        cut off, and more `trials` go on from there too.
    ray
        Run trials side by side on Ray, with so many threads each (True: one). Options are then
        suggested for all workers at once, so that the trials depend on the number of workers.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Raises
    ------
    SchemaError, DataError
        If a role is absent or its values are wrong.
    ConfigError
        If `space` names an option that is not there, or one that changes what the score is of, or leaves
        the model's own value out.
    FitError
        If the model as given cannot be fitted or judged.
    CapabilityError
        If optuna, or Ray where it is asked for, is not installed.
    StoreError
        If `into` holds results of other data, settings or versions.
    KeyboardInterrupt
        At Ctrl-C, which ends everything at once; it says what is kept.

    References
    ----------
    Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization, NeurIPS 24.
    """
    space = default_space(model) if space is None else space
    study = _Study(model, space, seed)
    if trials < 1:
        raise ConfigError(f"trials={trials}: expected at least 1.")
    sent = portable(data) if ray else None
    run, cells = run.with_(**settings), Cells.of(data, schema)
    positions = cells.positions(rows)
    require(findings(cells, positions, progress=run.progress))
    train, between, last = _three(cells, positions, validation, test, seed)
    if objective is None and (other := sorted(set(space) & set(model.rescores))):
        raise ConfigError(
            f"{model.key} with another {other[0]} scores something else, so trials cannot be compared by "
            f"their score. Leave {other[0]} out of the space, or give an objective."
        )
    objective = objective or nats_per_cell
    with pinned(int(ray) or run.threads or torch.get_num_threads()):
        about = {
            **provenance(cells), "model": model.key, "rows": digest(train, between, last),
            "objective": _told_apart(objective, named=into is None),
        }  # fmt: skip
        given = _Given(
            cells.data if sent is None else sent, schema, train, between, last, objective, run
        )
        with (
            bar(trials + 2 * REFITS, "tune", run.progress) as shown,
            running(given, about, into=into, ray=ray) as runner,
        ):
            table, tried = study.search(runner, trials, shown)
            best = tried[table["objective"].idxmin()]
            compared = {"given": model} | ({} if best == model else {"best": best})
            refits = _refits(runner, compared, range(seed + 1, seed + 1 + REFITS), shown)
    return Tuned(best, table, refits, about)


def default_space(model: Model) -> dict[str, tuple[float, float]]:
    """Return the ranges that `tune` searches: sizes, rates and regularisation about the model's own.

    Options that change the likelihood are left out, because objectives are then not comparable; so
    are those in which `model` differs from its class, because they were chosen.

    Examples
    --------
    >>> import chreode as ch
    >>> default_space(ch.PPCA())
    {'n_latent': (2, 40)}
    >>> default_space(ch.PPCA(n_latent=20))
    {}
    """
    space: dict[str, tuple[float, float]] = {}
    for option in dataclasses.fields(model):  # type: ignore[arg-type]  # `config` makes it one
        name, value, told = option.name, getattr(model, option.name), option.metadata
        if value != option.default or not (name in _RANGES or (name in _FACTORS and value)):
            continue
        if name in _RANGES:
            low, high = min(_RANGES[name][0], value), max(_RANGES[name][1], value)
        else:
            low, high = value / _FACTORS[name], value * _FACTORS[name]
        low = low if told["low"] is None else max(low, told["low"])
        high = high if told["high"] is None else min(high, told["high"])
        space[name] = (int(low), int(high)) if isinstance(value, int) else (low, high)
    return space


def nats_per_cell(fitted: Fitted, cells: Data) -> float:
    """Return minus the mean of `Fitted.score`: of the evidence lower bound, or of the likelihood itself.

    Cells that lack the modality are left out.

    Raises
    ------
    CapabilityError
        If the model has no score.
    """
    return -float(np.nanmean(fitted.score(cells, progress=False)))


def _told_apart(objective: Objective, *, named: bool) -> str:
    """Return the name of an objective and, where results are kept, what tells it from others."""
    name = getattr(objective, "__qualname__", type(objective).__qualname__)
    name = f"{getattr(objective, '__module__', '')}.{name}"
    if named:
        return name
    try:
        return f"{name} {identity(objective)}"
    except ConfigError as error:
        raise ConfigError(
            f"The objective {name} refers to {error}, of which cannot be told whether it is the same in the "
            "next call, so results of several objectives could be mixed in one folder (into). Give it plain "
            "values, as in functools.partial(objective, weight=0.5), or leave out into."
        ) from error


class _Study:
    """What optuna suggests and is told.

    It is told in the order of the trials, whichever finished first, so the same seed and number of
    workers bring the same suggestions again, and a run that was cut off finds its trials on disk.
    """

    def __init__(self, model: Model, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise CapabilityError(
                "optuna is not installed: pip install 'chreode[tune]'."
            ) from error
        self.given, self.seed = model, seed
        self.space = {name: _distribution(model, name, values) for name, values in space.items()}
        if not self.space:
            raise ConfigError(f"{model.key} has no option to search; name some: space=….")
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells that it was made
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        optuna.logging.set_verbosity(level)
        self.study.enqueue_trial({name: getattr(model, name) for name in space})

    def search(self, runner: Runner, trials: int, shown: Any) -> tuple[pd.DataFrame, list[Model]]:
        """Return a row and a model per trial; as many are suggested at once as run at once."""
        from optuna.trial import TrialState

        rows: list[dict[str, Any]] = []
        tried: list[Model] = []
        while len(rows) < trials:
            n = min(runner.workers, trials - len(rows))
            asked = [self.study.ask(self.space) for _ in range(n)]
            models: list[Any] = [dataclasses.replace(self.given, **one.params) for one in asked]  # type: ignore[type-var]  # as above
            todo = [
                _trial(f"trial {one.number}", model, self.seed, "validation")
                for one, model in zip(asked, models, strict=True)
            ]
            for one, outcome in zip(asked, runner.run(todo, shown), strict=True):
                if outcome.failed:
                    self.study.tell(one, state=TrialState.FAIL)
                else:
                    self.study.tell(one, outcome.row["objective"])
                rows.append({**one.params, **_told(outcome), "seed": self.seed})
            tried += models
            if rows[0]["note"]:
                raise FitError(f"{self.given.key}, as given, {rows[0]['note']}")
        return pd.DataFrame(rows).rename_axis("trial"), tried


def _distribution(model: Model, name: str, values: Any) -> Any:
    """Return a range or choice as optuna has it; the model's own value must lie in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = [option["name"] for option in config.describe(type(model))]
    if name not in known:
        raise ConfigError(f"{type(model).__name__} has no option {name!r}.{near(name, known)}")
    own = getattr(model, name)
    made: Any
    if isinstance(values, tuple) and len(values) == 2:
        low, high = values
        inside = own is not None and low <= own <= high
        kind = (
            IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        )
        made = kind(low, high, log=low > 0 and high >= 10 * low)
    else:
        inside, made = own in values, CategoricalDistribution(values)
    if not inside:
        raise ConfigError(
            f"space: {name} in {values} leaves out {type(model).__name__}'s own value, {own!r}, with which "
            f"the others are compared. Widen it, or give a model whose {name} lies in it."
        )
    return made


def _three(
    cells: Cells, rows: np.ndarray, validation: Any, test: Any, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows to learn from, to compare trials by, and to judge at the end: no two share any."""
    between = named_cells(cells, rows, validation, "validation")
    last = named_cells(cells, rows, test, "test")
    both = [what for what in (between, last) if not isinstance(what, float)]
    if len(both) == 2 and (shared := len(np.intersect1d(*both))):
        raise ConfigError(
            f"{shared:,} cells are named both for validation and for test: choose one."
        )
    named = np.concatenate([np.zeros(0, int), *both])
    parts, rest = {}, np.setdiff1d(rows, named)
    for name, what, given in (("test", last, test), ("validation", between, validation)):
        parts[name] = what
        if isinstance(what, float):
            rest, parts[name] = hold_out(rest, what, Rng(seed).numpy(f"tune {name}"))
        if not len(parts[name]):
            raise ConfigError(
                f"{name}={given}: expected a share above 0 that comes to a cell at least, or rows."
            )
    return rest, parts["validation"], parts["test"]


def _trial(name: str, model: Model, seed: int, cells: Literal["validation", "test"]) -> Trial:
    about = {"config": config.as_dict(model), "seed": seed, "judged on": cells}
    return Trial(name, partial(_fit_and_judge, model, seed, cells), about)


def _fit_and_judge(
    model: Model, seed: int, cells: Literal["validation", "test"], given: _Given
) -> Result:
    data = opened(given.data)
    # what learns without validation would learn from the validation rows too
    validates = any(phase.learner.validates for phase in model.phases())
    rows = np.union1d(given.train, given.validation) if validates else given.train
    fitted = model.fit(
        data,
        given.schema,
        seed=seed,
        rows=rows,
        validation=given.validation if validates else 0,
        run=given.run,
    )
    value = float(given.objective(fitted, _some(data, getattr(given, cells))))
    if not np.isfinite(value):
        raise FitError(f"the objective is {value}")
    return {"objective": value, "state": fitted.provenance["state"]}, {}


def _some(data: Any, rows: np.ndarray) -> Data:
    """Return some cells; of data on disk, in memory."""
    if isinstance(data, AnnData):
        return data[rows].to_memory()  # no view: an objective may write to it
    if isinstance(data, MuData):
        return data[rows]

    def part(values: Any) -> Any:
        return values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]

    def of(slot: Mapping[str, Any]) -> dict[str, Any]:
        return {name: part(values) for name, values in slot.items()}

    names = data.obs_names[rows]
    mod = {m: _some(d, np.flatnonzero(d.obs_names.isin(names))) for m, d in data.mod.items()}
    return dataclasses.replace(
        data, obs=part(data.obs), X=None if data.X is None else part(data.X),
        layers=of(data.layers), obsm=of(data.obsm), raw=data.raw and _some(data.raw, rows), mod=mod,
    )  # fmt: skip


def _told(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row or {"objective": np.nan, "state": ""}
    note = f"failed: {outcome.failed}" if outcome.failed else ""
    return {**row, "seconds": outcome.seconds, "note": note}


def _refits(runner: Runner, models: Mapping[str, Model], seeds: range, shown: Any) -> pd.DataFrame:
    """Return a row per refit, judged on the test cells."""
    pairs = [(name, seed) for name in models for seed in seeds]
    todo = [_trial(f"{name}, seed {seed}", models[name], seed, "test") for name, seed in pairs]
    outcomes = runner.run(todo, shown)
    return pd.DataFrame(
        [
            {"options": name, "seed": seed, **_told(outcome)}
            for (name, seed), outcome in zip(pairs, outcomes, strict=True)
        ]
    )
