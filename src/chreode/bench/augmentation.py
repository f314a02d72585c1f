"""Do generated cells make a classifier find rare types? Against nothing, oversampling and class weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from ..compute.convergence import State
from ..compute.settings import settled
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.collect import MEMORY_LIMIT
from ..data.read import Data
from ..errors import ConfigError, DataError, SchemaError, counted
from ..metrics.space import Space
from ..model import Model
from ..run import Run
from ..schema import Schema
from ..trials.digest import provenance
from ..trials.runner import run_of_trials
from ..trials.trial import Result
from ..verbs.augmentation import augment
from .contest import Contestant, contest, contestants
from .sizes import cell_counts
from .table import Bench
from .yardstick import stratified

#: Shares of the cells, as `Parts` has them.
SHARES = (0.5, 0.4, 0.1)
NONE, OVERSAMPLED, WEIGHTED = "nothing added", "oversampling", "class weights"
_NEIGHBOURS, _COMPONENTS = 15, 50
METRICS = {
    f"{classifier}_{key}": (f"{meaning}, {classifier}", 1.0, f"{about}, by {long}")
    for classifier, long in (("knn", "15 nearest neighbours"), ("logistic", "logistic regression"))
    for key, meaning, about in (
        ("rare", "recall of rare classes", "mean recall of the classes below the floor"),
        ("recall", "recall", "mean recall of all classes"),
        ("precision", "precision of rare classes", "mean precision of the classes below the floor"),
    )
}

Codes: TypeAlias = Int[np.ndarray, " _"]


class Parts(NamedTuple):
    """Rows to learn from, to test on, and of the yardstick: the space of the classifiers is fitted on it."""

    train: np.ndarray
    test: np.ndarray
    yardstick: np.ndarray


@dataclass(frozen=True, eq=False)
class _Given:
    """What every trial is given; `classes` are codes of `names`, -1 where a cell has none."""

    data: Data
    schema: Schema
    counts: sp.csr_matrix
    classes: Codes
    names: Sequence[str]
    by: str
    floor: int | None
    run: Run


#: Returns counts and classes to add to the training rows given, and how a fit for it stood.
_Add: TypeAlias = Callable[
    [_Given, np.ndarray, int, int], tuple[sp.csr_matrix | None, Codes, State]
]


@settled()
@checked
def augmentation(
    data: Data | str | Path,
    schema: Schema,
    models: Sequence[Model] = (),
    *,
    by: str = "label",
    floor: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    into: str | Path | None = None,
    run: Run = Run(),
    **settings: Any,
) -> Bench:
    """Train classifiers on cells and on what is added to them, and test them on real held-out cells.

    Classifiers see 50 principal components of log-expression. These, and their scale, are fitted on a tenth
    of the cells, from which nothing is learned otherwise and on which nothing is tested.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `counts` and `by`.
    models
        Models that generate given `by`, fitted on the training cells once per seed.
    by
        Role, covariate or obs column that is classified.
    floor
        Cells that each class is filled up to (default: the median size of a class in training); classes
        below it are the rare ones.
    seeds
        Seeds of splits, fits and draws.
    into
        Folder that keeps the result of every row and seed as it comes, and from which the same call
        goes on.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    Bench
        Recall and precision on real cells, with nothing added, with cells drawn repeatedly, and with
        classes weighed by their size, as controls.
    """
    run = run_of_trials(run, settings)
    cells = Cells.of(data, schema)
    given = _given(cells, by, floor, run)
    rows = [
        Contestant(NONE, "baseline", partial(_judge, _nothing)),
        Contestant(OVERSAMPLED, "baseline", partial(_judge, _oversampled)),
        Contestant(WEIGHTED, "baseline", partial(_judge, _nothing, weighted=True)),
        *contestants(models, lambda model: partial(_judge, partial(_generated, model))),
    ]
    metrics = pd.DataFrame(
        [
            {"metric": key, "name": name, "group": "augmentation", "best": best, "about": meaning}
            for key, (name, best, meaning) in METRICS.items()
        ]
    ).set_index("metric")
    sizes = np.bincount(given.classes[given.classes >= 0], minlength=len(given.names))
    about = {
        **provenance(cells), "by": given.by, "floor": floor, "classes": len(given.names),
        "untested": [name for name, n in zip(given.names, sizes, strict=True) if n < 2],
    }  # fmt: skip
    bench, _ = contest("augmentation", rows, metrics, given, about, seeds=seeds, into=into, run=run)
    return replace(bench, sizes=cell_counts(cells))


def _given(cells: Cells, by: str, floor: int | None, run: Run) -> _Given:
    roles = {role.removeprefix("categorical/"): role for role in cells.places}
    of_columns = {cells.places[role].key: name for name, role in roles.items()}
    by = by if by in roles else of_columns.get(by, by)
    for role in ("counts", by):
        if role not in roles:
            raise SchemaError(f"bench.augmentation needs {role}: name its place in the schema.")
    values = cells.categories(roles[by])
    matrix, _ = cells.matrix("counts")
    at = cells.rows("counts")
    counts = sp.csr_matrix(matrix[np.arange(matrix.shape[0])])
    if at is not None:
        values = values.where(at >= 0)
        counts = counts[np.maximum(at, 0)]
    names = sorted(values.dropna().unique())
    size = 4 * (floor or 0) * len(names) * counts.shape[1]
    if floor is not None and floor < 1:
        raise ConfigError(f"floor={floor}: expected at least 1.")
    if size > MEMORY_LIMIT:
        raise ConfigError(
            f"floor={floor}: classes filled up to it may take {size / 2**30:.1f} GiB, more than the "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB built in memory. Give a lower one."
        )
    if len(names) < 2:
        raise DataError(
            f"{by} tells {counted(len(names), 'class')} of cells: a classifier needs two at the least."
        )
    classes = pd.Index(names).get_indexer(pd.Index(values)).astype(np.int64)
    return _Given(cells.data, cells.schema, counts, classes, names, by, floor, run)


def split(classes: Codes, seed: int) -> Parts:
    """Return the rows of every part, shares of each class (see `SHARES`)."""
    return Parts(*stratified(classes, SHARES, np.random.default_rng([seed, 11])))


def _judge(add: _Add, seed: int, given: _Given, *, weighted: bool = False) -> Result:
    start = time.perf_counter()
    train, test, yardstick = split(given.classes, seed)
    sizes = np.bincount(given.classes[train], minlength=len(given.names))
    floor = int(np.median(sizes[sizes > 0])) if given.floor is None else given.floor
    # a class of one cell has none to be tested on
    rare = np.flatnonzero((sizes < floor) & np.isin(np.arange(len(sizes)), given.classes[test]))
    if not len(rare):
        raise DataError(
            f"No class has fewer than {counted(floor, 'training cell')}: raise the floor."
        )
    more, of_more, state = add(given, train, floor, seed)
    seconds = time.perf_counter() - start
    space = Space.of(given.counts[yardstick], given.counts.shape[1], _COMPONENTS)
    x, y = space.place(given.counts[train]), given.classes[train]
    if more is not None:
        x = np.concatenate([x, space.place(more)])
        y = np.concatenate([y, of_more])
    unseen, scale = space.place(given.counts[test]), space.place(given.counts[yardstick]).std(0)
    scores: dict[str, float] = {}
    for classifier, guess in _guesses(x, y, unseen, scale, weighted=weighted).items():
        precision, recall, _, n = precision_recall_fscore_support(
            given.classes[test], guess, labels=np.arange(len(given.names)), zero_division=0
        )
        scores[f"{classifier}_rare"] = float(recall[rare].mean())
        scores[f"{classifier}_recall"] = float(recall[n > 0].mean())
        scores[f"{classifier}_precision"] = float(precision[rare].mean())
    return {"scores": scores, "state": state, "seconds": seconds}, {}


def _guesses(
    x: Float[np.ndarray, "n z"],
    y: Codes,
    unseen: Float[np.ndarray, "m z"],
    scale: Float[np.ndarray, " z"],
    *,
    weighted: bool,
) -> dict[str, Codes]:
    """Return the class of each unseen cell by both classifiers; weights are one over a class's size."""
    knn = KNeighborsClassifier(_NEIGHBOURS).fit(x, y)
    votes = knn.predict_proba(unseen)
    if weighted:
        votes = votes / np.bincount(y)[knn.classes_]
    logistic = LogisticRegression(max_iter=1000, class_weight="balanced" if weighted else None).fit(
        x / scale, y
    )
    return {"knn": knn.classes_[votes.argmax(1)], "logistic": logistic.predict(unseen / scale)}


