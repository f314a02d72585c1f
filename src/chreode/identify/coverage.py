"""Which factors of cells an augmentation leaves as they are, and which it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Float, Int
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
from ..plot import coverage_bars, coverage_matrix
from ..report.page import Section, write
from ..run import Run
from ..schema import Place, Schema
from ..text import shown
from ..trials.digest import digest, provenance
from .factors import Factor, obs_place, read_factors, refuse_few
from .positives import Positives, open_positives, schema_of
from .readers import FOLDS, Readers, as_csr, as_rows, folds, halvings
from .shares import share_of

#: Cells that are read at the most, halvings of the genes, and resamples of an interval.
CELLS, HALVINGS, DRAWS = 5000, 5, 500
#: Share of a factor's variance, or of the way from chance to perfect accuracy, that readers must tell.
READABLE = 0.1
#: Coverage below which a factor is said to be kept, and above which to be removed.
_KEPT, _REMOVED = 0.1, 0.9
#: An interval from 0 to beyond this says nothing.
_WIDE = 0.5
_MEANING = """\
Coverage is how much of the spread of a factor over all positives those of one cell reach: 0 where they have \
the value of their cell, 1 where they are spread as those of all cells are. A contrastive loss gains by \
forgetting what positives change.

Readable is R² of a number, or balanced accuracy of classes, of cells that readers have not seen; the \
baseline is the mean, or the largest class. Blur is the share of the variance of readings within a cell that \
is error of reading, which coverage does not count."""
COLUMNS = ("kind", "coverage", "low", "high", "readable", "baseline", "blur", "cells", "note")


@dataclass(frozen=True, eq=False)
class Coverage:
    """How much of each factor positives reach.

    Attributes
    ----------
    factors
        A row per factor, or per positives and factor where several are compared: its kind; coverage with a
        95 % interval; how well readers tell it of cells that they
        have not seen (R², or balanced accuracy) and what a baseline has (the mean, or the largest class);
        the share of the variance of readings within a cell that is error; the cells; and a note.
    about
        Data, positives, seed and versions.
    """

    factors: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return a copy of the table, with a row per factor."""
        return self.factors.copy()

    def report(self, path: str | Path) -> Path:
        """Write a page of HTML, and return its path."""
        several = self.factors.index.nlevels > 1
        drawn = coverage_matrix(self.factors) if several else coverage_bars(self.factors)
        caption = "Coverage of each factor" + ("." if several else ", with 95 % intervals.")
        section = Section(
            "Coverage", f"{self.verdict()}\n\n{_MEANING}",
            tables=(("What positives reach of each factor.", self.factors.reset_index()),),
            figures=((caption, drawn),),
        )  # fmt: skip
        return write(path, "What positives change of cells", [section], about=self.about)

    def verdict(self) -> str:
        """Say in a sentence each what is kept, changed in part, removed, and not known.

        Each of several positives has a line of its own, in a list.
        """
        if self.factors.index.nlevels == 1:
            return _verdict(self.factors)
        by_positives = self.factors.groupby(level=0, sort=False)
        return "\n".join(f"- {name}: {_verdict(of.droplevel(0))}" for name, of in by_positives)

    def __repr__(self) -> str:
        told = self.factors.drop(columns="cells")
        table = shown(told).to_string(float_format="{:z.2f}".format, na_rep="–")
        return f"{table}\n{self.verdict()}"


