"""Which cells make a minibatch. A sampler knows rows, labels and the epoch; it never reads a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from .source import WINDOW_BLOCKS, Source, in_windows

Rows = Int[np.ndarray, " b"]


@runtime_checkable
class Sampler(Protocol):
    """Anything that yields the minibatches of one epoch, the same ones for the same generator."""

    def batches(
        self, source: Source, rows: Rows, epoch: int, generator: np.random.Generator
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch."""
        ...

    def n_batches(self, source: Source, rows: Rows) -> int:
        """Return how many minibatches an epoch has."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Every row once, in random order, in minibatches of nearly `batch_size`.

    The rows are cut into equal parts, so that no leftover of one or two cells upsets batch norm.
    From disk they come in blocks of neighbours, which are shuffled, and are then mixed within
    windows of many blocks: a minibatch holds cells of a whole window, and a window is read at once.
    """

    batch_size: int

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


@dataclass(frozen=True)
class Balanced:
    """As many draws as there are rows, every category of `role` equally often (with replacement)."""

    batch_size: int
    role: str = "label"

    def n_batches(self, source: Source, rows: Rows) -> int:
        """Return how many minibatches an epoch has."""
        return Shuffled(self.batch_size).n_batches(source, rows)

    def batches(
        self, source: Source, rows: Rows, epoch: int, generator: np.random.Generator
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch."""
        codes = source.columns[self.role][rows]
        known, codes = rows[codes >= 0], codes[codes >= 0]
        weight = 1.0 / np.bincount(codes)[codes]
        drawn = generator.choice(known, size=len(rows), p=weight / weight.sum())
        yield from Shuffled(self.batch_size).batches(source, drawn, epoch, generator)


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


def _in_blocks(rows: Rows, size: int, generator: np.random.Generator) -> Rows:
    """Return `rows` with blocks of `size` neighbours shuffled; every time they are cut elsewhere."""
    blocks = np.split(rows, np.arange(generator.integers(size), len(rows), size))
    return np.concatenate([blocks[i] for i in generator.permutation(len(blocks))])