# what each row adds


def _nothing(*_: Any) -> tuple[None, Codes, State]:
    return None, np.zeros(0, np.int64), "rested"


def _oversampled(
    given: _Given, train: np.ndarray, floor: int, seed: int
) -> tuple[sp.csr_matrix, Codes, State]:
    rng, y = np.random.default_rng(seed), given.classes[train]
    sizes = np.bincount(y, minlength=len(given.names))
    drawn = [
        rng.choice(train[y == number], floor - n) for number, n in enumerate(sizes) if 0 < n < floor
    ]
    rows = np.concatenate(drawn)
    return given.counts[rows], given.classes[rows], "rested"


def _generated(
    model: Model, given: _Given, train: np.ndarray, floor: int, seed: int
) -> tuple[sp.csr_matrix, Codes, State]:
    fitted = model.fit(given.data, given.schema, rows=train, seed=seed, run=given.run)
    both = augment(
        given.data, fitted, by=given.by, floor=floor, rows=train, seed=seed, run=given.run
    )
    new = both[~both.obs_names.isin(given.data.obs_names[train])]
    codes = pd.Index(given.names).get_indexer(
        pd.Index(new.obs[fitted.column(given.by)].astype(str))
    )
    return sp.csr_matrix(new.X), codes.astype(np.int64), fitted.provenance["state"]
