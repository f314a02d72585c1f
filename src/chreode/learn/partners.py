"""Whom a sampler pairs with each cell: its like in an embedding, or a control of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.sampler import Drawn, Rows
from ..data.source import Source
from ..errors import ConfigError, DataError, SchemaError, counted
from ..metrics.neighbours import exact_neighbours, neighbours_by_group


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
        x = _embedding(source, self.column)
        known = np.unique(rows)
        if len(known) < 2:
            raise DataError(
                "A single cell has no neighbours. Hold out more cells, or none (validation=0)."
            )
        k = min(self.k, len(known) - 1)
        return known, exact_neighbours(x[known], k).indices


@dataclass(frozen=True, eq=False)
class MutualNeighbours:
    """Two cells for each anchor: a near one of its own batch, and a mutual nearest neighbour in another.

    The first is one of the k nearest of its batch. The second is one of all cells of other batches that are
    among the k nearest there of the anchor, which is itself among the k nearest of them in its own batch.
    Both are drawn at random, each with the same chance. Where there is none, the anchor stands in for it: a
    cell whose like was not seen in any other batch is mixed with none. (A near cell's mutual neighbour could
    stand in as well, but that is how types that one batch alone has would be mixed with others.)

    Every pair of cells is compared, in chunks, so that time grows with the square of their number. Memory
    holds cells x batches x k row numbers.

    Attributes
    ----------
    k
        Neighbours to look at in each batch.
    column
        See `NearestNeighbours`.

    References
    ----------
    Haghverdi et al. (2018), Batch effects in single-cell RNA-sequencing data are corrected by matching
    mutual nearest neighbors, Nature Biotechnology 36:421.
    """

    k: int = 5
    column: str = "components"
    _kept: list[Any] = field(default_factory=list, repr=False)

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Drawn:
        """Return both cells for each anchor among `rows`.

        Raises
        ------
        SchemaError
            If batches are not known, or the source has no such column.
        DataError
            If there is one batch only, or the embedding is not finite.
        """
        known, *tables = _once(self._kept, source, rows, self._search)
        at = np.searchsorted(known, anchors)
        drawn = [_one_of(table[at], generator) for table in tables]
        return np.stack([known[np.where(cell < 0, at, cell)] for cell in drawn], 1)

    def _search(self, source: Source, rows: Rows) -> tuple[Rows, np.ndarray, np.ndarray]:
        known, batch, near = _near_by_batch(source, rows, self.column, self.k, "mnn")
        itself = np.arange(len(known))
        own, mutual = near[itself, batch], np.full_like(near, -1)
        for other in range(near.shape[1]):
            there = near[:, other]
            back = near[there, batch[:, None]]  # of -1 too, which is taken out again
            found = (back == itself[:, None, None]).any(2) & (there >= 0)
            found &= (batch != other)[:, None]
            mutual[:, other] = np.where(found, there, -1)
        return known, own, mutual.reshape(len(known), -1)


@dataclass(frozen=True, eq=False)
class BatchBalanced:
    """Two cells for each anchor, each one of the k nearest of a batch that was drawn at random.

    The anchor's own batch is drawn as often as any other, and the anchor itself is left out. Time and memory
    are those of `MutualNeighbours`.

    Attributes
    ----------
    k
        Neighbours to look at in each batch.
    column
        See `NearestNeighbours`.

    References
    ----------
    Polański et al. (2020), BBKNN: fast batch alignment of single cell transcriptomes, Bioinformatics
    36:964 (its neighbours; partners are drawn from them here).
    """

    k: int = 5
    column: str = "components"
    _kept: list[Any] = field(default_factory=list, repr=False)

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Drawn:
        """Return two cells for each anchor among `rows`; raises what `MutualNeighbours` does."""
        known, near = _once(self._kept, source, rows, self._search)
        some = near[np.searchsorted(known, anchors)]
        drawn = [_one_of(_one_of(some, generator), generator) for _ in range(2)]
        return known[np.stack(drawn, 1)]

    def _search(self, source: Source, rows: Rows) -> tuple[Rows, np.ndarray]:
        known, _, near = _near_by_batch(source, rows, self.column, self.k, "bbknn")
        return known, near


def _near_by_batch(
    source: Source, rows: Rows, column: str, k: int, what: str
) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Return the distinct rows, their batches from 0, and places among them of the nearest in each batch."""
    x, known = _embedding(source, column), np.unique(rows)
    refuse_one_batch(source, known, what)
    batch = np.unique(source.columns["batch"][known], return_inverse=True)[1].ravel()
    return known, batch, neighbours_by_group(x[known], batch, k)


def refuse_one_batch(source: Source, rows: Rows, what: str) -> None:
    """Refuse to look for cells of other batches where there are none.

    Raises
    ------
    SchemaError
        If batches are not known.
    DataError
        If all rows are of one batch.
    """
    if "batch" not in source.columns:
        raise SchemaError(
            f"Cells of two batches are needed for {what}, and it is not known which cell is of which: name "
            "batch, as in Schema(batch='obs/donor')."
        )
    if len(names := np.unique(source.columns["batch"][rows])) < 2:
        only = "".join(f" {source.spec.categories['batch'][code]!r}" for code in names)
        raise DataError(
            f"Cells of two batches are needed for {what}: {counted(len(rows), 'cell')} to learn from, or "
            f"held out together, come from{only} alone. Name other cells, or leave {what} "
            "out of the augmentations."
        )


def refuse_labels_as_batches(source: Source, rows: Rows, what: str) -> None:
    """Refuse to mix cells by batches each of which holds one label alone: one batch of each, or several.

    Partners from the own batch would then have the own label, and those from another batch mostly another
    one. Labels that occur in one batch alone are no leak, as its other labels are drawn like them.

    Raises
    ------
    ConfigError
        It names a batch and its label.
    """
    if "label" not in source.columns:
        return
    batch, label = (source.columns[role][rows] for role in ("batch", "label"))
    pairs = np.unique(np.stack([batch, label])[:, label >= 0], axis=1)
    n_batches, n_labels = (len(np.unique(codes)) for codes in pairs)
    if n_labels < 2 or n_batches < pairs.shape[1]:
        return
    names = source.spec.categories
    place, kind = names["batch"][pairs[0, 0]], names["label"][pairs[1, 0]]
    raise ConfigError(
        f"Cells of different batches are mixed by {what}, and here every batch holds one label alone: batch "
        f"{place!r} holds {kind!r}. This would show labels to a model that is to be judged by them. Name as "
        f"batch what holds cells of several labels, or do without {what}."
    )


def _one_of(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return one of the last axis, each that is not -1 with the same chance; -1 where all are."""
    at = np.where(table < 0, -1.0, generator.random(table.shape)).argmax(-1)
    return np.take_along_axis(table, at[..., None], -1)[..., 0]


def _embedding(source: Source, column: str) -> np.ndarray:
    if column not in source.columns:
        raise SchemaError(
            f"There is no embedding {column!r} among the columns of the source: give the phase a "
            "view that puts it there, such as components(50)."
        )
    return source.columns[column]


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
