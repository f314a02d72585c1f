"""Which factors of cells an augmentation leaves as they are, and which it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from sklearn.metrics import balanced_accuracy_score, r2_score

from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import ConfigError, DataError, counted
from ..fitted import Fitted
from ..model import Model
from ..run import Run
from ..schema import Place, Schema
from ..trials.digest import digest, provenance
from .factors import Factor, obs_place, read_factors, require_one
from .positives import Positives, open_positives, schema_of
from .readers import FOLDS, Readers, as_csr, as_rows, folds, halvings
from .shares import share_of
from .verdict import COLUMNS, OF_CLASS, Coverage

#: Cells that are read at the most, halvings of the genes, and resamples of an interval.
CELLS, HALVINGS, DRAWS = 5000, 5, 500
#: Share of a factor's variance, or of the way from chance to perfect accuracy, that readers must tell.
READABLE = 0.1


@settled()
@checked
def coverage(
    positives: str
    | Sequence[str]
    | Model
    | Fitted
    | Callable[[AnnData, int], AnnData]
    | Mapping[str, Any],
    data: Data | str | Path,
    factors: str | Sequence[str],
    *,
    schema: Schema | None = None,
    groups: str | None = None,
    n_views: int = 8,
    seed: int = 0,
    run: Run = Run(),
    **settings: Any,
) -> Coverage:
    """Return how much of each factor's spread over cells the positives of one cell reach.

    Parameters
    ----------
    positives
        Names of augmentations (as SimCLR has them by default), a self-supervised model, fitted or not, or a
        function of the cells and a seed, which returns one positive of each cell, in the same order. Several
        by name, as ``{"mask": "mask", "strong": SimCLR(mask=0.8)}``, are compared on the same cells.
    data
        AnnData, MuData, what `chreode.open` returned, or a path.
    factors
        Columns of obs. Numbers are continuous factors, all else are classes. One that cannot be read, such
        as a constant, has a note in place of coverage, if there are others.
    schema
        Where the roles live (default: where they lived in the fit, for a fitted model).
    groups
        Column of obs whose cells belong together, such as replicates of a well. Readers learn from none of
        the group of a cell that they read.
    n_views
        Positives of each cell.
    seed
        Seed of the positives, of the halvings and of the intervals.
    run
        How to compute (see `Run`): threads and progress. The rest is not read.

    Returns
    -------
    Coverage
        0: positives have the factor of their cell; 1: those of a cell are spread as those of all cells are.

    Raises
    ------
    ConfigError
        If there is no such augmentation, no factor is named, or `n_views` is below 2.
    SchemaError
        If there is no such column, or no place of counts or expression is known.
    CapabilityError
        If the model draws no views.
    DataError
        If no factor can be read, as where all are constant or known of too few cells, or positives are not
        of the same cells and genes.
    """
    run = run.with_(**settings)
    if n_views < 2:
        raise ConfigError(
            f"n_views={n_views}: positives of a cell are compared, so give 2 or more."
        )
    several = isinstance(positives, Mapping)
    given: dict[str, Any] = dict(positives) if isinstance(positives, Mapping) else {"": positives}
    if not given:
        raise ConfigError(
            "positives is empty: name what draws positives, such as {'mask': 'mask'}."
        )
    cells = Cells.of(data, schema_of([*given.values()], schema))
    found = read_factors(cells, [factors] if isinstance(factors, str) else [*factors])
    rng = Rng(seed)
    with pinned(run.threads):
        opened = {name: open_positives(each, cells, seed) for name, each in given.items()}
        rows = reduce(np.intersect1d, [each.rows for each in opened.values()])
        if len(rows) > CELLS:
            rows = np.sort(rng.numpy("cells").permutation(rows)[:CELLS])
        of_rows = require_one([factor.of(rows) for factor in found])
        fold = folds(_groups(cells, groups, rows), rng.numpy("folds"))
        of_rows = require_one([factor.learned_in(fold) for factor in of_rows])
        tables = _judged(opened, rows, of_rows, fold, n_views, rng, run)
    table, classes = (
        pd.concat(each, names=["positives"]) if several else each[""]
        for each in ({name: both[i] for name, both in tables.items()} for i in (0, 1))
    )
    drawn_by = {name: each.about for name, each in opened.items()}
    about = {
        "positives": drawn_by if several else drawn_by[""],
        "factors": {f.name: digest(pd.Series(f.values)) for f in found}, "groups": groups,
        "cells": len(rows), "views": n_views, "seed": seed, **provenance(cells),
    }  # fmt: skip
    return Coverage(table, classes, about)


def _groups(cells: Cells, column: str | None, rows: Int[np.ndarray, " n"]) -> np.ndarray:
    """Return a number for the group of each cell; a cell that has none is a group of its own."""
    if column is None:
        return np.arange(len(rows))
    place = Place.parse(obs_place(column))
    codes = pd.factorize(cells.column_at(place, "groups").iloc[rows])[0]
    codes = np.where(codes < 0, len(rows) + np.arange(len(rows)), codes)
    if len(np.unique(codes)) < FOLDS:
        raise DataError(
            f"groups: {column} has {counted(len(np.unique(codes)), 'group')}. Cells are read by readers of "
            f"other groups, so give a column of {FOLDS} or more."
        )
    return codes


def _judged(
    positives: Mapping[str, Positives],
    rows: Int[np.ndarray, " n"],
    factors: Sequence[Factor],
    fold: Int[np.ndarray, " n"],
    n_views: int,
    rng: Rng,
    run: Run,
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the tables of factors and of classes; positives of the same genes have the same readers."""
    read = [factor for factor in factors if not factor.problem]
    learned: dict[Any, tuple[list[Readers], np.ndarray]] = {}
    tables = {}
    with bar((FOLDS + n_views) * len(positives), "coverage", run.progress) as progress:
        for name, each in positives.items():
            of = each.role, tuple(each.source.spec.features[each.role])
            if of not in learned:
                learned[of] = _learned(each, rows, read, fold, rng, progress.update)
            else:
                progress.update(FOLDS)
            readers, of_cells = learned[of]
            of_views = _read_views(readers, each, rows, fold, n_views, progress.update)
            tables[name] = _tables(factors, of_cells, of_views, rng)
    return tables


