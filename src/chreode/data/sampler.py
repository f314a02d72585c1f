"""Which cells make a minibatch. A sampler knows rows, labels and the epoch; it never reads a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from ..errors import DataError
from .source import WINDOW_BLOCKS, Source, in_windows

Rows = Int[np.ndarray, " _"]
#: Cells of a minibatch, or of every row an anchor and its partners.
Drawn = Int[np.ndarray, "_ ..."]


@runtime_checkable
class Sampler(Protocol):
    """Anything that yields the minibatches of one epoch, the same ones for the same generator.

    An array of shape (b, k) holds in each row an anchor and its k - 1 partners. They are in one minibatch,
    and in one process where several share it: the loss takes them apart (`CellBatch.aligned`). Minibatches
    are counted, shared out and weighed by their anchors.
    """

    def batches(
        self, source: Source, rows: Rows, epoch: int, generator: np.random.Generator
    ) -> Iterator[Drawn]:
        """Yield positions of cells, one array per minibatch."""
        ...

    def held_out(
        self, source: Source, rows: Rows, generator: np.random.Generator
    ) -> Sequence[Drawn]:
        """Return the minibatches in which held-out rows are looked at, the same ones in every epoch."""
        ...

    def n_batches(self, source: Source, rows: Rows) -> int:
        """Return how many minibatches an epoch has."""
        ...


def _in_order(
    sampler: Sampler,  # noqa: ARG001 (the contract)
    source: Source,
    rows: Rows,
    generator: np.random.Generator,  # noqa: ARG001 (the contract)
) -> Sequence[Rows]:
    """Return held-out rows in order, each once, as many at a time as fit."""
    return source.pieces(rows)


@dataclass(frozen=True)
class Shuffled:
    """Every row once, in random order, in minibatches of nearly `batch_size`.

    The rows are cut into equal parts, so that no leftover of one or two cells upsets batch norm.
    From disk they come in blocks of neighbours, which are shuffled, and are then mixed within
    windows of many blocks: a minibatch holds cells of a whole window, and a window is read at once.

    Attributes
    ----------
    batch_size
        Cells of a minibatch, nearly.
    compares
        Whether the loss compares cells of a minibatch with each other. Held-out rows are then mixed too, and
        come in minibatches of this size: with more cells to compare with, or with those of one batch
        alone, the loss would be another. Else they come in order, as many at a time as fit.
    """

    batch_size: int
    compares: bool = False

    def per_epoch(self, n_cells: int) -> int:
        """Return how many minibatches so many cells make."""
        return max(1, round(n_cells / self.batch_size))

    def n_batches(self, source: Source, rows: Rows) -> int:  # noqa: ARG002 (a Sampler may need the source)
        """Return how many minibatches an epoch has."""
        return self.per_epoch(len(rows))

    def batches(
        self,
        source: Source,
        rows: Rows,
        epoch: int,  # noqa: ARG002 (a Sampler may read the epoch)
        generator: np.random.Generator,
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch."""
        n = self.n_batches(source, rows)
        if source.block == 1:
            yield from np.array_split(generator.permutation(rows), n)
            return
        parts = np.array_split(_in_blocks(np.sort(rows), source.block, generator), n)
        windows = list(in_windows(parts, WINDOW_BLOCKS * source.block))
        # mixed as one, so that no minibatch at the end is drawn from a few blocks
        windows[-2:] = [list(chain.from_iterable(windows[-2:]))]
        for window in windows:
            mixed = generator.permutation(np.concatenate(window))
            yield from np.array_split(mixed, len(window))

    def held_out(
        self, source: Source, rows: Rows, generator: np.random.Generator
    ) -> Sequence[Rows]:
        """Return the minibatches in which held-out rows are looked at."""
        if self.compares:
            return list(self.batches(source, rows, 0, generator))
        return source.pieces(rows)


@dataclass(frozen=True)
class Balanced:
    """As many draws as there are rows, every category of `role` equally often (with replacement).

    Of a role that is read as sets every combination is a category, and so is the control.
    """

    batch_size: int
    role: str = "label"

    def n_batches(self, source: Source, rows: Rows) -> int:
        """Return how many minibatches an epoch has."""
        return Shuffled(self.batch_size).n_batches(source, rows)

    def batches(
        self, source: Source, rows: Rows, epoch: int, generator: np.random.Generator
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch.

        Raises
        ------
        DataError
            If no row has a category.
        """
        codes = source.columns[self.role][rows]
        if codes.ndim == 2:
            codes = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
        if not (codes >= 0).any():
            raise DataError(f"No cell to learn from has a {self.role}, by which cells are drawn.")
        known, codes = rows[codes >= 0], codes[codes >= 0]
        weight = 1.0 / np.bincount(codes)[codes]
        drawn = generator.choice(known, size=len(rows), p=weight / weight.sum())
        yield from Shuffled(self.batch_size).batches(source, drawn, epoch, generator)

    held_out = _in_order


@dataclass(frozen=True)
class FullBatch:
    """All rows as one minibatch, several times an epoch."""

    times: int = 1

    def n_batches(self, source: Source, rows: Rows) -> int:  # noqa: ARG002 (the contract)
        """Return how many minibatches an epoch has."""
        return self.times

    def batches(
        self,
        source: Source,  # noqa: ARG002 (the contract)
        rows: Rows,
        epoch: int,  # noqa: ARG002 (the contract)
        generator: np.random.Generator,  # noqa: ARG002 (the contract)
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch."""
        yield from [rows] * self.times

    held_out = _in_order


@runtime_checkable
class Partner(Protocol):
    """Draws for each of some anchors a cell, or several, among the rows of its split alone."""

    def __call__(
        self, source: Source, rows: Rows, anchors: Rows, generator: np.random.Generator
    ) -> Drawn:
        """Return positions of cells, shape (b,) or (b, partners), all of them of `rows`.

        `rows` is the same array for as long as the split is the same: what is made of it may be kept.
        """
        ...


@dataclass(frozen=True)
class Paired:
    """Every row once as an anchor, in random order, with partners drawn anew every time.

    Held-out rows are anchors once as well, in minibatches of the same size, and have partners of their own:
    they never meet training cells. From disk, partners are read wherever they are.

    Attributes
    ----------
    batch_size
        Anchors of a minibatch, nearly.
    partner
        Draws the partners (see `chreode.learn.partners`).
    """

    batch_size: int
    partner: Partner

    def n_batches(self, source: Source, rows: Rows) -> int:
        """Return how many minibatches an epoch has."""
        return Shuffled(self.batch_size).n_batches(source, rows)

    def batches(
        self, source: Source, rows: Rows, epoch: int, generator: np.random.Generator
    ) -> Iterator[Drawn]:
        """Yield arrays of shape (b, 1 + partners), one per minibatch: an anchor and its partners a row."""
        for anchors in Shuffled(self.batch_size).batches(source, rows, epoch, generator):
            partners = self.partner(source, rows, anchors, generator)
            yield np.column_stack([anchors, partners])

    def held_out(
        self, source: Source, rows: Rows, generator: np.random.Generator
    ) -> Sequence[Drawn]:
        """Return minibatches as those of an epoch."""
        return list(self.batches(source, rows, 0, generator))


def _in_blocks(rows: Rows, size: int, generator: np.random.Generator) -> Rows:
    """Return `rows` with blocks of `size` neighbours shuffled; every time they are cut elsewhere."""
    blocks = np.split(rows, np.arange(generator.integers(size), len(rows), size))
    return np.concatenate([blocks[i] for i in generator.permutation(len(blocks))])
