"""Read the real data, split it, and only then choose genes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
from exchange import TEST, TRAIN, VALIDATION, Settings, Task

from chreode.pp import rank_genes

MOP = "mop_snareseq_multiome/mop_snareseq.h5mu"
KANG = "kang_pbmc_ifnb/kang_13999x14053.h5ad"


def _mop(path: Path) -> tuple[anndata.AnnData, str]:
    return mudata.read_h5ad(path, mod="rna"), "batch"


def _kang(path: Path, condition: str) -> tuple[anndata.AnnData, str]:
    cells = anndata.read_h5ad(path)
    kept = (cells.obs["condition"] == condition) & (cells.obs["donor"] != "unmatched")
    return cells[kept.to_numpy()].copy(), "donor"


#: Name of the task -> file, and how to read its cells and the name of their batch column.
TASKS: dict[str, tuple[str, Callable[[Path], tuple[anndata.AnnData, str]]]] = {
    "mop": (MOP, _mop),
    "kang-ctrl": (KANG, partial(_kang, condition="ctrl")),
    "kang-stim": (KANG, partial(_kang, condition="stim")),
}


def prepare(name: str, data: Path, settings: Settings) -> Task:
    """Return the cells of a task: 80 % to train, 10 % to validate, 10 % to test."""
    file, reader = TASKS[name]
    cells, batch_column = reader(data / file)
    rng = np.random.default_rng(settings.split_seed)
    if settings.cells is not None:
        cells = cells[np.sort(rng.permutation(cells.n_obs)[: settings.cells])].copy()
    part = np.full(cells.n_obs, TRAIN, np.int8)
    order = rng.permutation(cells.n_obs)
    tenth = round(0.1 * cells.n_obs)
    part[order[:tenth]], part[order[tenth : 2 * tenth]] = TEST, VALIDATION
    batch = cells.obs[batch_column].astype(str).to_numpy(dtype=str)
    counts = cells.X.tocsr().astype(np.float32)
    genes = np.arange(cells.n_vars)
    if cells.n_vars > settings.n_genes:
        train = part == TRAIN
        codes = pd.factorize(batch[train])[0]
        genes = np.sort(rank_genes(counts[train], codes, settings.n_genes))
    return Task(
        name=name,
        dataset=file,
        sha256=hashlib.sha256((data / file).read_bytes()).hexdigest(),
        counts=counts[:, genes],
        genes=cells.var_names.to_numpy(dtype=str)[genes],
        batch=batch,
        label=cells.obs["cell_type"].astype(str).to_numpy(dtype=str),
        part=part,
    )