def _learned(
    positives: Positives,
    rows: Int[np.ndarray, " n"],
    factors: Sequence[Factor],
    fold: Int[np.ndarray, " n"],
    rng: Rng,
    done: Callable[[], Any],
) -> tuple[list[Readers], Float[np.ndarray, "n halvings two widths"]]:
    """Return the readers of each fold, and what they read of cells as they are."""
    x = _log_expression(positives, rows)
    halves = halvings(HALVINGS, x.shape[1], rng.numpy("halves"))
    readers = []
    for number in range(FOLDS):
        others = np.flatnonzero(fold != number)
        readers.append(Readers.learn(x, factors, halves, others, rng.child(f"fold{number}")))
        done()
    return readers, read_cells(readers, x, fold)


def _tables(
    factors: Sequence[Factor], of_cells: np.ndarray, of_views: np.ndarray, rng: Rng
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each factor, and one for each class."""
    found, classes, start = [], [], 0
    for factor in factors:
        at = slice(start, start) if factor.problem else slice(start, start + factor.width)
        start = at.stop
        cells, views = of_cells[..., at], of_views[..., at]
        found.append(_row(factor, cells, views, rng))
        told = not np.isnan(found[-1].get("coverage", np.nan))
        classes += _rows_of_classes(factor, cells, views, rng, told=told)
    names = pd.Index([f.name for f in factors], name="factor")
    levels = [(f.name, each) for f in factors for each in f.classes]
    by_class = pd.MultiIndex.from_tuples(levels, names=("factor", "class"))
    return (
        pd.DataFrame(found, index=names, columns=COLUMNS),
        pd.DataFrame(classes, index=by_class, columns=OF_CLASS),
    )


def _row(factor: Factor, cells: np.ndarray, views: np.ndarray, rng: Rng) -> dict[str, Any]:
    """Return what is found of a factor."""
    known, kind = factor.known, "classes" if factor.classes else "continuous"
    notes, row = factor.left_out(), {"kind": kind, "cells": int(known.sum())}
    if factor.problem:
        return {**row, "note": f"not told: {factor.problem}"}
    cells, views, values = _where(known, cells, views, factor.values)
    mean = cells.mean((1, 2))
    if factor.classes:
        readable = balanced_accuracy_score(values, mean.argmax(1))
        baseline = 1 / len(factor.classes)
    else:
        readable, baseline = r2_score(values, mean[:, 0]), 0.0
    row |= {"readable": readable, "baseline": baseline}
    generator = rng.numpy("bootstrap")
    found = share_of(cells, views, classes=bool(factor.classes), draws=DRAWS, generator=generator)
    row |= {name: getattr(found, name) for name in ("coverage", "low", "high", "blur")}
    if (readable - baseline) / (1 - baseline) < READABLE:
        row |= dict.fromkeys(("coverage", "low", "high", "blur"), np.nan)
        notes.append("not told: readers cannot tell this factor of cells that they have not seen")
    elif np.isnan(found.coverage):
        notes.append("not told: readers can tell this factor of cells, but not of their positives")
    return {**row, "note": "; ".join(notes)}


def _rows_of_classes(
    factor: Factor, cells: np.ndarray, views: np.ndarray, rng: Rng, *, told: bool
) -> list[tuple[float, ...]]:
    """Return what is found of each class against all others: no coverage where the factor has none."""
    if not factor.classes:
        return []
    if not told:
        return [(np.nan, np.nan, np.nan, int(size)) for size in factor.sizes]
    cells, views, values = _where(factor.known, cells, views, factor.values)
    shares = class_shares(cells, views, values, draws=DRAWS, generator=rng.numpy("bootstrap"))
    return [(*share, int(size)) for share, size in zip(shares, factor.sizes, strict=True)]


def class_shares(
    cells: Float[np.ndarray, "n h two k"],
    views: Float[np.ndarray, "n v h two k"],
    values: Float[np.ndarray, " n"],
    *,
    draws: int,
    generator: np.random.Generator,
) -> list[tuple[float, float, float]]:
    """Return `share_of` for the probability of each class alone, with its interval.

    It is one minus the correlation between whether a cell and whether its positive is of the class.
    NaN where readers do not tell the class from others by a tenth of the way from chance to perfection.
    """
    found, named = [], cells.mean((1, 2)).argmax(1)
    for code in range(cells.shape[-1]):
        inside, so_named, at = values == code, named == code, slice(code, code + 1)
        if so_named[inside].mean() - so_named[~inside].mean() < READABLE:
            found.append((np.nan, np.nan, np.nan))
            continue
        of = cells[..., at], views[..., at]
        share = share_of(*of, classes=True, draws=draws, generator=generator)
        found.append((share.coverage, share.low, share.high))
    return found


def _where(known: Bool[np.ndarray, " n"], *arrays: np.ndarray) -> Sequence[np.ndarray]:
    """Return the rows that are known; where all are, nothing is copied."""
    return arrays if known.all() else [each[known] for each in arrays]


def _log_expression(positives: Positives, rows: Int[np.ndarray, " n"]) -> sp.csr_matrix:
    """Return the log-expression of cells as they are, sparse."""
    batches = positives.source.batches(rows)
    return sp.vstack([as_csr(batch.stored_expression()) for batch in batches], format="csr")


def read_cells(
    readers: Sequence[Readers], x: sp.csr_matrix, fold: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n halvings two widths"]:
    """Return the readings of cells as they are, each by the readers of its fold."""
    found = np.zeros((len(fold), *readers[0].shape))
    for number, reader in enumerate(readers):
        at = np.flatnonzero(fold == number)
        found[at] = reader.read(as_rows(x[at]))
    return found


def _read_views(
    readers: Sequence[Readers],
    positives: Positives,
    rows: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    n_views: int,
    done: Callable[[int], Any],
) -> Float[np.ndarray, "n views halvings two widths"]:
    """Return the readings of positives, each by the readers of the fold of its cell.

    Raises
    ------
    DataError
        If one is not finite.
    """
    found = np.full((len(rows), n_views, *readers[0].shape), np.nan, np.float32)
    place, latest = np.full(len(positives.source), -1), -1
    place[rows] = np.arange(len(rows))
    for view, anchors, x in positives.draw(n_views):
        at = place[anchors]
        drawn = as_csr(x)
        if not np.isfinite(drawn.data).all():
            raise DataError(
                "positives hold what is no finite number. Return log-expression or counts."
            )
        for number, reader in enumerate(readers):
            mine = np.flatnonzero((at >= 0) & (fold[at] == number))
            if len(mine):
                found[at[mine], view] = reader.read(as_rows(drawn[mine]))
        done(max(view - latest, 0))
        latest = max(view, latest)
    return found
