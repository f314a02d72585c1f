"""Positives of cells: drawn as in a fit by the module of a model, or by any function."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from torch import Tensor

from ..compute.rng import Rng
from ..config import as_dict
from ..data.align import learn_spec, open_source
from ..data.batch import SparseRows
from ..data.cells import Cells
from ..data.check import findings, require
from ..data.files import OnDisk
from ..data.look import any_nan
from ..data.source import Source
from ..data.subset import some_cells
from ..data.training import open_training
from ..errors import (
    CapabilityError,
    ChreodeError,
    ConfigError,
    DataError,
    SchemaError,
    counted,
)
from ..fitted import Fitted
from ..learn.components import having_expression
from ..learn.phase import Session
from ..model import Model
from ..module import DrawsViews
from ..registry import find
from ..schema import Schema

#: What draws positives: names of augmentations, a model, or (cells, seed) → a positive of each cell.
Given: TypeAlias = str | Sequence[str] | Model | Fitted | Callable[[AnnData, int], AnnData]
#: Number of a view, positions of the cells that it is of, and their log-expression in it.
View: TypeAlias = tuple[int, Int[np.ndarray, " b"], SparseRows | Float[Tensor, "b g"]]


@dataclass(frozen=True, eq=False)
class Positives:
    """Cells and what draws positives of them.

    Attributes
    ----------
    source
        The cells as they are.
    rows
        Positions of those that have positives.
    draw
        Yields the views of these numbers, a few cells at a time.
    about
        What draws them, in JSON.
    """

    source: Source
    rows: Int[np.ndarray, " n"]
    draw: Callable[[int], Iterator[View]]
    about: Any

    @property
    def role(self) -> str:
        """What is read of the cells: expression or counts."""
        return self.source.spec.either("expression", "counts")


def schema_of(positives: Sequence[Given], schema: Schema | None) -> Schema:
    """Return where the roles live: as given, or as in the first fit among the positives.

    Raises
    ------
    SchemaError
        If no schema is given, and there is no fit.
    """
    if schema is not None:
        return schema
    for each in positives:
        if isinstance(each, Fitted):
            return each.schema
    raise SchemaError(
        "coverage needs the place of counts or expression: schema=Schema(counts='layers/counts'). Only a "
        "fitted model knows its own."
    )


def open_positives(positives: Given, cells: Cells, seed: int) -> Positives:
    """Return the positives of some cells, with everything checked that can be before any is drawn.

    Raises
    ------
    ConfigError
        If there is no such augmentation.
    CapabilityError
        If the model draws no views.
    SchemaError, DataError
        If a role is absent, or its values are wrong.
    """
    if isinstance(positives, str):
        positives = (positives,)
    if not callable(positives) and not isinstance(positives, (Model, Fitted)):
        if not len(positives):
            raise ConfigError("positives is empty: name an augmentation at least, such as 'mask'.")
        positives = find("simclr")(augment=tuple(positives))
    if isinstance(positives, Model):
        return _of_model(positives, None, cells, Rng(seed))
    if isinstance(positives, Fitted):
        return _of_model(positives.model, positives, cells, Rng(seed))
    assert callable(positives)
    try:
        inspect.signature(positives).bind(cells.data, seed)
    except TypeError as error:
        raise ConfigError(
            f"positives is called with (cells, seed), and returns a positive of each cell: {error}."
        ) from error
    return _of_function(positives, cells, Rng(seed))


def _of_model(model: Any, fitted: Fitted | None, cells: Cells, rng: Rng) -> Positives:
    """Return views as the first stage of a fit draws them, or the last one of a fit that was made."""
    training = open_training(
        cells, model.roles(cells.schema), model, rows=None, validation=None,
        old=fitted.spec if fitted else None, weight=fitted.feature_weight() if fitted else None,
    )  # fmt: skip
    source = training.source
    with rng.scope("init"):
        module = copy.deepcopy(fitted.module) if fitted else model.build(source.spec)
    if not isinstance(module, DrawsViews):
        raise CapabilityError(
            f"{type(model).__name__} compares no views of cells, and so has no positives. Give a "
            "self-supervised model such as SimCLR, names of augmentations, or a function that returns "
            "positives."
        )
    split = model.split(source, training.rows, 0.0, rng)
    phase = [p for p in model.phases() if p.data is not None][-1 if fitted else 0]
    seen, split = phase.seen(module, source, split, Session(rng, progress=False))
    with rng.scope("prepare"), torch.no_grad():
        module.prepare(seen, split.train, rng)

    @torch.no_grad()
    def draw(n_views: int) -> Iterator[View]:
        first, step = 0, count()
        for epoch in count():
            assert phase.data is not None
            drawn = [*phase.data.batches(seen, split.train, epoch, rng.numpy("data", epoch))]
            batches = seen.minibatches(rows.T.ravel() for rows in drawn)
            for rows, batch in zip(drawn, batches, strict=True):
                with rng.scope("noise", next(step)):
                    views = module.draw_views(batch)
                anchors = rows.reshape(len(rows), -1)[:, 0]
                for number, view in enumerate(views[: n_views - first], first):
                    yield number, anchors, view
            first += len(views)
            if first >= n_views:
                return

    kept = np.sort(having_expression(source, split.train))
    return Positives(source, kept, draw, {"model": model.key, **as_dict(model)})


def _of_function(function: Callable[[AnnData, int], AnnData], cells: Cells, rng: Rng) -> Positives:
    """Return views that a function draws of all cells at once."""
    source = _opened(cells)
    data: Any = cells.data
    if isinstance(data, OnDisk):
        data = _in_memory(data)
    if not isinstance(data, AnnData):
        raise CapabilityError(
            "A function of positives reads an AnnData. Give one modality of the cells, as in data['rna']."
        )
    if data.isbacked:  # its own to_memory would close the file for all
        data = AnnData(data.X[:], data.obs, data.var, layers=data.layers, obsm=data.obsm)
    kept = having_expression(source, np.arange(len(source)))

    def view(number: int) -> Source:
        # a copy, for the function may change what it is given
        made = function(data.copy(), int(rng.numpy("positives", number).integers(2**31)))
        return _same_cells(made, cells, source)

    first = view(0)  # what is wrong with it is told before readers learn

    def draw(n_views: int) -> Iterator[View]:
        for number in range(n_views):
            drawn = view(number) if number else first
            for rows in source.pieces(kept):
                yield number, rows, drawn.batch(rows).stored_expression()

    return Positives(source, kept, draw, getattr(function, "__name__", repr(function)))


def _opened(cells: Cells) -> Source:
    """Return the log-expression of cells, checked."""
    roles = [role for role in ("expression", "counts") if role in cells.places][:1]
    if not roles:
        raise SchemaError(
            "coverage needs counts or expression: name its place, as in Schema(counts='layers/counts')."
        )
    cells, rows = cells.narrowed(roles), np.arange(len(cells))
    require(findings(cells))
    if any_nan(cells.matrix(roles[0]).matrix, rows):
        raise DataError(
            f"{roles[0]} holds NaN (not measured), which cannot be read. Leave such cells out."
        )
    return open_source(cells, learn_spec(cells, roles, rows), roles, {})


def _in_memory(data: OnDisk) -> AnnData:
    """Return an AnnData of what was opened from a file."""
    held: Any = some_cells(data, np.arange(data.n_obs))
    return AnnData(held.X, obs=held.obs, var=held.var, layers=held.layers, obsm=held.obsm)


def _same_cells(made: Any, cells: Cells, source: Source) -> Source:
    """Return the log-expression of positives, which must be of the same cells and genes.

    Raises
    ------
    DataError
        If they are not.
    """
    if not isinstance(made, AnnData):
        raise DataError(f"positives returned {type(made).__name__}; expected an AnnData.")
    if made.n_obs != len(cells):
        raise DataError(
            f"positives returned {counted(made.n_obs, 'cell')} for {len(cells):,}. Return one positive for "
            "each cell, in the same order."
        )
    theirs, ours = made.obs_names, cells.names
    if not theirs.equals(ours) and theirs.is_unique and theirs.isin(ours).all():
        raise DataError(
            "positives returned the cells in another order. Return the positive of each cell at its place."
        )
    if not theirs.is_unique:
        made = _named(made, ours)
    try:
        found = _opened(Cells(made, cells.schema))
    except ChreodeError as error:
        raise DataError(
            f"positives returned cells that cannot be read. Return these as they were. {error}"
        ) from error
    if found.spec.features != source.spec.features:
        raise DataError(
            "positives returned other genes, or the same ones in another order. Return all genes as they "
            "are in the data."
        )
    return found


def _named(made: AnnData, names: pd.Index) -> AnnData:
    """Return positives that are cells themselves, maybe several times, by the names of their anchors."""
    raw = None if made.raw is None else {"X": made.raw.X, "var": made.raw.var}
    obs = pd.DataFrame(index=names)
    return AnnData(made.X, obs, made.var, layers=dict(made.layers), obsm=dict(made.obsm), raw=raw)