def _verdict(of: pd.DataFrame) -> str:
    value, low, high = (of[name].astype(float) for name in ("coverage", "low", "high"))
    wide = (low <= 0) & (high > _WIDE)
    kept = ((value < _KEPT) | (low <= 0)) & ~wide
    removed = value > _REMOVED
    groups = {
        f"Kept by these positives (coverage below {_KEPT}, or an interval that holds 0)": kept,
        "Changed in part": ~(kept | removed | wide | value.isna()),
        f"Changed to nearly any value (above {_REMOVED}): a contrastive loss gains by forgetting it": removed,
        "Not known": wide | value.isna(),
    }
    return " ".join(
        f"{what}: {', '.join(map(str, of.index[which]))}."
        for what, which in groups.items()
        if which.any()
    )


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
        Columns of obs. Numbers are continuous factors, all else are classes.
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
        If a factor is constant or known of too few cells, or positives are not of the same cells and genes.
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
        of_rows = [Factor(f.name, f.values[rows], f.classes) for f in found]
        for factor in of_rows:
            refuse_few(factor)
        fold = folds(_groups(cells, groups, rows), rng.numpy("folds"))
        tables = _judged(opened, rows, of_rows, fold, n_views, rng, run)
    table = pd.concat(tables, names=["positives"]) if several else tables[""]
    drawn_by = {name: each.about for name, each in opened.items()}
    about = {
        "positives": drawn_by if several else drawn_by[""],
        "factors": {f.name: digest(pd.Series(f.values)) for f in found}, "groups": groups,
        "cells": len(rows), "views": n_views, "seed": seed, **provenance(cells),
    }  # fmt: skip
    return Coverage(table, about)


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
) -> dict[str, pd.DataFrame]:
    """Return the row of each factor, for all positives; those of the same genes have the same readers."""
    learned: dict[Any, tuple[list[Readers], np.ndarray]] = {}
    tables = {}
    with bar((FOLDS + n_views) * len(positives), "coverage", run.progress) as progress:
        for name, each in positives.items():
            of = each.role, tuple(each.source.spec.features[each.role])
            if of not in learned:
                learned[of] = _learned(each, rows, factors, fold, rng, progress.update)
            else:
                progress.update(FOLDS)
            readers, of_cells = learned[of]
            of_views = _read_views(readers, each, rows, fold, n_views, progress.update)
            tables[name] = _table(factors, of_cells, of_views, rng)
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


def _table(
    factors: Sequence[Factor], of_cells: np.ndarray, of_views: np.ndarray, rng: Rng
) -> pd.DataFrame:
    ends = np.cumsum([factor.width for factor in factors])[:-1]
    parts = zip(
        factors, np.split(of_cells, ends, axis=-1), np.split(of_views, ends, axis=-1), strict=True
    )
    found = [_row(*part, rng) for part in parts]
    names = pd.Index([f.name for f in factors], name="factor")
    return pd.DataFrame(found, index=names, columns=COLUMNS)


def _row(factor: Factor, cells: np.ndarray, views: np.ndarray, rng: Rng) -> dict[str, Any]:
    """Return what is found of a factor."""
    known = factor.known
    cells, views, values = cells[known], views[known], factor.values[known]
    mean = cells.mean((1, 2))
    if factor.classes:
        readable = balanced_accuracy_score(values, mean.argmax(1))
        baseline = 1 / len(factor.classes)
    else:
        readable, baseline = r2_score(values, mean[:, 0]), 0.0
    row = {
        "kind": "classes" if factor.classes else "continuous", "readable": readable, "baseline": baseline,
        "cells": int(known.sum()),
    }  # fmt: skip
    notes = []
    if left_out := int((~known).sum()):
        notes.append(f"{counted(left_out, 'cell')} without a value left out")
    generator = rng.numpy("bootstrap")
    found = share_of(cells, views, classes=bool(factor.classes), draws=DRAWS, generator=generator)
    row |= {name: getattr(found, name) for name in ("coverage", "low", "high", "blur")}
    if (readable - baseline) / (1 - baseline) < READABLE:
        row |= dict.fromkeys(("coverage", "low", "high", "blur"), np.nan)
        notes.append("not told: readers cannot tell this factor of cells that they have not seen")
    elif np.isnan(found.coverage):
        notes.append("not told: readers can tell this factor of cells, but not of their positives")
    return {**row, "note": "; ".join(notes)}


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
