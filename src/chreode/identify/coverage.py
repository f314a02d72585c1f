"""Which factors of cells an augmentation leaves as they are, and which it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score, r2_score

from ..compute.progress import bar
from ..compute.rng import Rng
from ..compute.settings import settled
from ..compute.threads import pinned
from ..config.arguments import checked
from ..data.cells import Cells
from ..data.places import as_category
from ..data.read import Data
from ..errors import ConfigError, DataError, counted, listed
from ..fitted import Fitted
from ..model import Model
from ..run import Run
from ..schema import Place, Schema
from ..version import __version__, code_hash
from .positives import Positives, open_positives, schema_of
from .readers import FOLDS, Factor, Readers, folds, halvings, sparse_rows
from .shares import share_of

#: Cells that are read at the most, halvings of the genes, and resamples of an interval.
CELLS, HALVINGS, DRAWS = 5000, 5, 500
#: Cells with a value that a factor needs, and cells of each class.
FEWEST, FEWEST_OF_CLASS = 50, 10
#: Share of a factor's variance, or of the way from chance to perfect accuracy, that readers must tell.
READABLE = 0.1
COLUMNS = ("kind", "coverage", "low", "high", "readable", "baseline", "blur", "cells", "note")


@dataclass(frozen=True, eq=False)
class Coverage:
    """How much of each factor positives reach.

    Attributes
    ----------
    factors
        A row per factor: its kind; coverage with a 95 % interval; how well readers tell it of cells that they
        have not seen (R², or balanced accuracy) and what a baseline has (the mean, or the largest class);
        the share of the variance of readings within a cell that is error; the cells; and a note.
    about
        Data, positives, seed and versions.
    """

    factors: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return a copy of the table."""
        return self.factors.copy()

    def __repr__(self) -> str:
        from ..text import shown

        return shown(self.factors.drop(columns="cells")).to_string(float_format="{:z.2f}".format)


