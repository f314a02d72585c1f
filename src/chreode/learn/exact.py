"""Closed forms and wrapped solvers: one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse.linalg
import torch
from jaxtyping import Float

from ..data.batch import CellBatch
from ..data.source import Source
from ..module import Module
from .phase import Phase, Run, Split, Trace

Batches = Callable[[], Iterator[CellBatch]]


@dataclass(frozen=True)
class Exact:
    """Call ``module.solve(batches, rng)`` once; False from it means "still improving when it stopped"."""

    validates: ClassVar[bool] = False

    def learn(self, module: Module, phase: Phase, source: Source, split: Split, run: Run) -> Trace:
        """Solve in place."""
        start = time.perf_counter()
        target = phase.target(module)
        with torch.no_grad():
            rested = target.solve(lambda: source.batches(split.train, run.device), run.rng)
        history = pd.DataFrame({"epoch": [0], "seconds": [time.perf_counter() - start]})
        return Trace(history, "still improving" if rested is False else "rested")


def moments(
    batches: Batches,
) -> tuple[int, Float[torch.Tensor, " g"], Float[torch.Tensor, "g g"]]:
    """Return the number of cells, the mean and the covariance (divided by n) of log-expression.

    One pass in float64; memory is features squared, whatever the number of cells.
    """
    # products of nearly centred values lose no digits, hence the shift by the first chunk's mean
    shift = next(batches()).log_expression().double().mean(0)
    n, total, products = 0, torch.zeros_like(shift), torch.zeros_like(torch.outer(shift, shift))
    for batch in batches():
        x = batch.log_expression().double() - shift
        n += len(x)
        total += x.sum(0)
        products.addmm_(x.T, x)
    mean = total / n
    return n, mean + shift, products / n - torch.outer(mean, mean)


def top_eigen(
    symmetric: Float[torch.Tensor, "g g"], k: int, *, dense_up_to: int = 3000
) -> tuple[Float[torch.Tensor, " k"], Float[torch.Tensor, "g k"]]:
    """Return the k largest eigenvalues, falling, and their vectors; their largest entries are positive."""
    matrix = symmetric.cpu().numpy()
    g = len(matrix)
    if g <= dense_up_to or k > g // 4:
        values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[g - k, g - 1])
    else:
        start = np.full(g, g**-0.5)  # a fixed start: the same bits every time
        values, vectors = scipy.sparse.linalg.eigsh(matrix, k=k, v0=start)
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(k)])
    device = symmetric.device
    return torch.from_numpy(values.copy()).to(device), torch.from_numpy(vectors.copy()).to(device)
