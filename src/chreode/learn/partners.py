"""Whom a sampler pairs with each cell: its like in an embedding, or a control of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.sampler import Rows
from ..data.source import Source
from ..errors import DataError, SchemaError, counted
from ..metrics.neighbours import exact_neighbours


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """One of the nearest cells of each anchor in an embedding, at random; never the anchor itself.

    Attributes
    ----------
    k
        Neighbours to draw from.
    column
        Column of the source that holds the embedding, which the phase's view has put there, as
        `chreode.learn.components.components` does with principal components of the training rows.
    """

    k: int = 5
    column: str = "components"
    _kept: list[Any] = field(default_factory=list, repr=False)

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Rows:
        """Return a neighbour of each anchor among `rows`.

        Raises
        ------
        SchemaError
            If the source has no such column.
        DataError
            If there is no other cell, or the embedding is not finite.
        """
        known, near = _once(self._kept, source, rows, self._search)
        drawn = near[
            np.searchsorted(known, anchors), generator.integers(near.shape[1], size=len(anchors))
        ]
        return known[drawn]

    def _search(self, source: Source, rows: Rows) -> tuple[Rows, np.ndarray]:
        if self.column not in source.columns:
            raise SchemaError(
                f"There is no embedding {self.column!r} among the columns of the source: give the phase a "
                "view that puts it there, such as components(50)."
            )
        known = np.unique(rows)
        if len(known) < 2:
            raise DataError(
                "A single cell has no neighbours. Hold out more cells, or none (validation=0)."
            )
        k = min(self.k, len(known) - 1)
        return known, exact_neighbours(source.columns[self.column][known], k).indices


@dataclass(frozen=True, eq=False)
class Controls:
    """A control of each anchor's batch, at random; of all batches where its own has none.

    Batches are told apart where the schema names `batch` and the model reads it (`needs`, `uses`).
    A control has another one as its partner, if there is another.
    """

    _kept: list[Any] = field(default_factory=list, repr=False)

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Rows:
        """Return a control for each anchor among `rows`.

        Raises
        ------
        SchemaError
            If it is not known which cells are controls.
        DataError
            If none of `rows` is one.
        """
        batch, keys = _once(self._kept, source, rows, _controls)
        start = batch[anchors] * len(source)
        first, end = np.searchsorted(keys, start), np.searchsorted(keys, start + len(source))
        first, end = np.where(first < end, first, 0), np.where(first < end, end, len(keys))
        own = np.searchsorted(keys, start + anchors)
        itself = (own < end) & (keys[np.minimum(own, len(keys) - 1)] == start + anchors)
        itself &= end - first > 1
        drawn = first + generator.integers(end - first - itself)
        return keys[drawn + (itself & (drawn >= own))] % len(source)


def _controls(source: Source, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch of every cell, and of each control batch x cells + cell, rising."""
    if source.control is None:
        raise SchemaError(
            "Which cells are controls is not known: name perturbation and control, as in "
            "Schema(perturbation='obs/guide', control='non-targeting'), and have the model read perturbation."
        )
    batch = source.columns.get("batch", np.zeros(len(source), np.int64))
    found = np.unique(rows[source.control[rows]])
    if not len(found):
        raise DataError(
            f"There is no control among {counted(len(rows), 'cell')}, and each needs one as its partner. "
            "Cells to learn from need some, and so do cells held out: name other cells, or hold out none."
        )
    return batch, np.sort(batch[found] * len(source) + found)


def _once(kept: list[Any], source: Source, rows: Rows, make: Callable[[Source, Rows], Any]) -> Any:
    """Return what is made of these rows of a source, and was kept if they are the very same ones."""
    for its_source, its_rows, made in kept:
        if its_source is source and its_rows is rows:
            return made
    # another source is that of another fit, and training and validation rows are all that one asks for
    kept[:] = [entry for entry in kept if entry[0] is source][-1:]
    kept.append((source, rows, make(source, rows)))
    return kept[-1][2]
