"""What the two environments hand each other: settings as JSON, arrays as npz without pickle.

Imported on both sides, so it needs NumPy and SciPy only.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Stopwatch as Stopwatch  # the fits of both sides take it from here

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every row of a run shares; the hyper-parameters are scvi-tools' defaults."""

    epochs: int
    warmup: float = 0.5  # share of the epochs over which the KL weight rises to 1
    n_latent: int = 10
    n_hidden: int = 128
    n_layers: int = 1
    dropout: float = 0.1
    batch_size: int = 128
    lr: float = 1e-3
    eps: float = 0.01
    weight_decay: float = 1e-6
    draws: int = 10  # of z per test cell, for the held-out ELBO
    split_seed: int = 0
    n_genes: int = 2000  # chosen on training cells, where there are more
    cells: int | None = None  # a random subset, to try things out
    threads: int = 2


@dataclass(frozen=True)
class Task:
    """Cells of one data set with their split."""

    name: str
    dataset: str
    sha256: str
    counts: sp.csr_matrix
    genes: np.ndarray
    batch: np.ndarray
    label: np.ndarray
    part: np.ndarray

    def rows(self, *parts: int) -> np.ndarray:
        return np.flatnonzero(np.isin(self.part, parts))

    def save(self, path: Path) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "counts"}
        for name in ("data", "indices", "indptr", "shape"):
            arrays[f"counts_{name}"] = np.asarray(getattr(self.counts, name))
        save_arrays(path, compress=True, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        arrays = load_arrays(path)
        data, indices, indptr, shape = (
            arrays.pop(f"counts_{name}") for name in ("data", "indices", "indptr", "shape")
        )
        texts = {name: str(arrays.pop(name)) for name in ("name", "dataset", "sha256")}
        return cls(**texts, counts=sp.csr_matrix((data, indices, indptr), tuple(shape)), **arrays)


def shared_noise(task: Task, settings: Settings, seed: int) -> np.ndarray:
    """Return the standard normal draws behind z, draws x test cells x latent, alike on both sides."""
    shape = (settings.draws, len(task.rows(TEST)), settings.n_latent)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save_arrays(path: Path, *, compress: bool = False, **arrays: Any) -> None:
    """Write aside and rename: a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial.npz")
    (np.savez_compressed if compress else np.savez)(aside, **arrays)
    aside.replace(path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def fit_arguments() -> tuple[Task, Settings, int, Path]:
    """Read the command line of a fit: task file, JSON of settings, seed, file to write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    return Task.load(given.task), Settings(**given.settings), given.seed, given.out


def as_json(settings: Settings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)
