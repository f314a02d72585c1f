"""scSSL-Bench's three tasks: batches corrected, new cells typed, a hidden modality foretold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compute.convergence import State
from ..compute.progress import bar
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import ConfigError, SchemaError, near
from ..fitted import Fitted
from ..metrics.integration import chosen
from ..metrics.table import BASELINE
from ..model import Model
from ..registry import find
from ..run import Run
from ..schema import Schema
from ..trials.cluster import portable
from ..trials.digest import digest, provenance
from ..trials.runner import require_one, require_seeds, run_of_trials, running
from ..trials.trial import Result, Trial
from .embedded import HARMONY, Given, Method, ready, rows_of, shallow
from .integration import integration
from .missing import judge_mean, judge_measured, judge_missing
from .probed import TASKS, joined, judged
from .probing import (
    DRAWS,
    Posed,
    judge_genes,
    judge_typing,
    judge_within,
)
from .query import category, expression_role, proteins, refuse_unknown, split
from .sizes import cell_counts
from .table import Bench

#: Shares of the counts of query cells that types are told from.
DEPTHS = (1.0, 0.5, 0.1, 0.05)
#: Rows beside those of a bench of integration.
GENES, MEAN = "logistic regression", "mean profile"
OWN, MEASURED = "query's own labels", "measured protein"
#: What a row may know of the query.
GIVEN = "given: it may know the query"
SEES = "sees the query's genes"


@settled()
@checked
def probe(
    data: Data | str | Path,
    schema: Schema,
    methods: Sequence[str | Model | Fitted] | Mapping[str, str | Model | Fitted] = (),
    *,
    keys: Sequence[str] = (),
    held_out: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Any = None,
    depths: Sequence[float] | None = None,
    metrics: Sequence[str] | None = None,
    into: str | Path | None = None,
    ray: bool | int = False,
    run: Run = Run(),
    **settings: Any,
) -> Bench:
    """Score embeddings by three tasks: correct batches, tell types of new batches, foretell proteins.

    In correction, models learn from all cells. In the other tasks whole batches are held out: models,
    principal components, scales and genes are learned from the reference alone, and see the query cells only
    when they embed them.

    Parameters
    ----------
    data
        AnnData, MuData or a path.
    schema
        Must name `batch`, `label`, and what the methods need; `protein` for a missing modality, which needs
        no `label`.
    methods
        As in `integration`: keys of ``obsm``, fitted models, or models to be fitted here. The first two may
        have learned from the query cells, and are marked so.
    keys
        Further keys of ``obsm``.
    held_out
        Batches of the query (default: the two smallest ones of ten labelled cells or more with two types
        that other batches have too, or one if only one is; the report names them).
    tasks
        Of ``"correction"``, ``"typing"`` and ``"missing"`` (default: all, the last where `protein` is named).
    seeds
        Seeds of fits, clusterings and thinning.
    rows
        Cells to use (default: all). In correction models learn from the others too, as in `integration`.
    depths
        Shares of the query's counts that types are told from too (default: 1, 0.5, 0.1 and 0.05, where
        `counts` are named).
    metrics
        Metrics of correction (default: all).
    into
        Folder that keeps every result as it comes, and from which the same call goes on.
    ray
        Run methods and seeds side by side on Ray, as in `integration`.
    run
        How to compute (see `Run`); its fields may be given one by one, as ``device="cuda"``.

    Returns
    -------
    Bench
        Raw scores with bootstrap intervals over cells; PCA, Harmony, logistic regression on log-expression
        and the mean profile of the reference as baselines; as ceilings a label oracle (correction), 11
        nearest cells of the query itself (typing) and the cells that are nearest by their measured proteins
        (missing protein). `by_class` has single types and proteins; `confusion` and `calibration` have what
        classifiers said. ``scaled_total`` is the Total of scSSL-Bench, which depends on the other rows.

    Raises
    ------
    SchemaError
        If a role that is needed is not named, or a key is not in ``obsm``.
    ConfigError
        If there is no such task or batch, all batches are held out, or a depth is no share.
    DataError
        If there is one batch only, a held-out batch has fewer than ten labelled cells, the reference has
        fewer than two types, a side has no proteins, or every method failed.
    StoreError
        If `into` holds results of other data, settings or versions.
    """
    seeds = require_seeds(seeds)
    sent = portable(data) if ray else None
    run, cells = run_of_trials(run, settings), Cells.of(data, schema)
    wanted = _tasks(tasks, cells)
    chosen(metrics)
    _refuse_names(methods, keys)
    asked = (
        {**methods, **{k: k for k in keys}} if isinstance(methods, Mapping) else [*methods, *keys]
    )
    table = rows_of(cells, asked, seeds, find("pca")())[:-1]
    posed = None
    if {*wanted} - {"correction"}:
        posed = _posed(cells, table, wanted, rows, held_out, _depths(depths, cells), run)
    elif held_out:
        refuse_unknown(held_out, category(cells, "batch").dropna().unique())
    parts = {}
    if "correction" in wanted:
        parts["correction"] = integration(
            data if ray else cells.data, schema, asked, seeds=seeds, rows=rows, metrics=metrics,
            into=None if into is None else Path(into) / "correction", ray=ray, run=run,
        )  # fmt: skip
    if posed is not None:
        given, about = posed
        with pinned(int(ray) or run.threads or torch.get_num_threads()):
            given, table = _with_pca(given, table, seeds[0])
            given = replace(given, pictured="correction" not in wanted)
            given = given if sent is None else replace(given, data=sent)
            about = {**provenance(cells), **about, "held out by default": not held_out}
            for task in wanted[wanted[0] == "correction" :]:
                folder = None if into is None else Path(into) / task
                parts[task] = _judged(task, table, seeds, given, about, folder, ray)
    return joined(parts, cell_counts(cells, cells.positions(rows)))


def _refuse_names(methods: Any, keys: Sequence[str]) -> None:
    """Refuse names of rows that are taken: by rows of the bench's own, or by a key.

    Raises
    ------
    ConfigError
        If there is one.
    """
    for name in methods if isinstance(methods, Mapping) else ():
        if name in (GENES, MEAN, OWN, MEASURED):
            raise ConfigError(f"methods: {name!r} is a row of the bench: name yours otherwise.")
        if name in keys:
            raise ConfigError(
                f"methods and keys both name {name!r}: give each row a name of its own."
            )


def _tasks(tasks: Sequence[str] | None, cells: Cells) -> tuple[str, ...]:
    """Return the tasks in their order, of which the roles are there."""
    if tasks is None:
        tasks = [task for task in TASKS if task != "missing" or "protein" in cells.places]
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"tasks: there is no task {task!r}.{near(task, TASKS)}")
    if not tasks:
        raise ConfigError(f"tasks is empty: name some of {', '.join(TASKS)}.")
    category(cells, "batch")
    if {*tasks} - {"missing"}:
        category(cells, "label")
    return tuple(task for task in TASKS if task in tasks)


def _depths(depths: Sequence[float] | None, cells: Cells) -> tuple[float, ...]:
    if depths is None:
        return DEPTHS if "counts" in cells.places else DEPTHS[:1]
    for depth in depths:
        if not 0 < depth <= 1:
            raise ConfigError(
                f"depths: {depth:g} is no share of the counts: expected above 0, up to 1."
            )
    if any(depth < 1 for depth in depths) and "counts" not in cells.places:
        raise SchemaError(
            "depths thins counts: name their place, as in Schema(counts='layers/counts')."
        )
    return tuple(sorted({float(depth) for depth in depths}, reverse=True))


def _posed(
    cells: Cells,
    table: Sequence[Method],
    tasks: Sequence[str],
    rows: Any,
    held_out: Sequence[str] | None,
    depths: Sequence[float],
    run: Run,
) -> tuple[Posed, dict[str, Any]]:
    """Return what is asked, before any fit, and what is to be known of it."""
    role, batch = expression_role(cells), category(cells, "batch")
    named = "label" in cells.places
    label = cells.categories("label") if named else batch.map(lambda _: None)
    unlabelled = label.isna().to_numpy() & named  # without the role nothing reads labels
    label, batch = (values.reset_index(drop=True) for values in (label, batch))
    usable = np.zeros(len(cells), bool)
    usable[cells.positions(rows)] = True
    at = cells.rows(role)
    placed = usable if at is None else usable & (at >= 0)
    for x in ready(cells, table):
        placed = placed & np.isfinite(x).all(1)
    parts = split(label, batch, placed, held_out, typed="typing" in tasks)
    of_query = batch.isin(parts.held_out).to_numpy()
    # models may learn from cells that a ready-made embedding does not place
    fitted_on = np.flatnonzero(usable & batch.notna().to_numpy() & ~of_query)
    parts = replace(parts, fitted_on=fitted_on)
    about: dict[str, Any] = {
        "held out": [*parts.held_out], "unseen": [*parts.unseen], "rows": digest(np.flatnonzero(placed)),
        "reference": len(parts.reference), "query": len(parts.query),
        "cells of unseen types": int((parts.codes[parts.query] >= parts.n_known).sum()),
        "cells": int(placed.sum()), "unlabelled": int((placed & unlabelled).sum()),
        "labels": len(parts.names), "batches": int(batch[placed].nunique()),
        "not placed": {str(b): int(n) for b, n in batch[usable & ~placed].value_counts().items()},
        "depths": [*depths], "draws": DRAWS,
    }  # fmt: skip
    scored = np.union1d(parts.reference, parts.query)
    paired, panel = None, list[int]()
    if "missing" in tasks:
        *sides, panel = proteins(cells, placed & batch.notna().to_numpy(), of_query)
        paired = (sides[0], sides[1])
        about |= {
            "reference with protein": len(paired[0]), "query with protein": len(paired[1]),
            "proteins": len(panel),
            "proteins left out": cells.matrix("protein").matrix.shape[1] - len(panel),
        }  # fmt: skip
        scored = scored if "typing" in tasks else np.union1d(*paired)
    posed = Posed(
        cells.data, cells.schema, {"label": label, "batch": batch}, np.zeros((0, 0), np.float32), scored,
        None, DRAWS, run, parts=parts, depths=[d for d in depths if d < 1], paired=paired, panel=panel,
    )  # fmt: skip
    return posed, about


def _with_pca(given: Posed, table: Sequence[Method], seed: int) -> tuple[Posed, list[Method]]:
    """Learn principal components from the reference, which Harmony corrects, and give them their row."""
    cells, learned = Cells(given.data, given.schema), given.parts.fitted_on
    features = cells.matrix(expression_role(cells)).matrix.shape[1]
    model = find("pca")(n_latent=max(1, min(50, len(learned) - 2, features)))
    pca = model.fit(shallow(given.data), given.schema, seed=seed, rows=learned, run=given.run)
    x = pca.embed(shallow(given.data), run=given.run)
    kept = np.union1d(
        learned, given.cells if given.paired is None else np.union1d(given.cells, given.paired[1])
    )
    x[np.setdiff1d(np.arange(len(x)), kept)] = np.nan
    rows = [replace(row, model=pca) if row.name == BASELINE else row for row in table]
    return replace(given, x_pca=x), rows


def _judged(
    task: str,
    table: Sequence[Method],
    seeds: Sequence[int],
    given: Posed,
    about: Mapping[str, Any],
    into: Path | None,
    ray: bool | int,  # noqa: FBT001 (as in `probe`)
) -> Bench:
    """Judge every row in a task."""
    rows = [*_rows(task, table, seeds)]
    trials = [
        Trial(f"{row.name}, seed {s}", partial(judge, s), {**row.about, "task": task, "seed": s})
        for row, judge in rows
        for s in row.seeds
    ]
    with (
        bar(len(trials), f"judge {task}", given.run.progress) as shown,
        running(given, about, into=into, ray=ray) as runner,
    ):
        found = runner.run(trials, shown)
    require_one(trials, found)
    done = iter(found)
    outcomes = {row.name: {seed: next(done) for seed in row.seeds} for row, _ in rows}
    return judged(task, [row for row, _ in rows], outcomes, given, about)


def _rows(
    task: str, table: Sequence[Method], seeds: Sequence[int]
) -> Iterator[tuple[Method, Callable[[int, Posed], Result]]]:
    """Yield the rows of a task, each with what judges it under a seed."""

    def own(name: str, role: str) -> Method:
        return Method(name, role, nowhere, seeds[:1], {role: name})

    judge = {"typing": judge_typing, "missing": judge_missing}[task]
    yield from ((_marked(row), partial(judge, row)) for row in table)
    if task == "typing":
        yield own(GENES, "baseline"), judge_genes
        yield own(OWN, "ceiling"), judge_within
    else:
        yield own(MEAN, "baseline"), judge_mean
        yield own(MEASURED, "ceiling"), judge_measured


def nowhere(given: Given, _: int) -> tuple[np.ndarray, State]:
    """Return no coordinates: the row has no embedding."""
    return np.zeros((len(given.x_pca), 0)), "rested"


def _marked(row: Method) -> Method:
    """Return a row that says whether its embedding may know the query."""
    ready_made = row.role == "method" and not isinstance(row.model, Model)
    notes = {HARMONY: SEES} if row.name == HARMONY else {row.name: GIVEN} if ready_made else {}
    note = "; ".join(filter(None, [row.note, notes.get(row.name, "")]))
    return replace(row, note=note)
