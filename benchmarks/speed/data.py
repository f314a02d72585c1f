"""Simulated cells on disk, written in pieces: their number is bounded by the disk alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

PIECE = 4096
TYPES, BATCHES = 10, 5


def simulated(
    scratch: Path, *, cells: int, genes: int, density: float, by_type: bool = False, seed: int = 0
) -> dict[str, str]:
    """Return the path and sha256 of an .h5ad of negative binomial counts, made once.

    ``X`` is CSR of float32, uncompressed, in chunks as anndata would make them, with indices and indptr
    of the same integers as in a matrix that was written whole: SciPy copies all indices for every row
    it takes where they differ. ``obs`` has ``batch`` and ``cell_type``, in random order or sorted
    `by_type`. The hash is that of data, indices and indptr, in pieces.
    """
    name = f"{cells}x{genes}-{density:g}{'-by-type' if by_type else ''}-{seed}.h5ad"
    path = scratch / name
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        _write(aside, cells, genes, density, by_type, seed)
        aside.replace(path)
    with h5py.File(path) as file:
        return {"file": str(path), "sha256": str(file.attrs["sha256"])}


def _write(path: Path, cells: int, genes: int, density: float, by_type: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(TYPES, size=cells), rng.integers(BATCHES, size=cells)
    if by_type:
        kind.sort()
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(batch, [f"batch{i}" for i in range(BATCHES)]),
            "cell_type": pd.Categorical.from_codes(kind, [f"type{i}" for i in range(TYPES)]),
        },
        index=np.arange(cells).astype(str),
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(genes)])
    anndata.AnnData(obs=obs, var=var).write_h5ad(path)
    digest = hashlib.sha256()
    with h5py.File(path, "a") as file:
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = (cells, genes)
        room = int(density * cells * genes)  # about; h5py chooses chunks by it
        parts = {
            name: x.create_dataset(name, (room,), kind, maxshape=(None,))
            for name, kind in (("data", np.float32), ("indices", np.int32))
        }
        starts, stored = [np.zeros(1, np.int64)], 0
        for piece in _pieces(kind, batch, genes, density, rng):
            end = stored + piece.nnz
            for name, dataset in parts.items():
                if end > len(dataset):
                    dataset.resize((end,))
                values = getattr(piece, name).astype(dataset.dtype)
                dataset[stored:end] = values
                digest.update(values)
            starts.append(stored + piece.indptr[1:].astype(np.int64))
            stored = end
        for dataset in parts.values():
            dataset.resize((stored,))
        assert stored < 2**31, "more than int32 can count"
        indptr = np.concatenate(starts).astype(np.int32)
        x.create_dataset("indptr", data=indptr, maxshape=(None,))
        digest.update(indptr)
        file.attrs["sha256"] = digest.hexdigest()


def _pieces(
    kind: np.ndarray, batch: np.ndarray, genes: int, density: float, rng: np.random.Generator
) -> Iterator[sp.csr_matrix]:
    base = rng.normal(0, 1.5, genes)
    of_type, of_batch = rng.normal(0, 0.7, (TYPES, genes)), rng.normal(0, 0.2, (BATCHES, genes))
    profile = np.exp(base + of_type[:, None] + of_batch)
    profile = (profile / profile.sum(-1, keepdims=True)).astype(np.float32)
    theta = rng.gamma(2, 1, genes).astype(np.float32) + 0.1
    depth = rng.lognormal(0, 0.35, len(kind)).astype(np.float32)
    some = slice(0, 500)
    depth *= _scale(depth[some, None] * profile[kind[some], batch[some]], theta, density)
    for start in range(0, len(kind), PIECE):
        rows = slice(start, start + PIECE)
        mu = depth[rows, None] * profile[kind[rows], batch[rows]]
        yield _negative_binomial(mu, theta, rng)


def _scale(mu: np.ndarray, theta: np.ndarray, density: float) -> float:
    """Return what `mu` must be multiplied by for so many entries not to be 0, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        found = 1 - np.exp(-theta * np.log1p(middle * mu / theta)).mean()
        low, high = (middle, high) if found < density else (low, middle)
    return low


def _negative_binomial(
    mu: np.ndarray, theta: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Draw counts by inversion: of a uniform number per entry, most are below the chance of a 0."""
    uniform = rng.random(mu.shape, dtype=np.float32)
    zero = np.exp(-theta * np.log1p(mu / theta))
    row, gene = np.nonzero(uniform >= zero)
    left = (uniform[row, gene] - zero[row, gene]).astype(np.float64)
    chance, count = zero[row, gene].astype(np.float64), np.zeros(len(row))
    t, odds = theta[gene].astype(np.float64), (mu / (mu + theta))[row, gene].astype(np.float64)
    active = np.arange(len(row))
    while len(active):
        count[active] += 1
        k = count[active]
        chance[active] *= odds[active] * (k - 1 + t[active]) / k
        left[active] -= chance[active]
        # the chances of a far tail underflow before they add up to a uniform number near 1
        active = active[(left[active] >= 0) & (chance[active] > 1e-12)]
    shape = mu.shape
    return sp.csr_matrix((count.astype(np.float32), (row, gene)), shape=shape)