@settled()
@checked
def coverage(
    positives: str | Sequence[str] | Model | Fitted | Callable[[AnnData, int], AnnData],
    data: Data | str | Path,
    factors: str | Sequence[str],
    *,
    schema: Schema | None = None,
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
        function of the cells and a seed, which returns one positive of each cell, in the same order.
    data
        AnnData, MuData, what `chreode.open` returned, or a path.
    factors
        Columns of obs. Numbers are continuous factors, all else are classes.
    schema
        Where the roles live (default: where they lived in the fit, for a fitted model).
    n_views
        Positives of each cell.
    seed
        Seed of the positives, of the halvings and of the intervals.
    run
        How to compute (see `Run`): threads and progress. The rest is not read.

    Returns
    -------
    Coverage
        0: positives have the factor of their cell; 1: they are spread as all cells are.

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
    cells = Cells.of(data, schema_of(positives, schema))
    named = [factors] if isinstance(factors, str) else [*factors]
    found = read_factors(cells, named)
    rng = Rng(seed)
    with pinned(run.threads):
        opened = open_positives(positives, cells, seed)
        rows = opened.rows
        if len(rows) > CELLS:
            rows = np.sort(rng.numpy("cells").permutation(rows)[:CELLS])
        of_rows = [Factor(f.name, f.values[rows], f.classes) for f in found]
        for factor in of_rows:
            refuse_few(factor)
        table = _judged(opened, rows, of_rows, n_views, rng, run)
    about = {
        "positives": opened.about, "cells": len(rows), "genes": opened.source.spec.n_features(_role(opened)),
        "n_views": n_views, "seed": seed, "schema": cells.schema.as_dict(),
        "chreode": __version__, "code": code_hash(), "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return Coverage(table, about)


def _role(positives: Positives) -> str:
    return positives.source.spec.either("expression", "counts")


def _judged(
    positives: Positives,
    rows: np.ndarray,
    factors: Sequence[Factor],
    n_views: int,
    rng: Rng,
    run: Run,
) -> pd.DataFrame:
    """Return the row of each factor."""
    x = _log_expression(positives, rows)
    halves = halvings(HALVINGS, x.shape[1], rng.numpy("halves"))
    fold = folds(len(rows), rng.numpy("folds"))
    with bar(FOLDS + n_views, "coverage", run.progress) as shown:
        readers = []
        for number in range(FOLDS):
            learned = np.flatnonzero(fold != number)
            readers.append(Readers.learn(x, factors, halves, learned, rng.child(f"fold{number}")))
            shown.update()
        of_cells = read_cells(readers, x, fold)
        of_views = _read_views(readers, positives, rows, fold, n_views, shown.update)
    ends = np.cumsum([factor.width for factor in factors])
    parts = zip(
        factors,
        np.split(of_cells, ends[:-1], axis=-1),
        np.split(of_views, ends[:-1], axis=-1),
        strict=True,
    )
    found = [_row(*part, rng) for part in parts]
    return pd.DataFrame(
        found, index=pd.Index([f.name for f in factors], name="factor"), columns=COLUMNS
    )


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


def _log_expression(positives: Positives, rows: np.ndarray) -> sp.csr_matrix:
    """Return the log-expression of cells as they are, sparse."""
    parts = []
    for batch in positives.source.batches(rows):
        x = batch.stored_expression()
        stored = (
            sp.csr_matrix(x.numpy())
            if isinstance(x, torch.Tensor)
            else sp.csr_matrix(
                (x.values.numpy(), x.columns.numpy(), x.indptr.numpy()), (len(x), x.n_features)
            )
        )
        parts.append(stored)
    return sp.vstack(parts, format="csr")


def read_cells(readers: Sequence[Readers], x: sp.csr_matrix, fold: np.ndarray) -> np.ndarray:
    """Return the readings of cells as they are, each by the readers of its fold."""
    found = None
    for number, reader in enumerate(readers):
        at = np.flatnonzero(fold == number)
        read = reader.read(sparse_rows(x, at))
        if found is None:
            found = np.zeros((len(fold), *read.shape[1:]))
        found[at] = read
    assert found is not None
    return found


def _read_views(
    readers: Sequence[Readers],
    positives: Positives,
    rows: np.ndarray,
    fold: np.ndarray,
    n_views: int,
    done: Callable[[int], Any],
) -> np.ndarray:
    """Return the readings of positives, each by the readers of the fold of its cell."""
    found, place = None, np.full(len(positives.source), -1)
    place[rows] = np.arange(len(rows))
    last = -1
    for number, anchors, x in positives.draw(n_views):
        for part, reader in enumerate(readers):
            at = place[anchors]
            mine = np.flatnonzero((at >= 0) & (fold[at] == part))
            if not len(mine):
                continue
            read = reader.read(_rows_of(x, mine))
            if found is None:
                found = np.full((len(rows), n_views, *read.shape[1:]), np.nan, np.float32)
            found[at[mine], number] = read
        done(int(number > last))
        last = max(last, number)
    assert found is not None
    if np.isnan(found).any():
        raise DataError("positives are NaN, or not drawn, for some cells.")
    return found


def _rows_of(x: Any, rows: np.ndarray) -> Any:
    if isinstance(x, torch.Tensor):
        return x[torch.from_numpy(rows)]
    csr = sp.csr_matrix(
        (x.values.numpy(), x.columns.numpy(), x.indptr.numpy()), (len(x), x.n_features)
    )
    return sparse_rows(csr, rows)


def read_factors(cells: Cells, names: Sequence[str]) -> list[Factor]:
    """Return columns of obs as factors.

    Raises
    ------
    ConfigError
        If none is named, or one twice.
    SchemaError
        If there is no such column.
    DataError
        If it is constant, or known of no cell.
    """
    if not names:
        raise ConfigError("factors is empty: name columns of obs, as in factors=['cell_type'].")
    found = []
    for name in names:
        text = name if "obs/" in name else f"obs/{name}"
        values = cells.column_at(Place.parse(text), "factors")
        found.append(_factor(text.partition("obs/")[2], values, cells.schema.missing))
    twice = [f.name for i, f in enumerate(found) if f.name in {g.name for g in found[:i]}]
    if twice:
        raise ConfigError(f"factors names {twice[0]!r} twice. Name each column once.")
    return found


def _factor(name: str, values: pd.Series, missing: Sequence[str]) -> Factor:
    classes: tuple[str, ...] = ()
    if values.dtype.kind in "fiu":
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    else:
        codes, names = pd.factorize(as_category(values, missing), sort=True)
        numbers, classes = np.where(codes < 0, np.nan, codes), tuple(map(str, names))
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise DataError(f"factors: {name} is missing in all cells. Name another column.")
    if len(np.unique(known)) < 2:
        raise DataError(
            f"factors: {name} is constant, so that positives cannot change it. Leave it out."
        )
    return Factor(name, numbers, classes)


def refuse_few(factor: Factor) -> None:
    """Refuse factors that too few cells have.

    Raises
    ------
    DataError
        It says how many are needed, or which classes are too small.
    """
    n = int(factor.known.sum())
    if n < FEWEST:
        raise DataError(
            f"factors: {factor.name} is known of {counted(n, 'cell')} that can be read, and readers need "
            f"{FEWEST}. Give more cells."
        )
    values = factor.values[factor.known]
    if len(np.unique(values)) < 2:
        raise DataError(f"factors: {factor.name} is constant in the cells that have positives.")
    sizes = {name: int((values == code).sum()) for code, name in enumerate(factor.classes)}
    few = [f"{name} ({size})" for name, size in sizes.items() if size < FEWEST_OF_CLASS]
    if few:
        raise DataError(
            f"factors: classes of {factor.name} have too few cells: {listed(few)}. Readers need "
            f"{FEWEST_OF_CLASS} of each: join such classes, or set them to missing."
        )
