"""Simulated cells for the tests of metrics."""

from __future__ import annotations

import numpy as np
import pytest


def cells(n_cells=600, shift=0.0, spread=4.0, seed=0):
    """Four labels, evenly in three batches that `shift` moves apart."""
    rng = np.random.default_rng(seed)
    labels, batches = rng.integers(4, size=n_cells), rng.integers(3, size=n_cells)
    centres, moves = spread * rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    x = centres[labels] + shift * moves[batches] + rng.normal(size=(n_cells, 5))
    return x, labels, batches, x + 4 * moves[batches]


@pytest.fixture(scope="session")
def simulate():
    return cells
