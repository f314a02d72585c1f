"""Whom a sampler pairs with each cell: its like in an embedding, or a control of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.sampler import Drawn, Rows
from ..data.source import Source
from ..errors import ConfigError, DataError, SchemaError, counted
from ..metrics.neighbours import exact_neighbours, mutual_neighbours, neighbours_by_group
from .components import having_expression

#: Share of other labels up to which a batch holds one label nearly alone.
_FEW = 0.05


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """Cells near each anchor in an embedding, sought once among all rows of a split that have a place in it.

    An anchor that has none, such as a cell without expression, stands for itself.

    Attributes
    ----------
    k
        Neighbours to look at: of all cells, or of each batch.
    column
        Column of the source that holds the embedding, which the phase's view has put there, as
        `chreode.learn.components.components` does with principal components of the training rows. NaN: a
        cell has no place.
    """

    k: int = 5
    column: str = "components"
    _kept: list[Any] = field(default_factory=list, repr=False)

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Drawn:
        """Return the partners of each anchor among `rows`.

        Raises
        ------
        SchemaError
            If the source has no such column, or batches are looked at and not known.
        DataError
            If there is no other cell, or no other batch, or the embedding is not finite.
        """
        known, *tables = _once(self._kept, source, rows, self._search)
        at = np.searchsorted(known, anchors).clip(max=len(known) - 1)
        drawn = self._draw([table[at] for table in tables], generator)
        drawn[known[at] != anchors] = -1
        found: Drawn = np.where(
            drawn < 0, np.expand_dims(anchors, [*range(1, drawn.ndim)]), known[drawn]
        )
        return found

    def _placed(self, source: Source, rows: Rows) -> Rows:
        """Return the distinct rows that have a place."""
        if self.column not in source.columns:
            raise SchemaError(
                f"There is no embedding {self.column!r} among the columns of the source: give the phase a "
                "view that puts it there, such as components(50)."
            )
        known = np.unique(rows)
        found: Rows = known[~np.isnan(source.columns[self.column][known]).all(1)]
        return found

    def _by_batch(
        self, source: Source, rows: Rows, what: str
    ) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Return placed rows, their batches from 0, and places among them of the nearest in each batch."""
        known = self._placed(source, rows)
        refuse_one_batch(source, rows, known, what)
        batch = np.unique(source.columns["batch"][known], return_inverse=True)[1].ravel()
        near = neighbours_by_group(source.columns[self.column][known], batch, self.k)
        return known, batch, near

    def _search(self, source: Source, rows: Rows) -> tuple[np.ndarray, ...]:
        """Return the placed rows, and tables of places among them with a row for each."""
        raise NotImplementedError

    def _draw(self, tables: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """Return places of partners, -1 where there is none; the tables have a row for each anchor."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class NearestNeighbours(_Neighbours):
    """One of the k nearest cells of each anchor in an embedding, at random; never the anchor itself."""

    def _search(self, source: Source, rows: Rows) -> tuple[np.ndarray, ...]:
        known = self._placed(source, rows)
        if len(known) < 2:
            n, left = counted(len(rows), "cell"), "none" if len(known) == 0 else "a single one"
            lacking = f"Of {n} to learn from, or held out together, {left} has expression, and it takes two."
            alone = "A single cell has no neighbours." if len(rows) < 2 else lacking
            raise DataError(f"{alone} Hold out more cells, or none (validation=0).")
        k = min(self.k, len(known) - 1)
        return known, exact_neighbours(source.columns[self.column][known], k).indices

    def _draw(self, tables: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        (near,) = tables
        at = generator.integers(near.shape[1], size=len(near))
        drawn: np.ndarray = near[np.arange(len(near)), at]
        return drawn


@dataclass(frozen=True, eq=False)
class MutualNeighbours(_Neighbours):
    """Two cells for each anchor: a near one of its own batch, and a mutual nearest neighbour in another.

    The first is one of the k nearest of its batch. The second is one of all cells of other batches that are
    among the k nearest there of the anchor, which is itself among the k nearest of them in its own batch.
    Both are drawn at random, each with the same chance. Where there is none, the anchor stands in for it: a
    cell whose like was not seen in any other batch is mixed with none. (A near cell's mutual neighbour could
    stand in as well, but that is how types that one batch alone has would be mixed with others.)

    Every pair of cells is compared, in chunks, so that time grows with the square of their number. Memory
    holds cells x batches x k row numbers.

    References
    ----------
    Haghverdi et al. (2018), Batch effects in single-cell RNA-sequencing data are corrected by matching
    mutual nearest neighbors, Nature Biotechnology 36:421.
    """

    def _search(self, source: Source, rows: Rows) -> tuple[np.ndarray, ...]:
        known, batch, near = self._by_batch(source, rows, "mnn")
        mutual = mutual_neighbours(near, batch)
        return known, near[np.arange(len(known)), batch], mutual.reshape(len(known), -1)

    def _draw(self, tables: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        return np.stack([_one_of(table, generator) for table in tables], 1)


@dataclass(frozen=True, eq=False)
class BatchBalanced(_Neighbours):
    """Two cells for each anchor, each one of the k nearest of a batch that was drawn at random.

    The anchor's own batch is drawn as often as any other, and the anchor itself is left out. Time and memory
    are those of `MutualNeighbours`.

    References
    ----------
    Polański et al. (2020), BBKNN: fast batch alignment of single cell transcriptomes, Bioinformatics
    36:964 (its neighbours; partners are drawn from them here).
    """

    def _search(self, source: Source, rows: Rows) -> tuple[np.ndarray, ...]:
        known, _, near = self._by_batch(source, rows, "bbknn")
        return known, near

    def _draw(self, tables: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        (near,) = tables
        return np.stack([_one_of(_one_of(near, generator), generator) for _ in range(2)], 1)


def refuse_one_batch(
    source: Source, rows: Rows, known: Rows, what: str, instead: str | None = None
) -> None:
    """Refuse to look for cells of other batches where there are none.

    Parameters
    ----------
    known
        Those of the rows that can be compared.
    what, instead
        What they are needed for, and what can be done without them (None: leave it out of the augmentations).

    Raises
    ------
    SchemaError
        If batches are not known.
    DataError
        If all that can be compared are of one batch.
    """
    if "batch" not in source.columns:
        raise SchemaError(
            f"Cells of two batches are needed for {what}, and it is not known which cell is of which: name "
            "batch, as in Schema(batch='obs/donor')."
        )
    if len(names := np.unique(source.columns["batch"][known])) < 2:
        n, some = counted(len(rows), "cell"), "to learn from, or held out together"
        only = "".join(f" from {source.spec.categories['batch'][code]!r} alone" for code in names)
        if len(known) == len(rows):
            found = f"{n} {some}, come{only}"
        else:
            those = f"those with expression come{only}" if only else "none has expression"
            found = f"of {n} {some}, {those}"
        raise DataError(
            f"Cells of two batches are needed for {what}: {found}. Name other cells, or "
            f"{instead or f'leave {what} out of the augmentations'}."
        )


def refuse_labels_as_batches(source: Source, rows: Rows, what: str) -> None:
    """Refuse to mix cells by batches each of which holds one label (nearly) alone, in one batch or several.

    Partners from the own batch would then have the own label, and those from another batch mostly another
    one. Labels that occur in one batch alone are no leak, as its other labels are drawn like them.

    Raises
    ------
    ConfigError
        It names a batch and its label.
    """
    if "label" not in source.columns:
        return
    rows = having_expression(source, rows)  # no others are mixed
    batch, label = (source.columns[role][rows] for role in ("batch", "label"))
    names = source.spec.categories
    n = np.zeros((len(names["batch"]), len(names["label"])), np.int64)
    np.add.at(n, (batch[label >= 0], label[label >= 0]), 1)
    there = np.flatnonzero(n.sum(1))
    commonest, total = n.argmax(1)[there], n.sum(1)[there]
    if len(np.unique(commonest)) < 2 or (n.max(1)[there] < (1 - _FEW) * total).any():
        return
    place, kind = names["batch"][there[0]], names["label"][commonest[0]]
    raise ConfigError(
        f"Cells of different batches are mixed by {what}, and here every batch holds one label, alone or "
        f"nearly so: batch {place!r} holds {kind!r}. This would show labels to a model that is to be judged "
        f"by them. Name as batch what holds cells of several labels, or do without {what}."
    )


def _one_of(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return one of the last axis, each that is not -1 with the same chance; -1 where all are."""
    at = np.where(table < 0, -1.0, generator.random(table.shape)).argmax(-1)
    return np.take_along_axis(table, at[..., None], -1)[..., 0]


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
