"""Which cells make a minibatch. A sampler knows rows, labels and the epoch; it never reads a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from .source import Source

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
    """

    batch_size: int

    def n_batches(self, source: Source, rows: Rows) -> int:  # noqa: ARG002 (a Sampler may need the source)
        """Return how many minibatches an epoch has."""
        return max(1, round(len(rows) / self.batch_size))

    def batches(
        self,
        source: Source,
        rows: Rows,
        epoch: int,  # noqa: ARG002 (a Sampler may read the epoch)
        generator: np.random.Generator,
    ) -> Iterator[Rows]:
        """Yield positions of cells, one array per minibatch."""
        yield from np.array_split(generator.permutation(rows), self.n_batches(source, rows))


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
