"""Read the real data, split it, and only then choose genes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
from exchange import TEST, TRAIN, VALIDATION, Settings, Task

from chreode.data.pp import rank_genes

MOP = "mop_snareseq_multiome/mop_snareseq.h5mu"
KANG = "kang_pbmc_ifnb/kang_13999x14053.h5ad"


#: Cancer cell lines told apart by their genotypes, which no clustering of expression made.
LINES = tuple(f"sc_mixology_lines/sc_{name}.h5ad" for name in ("celseq2", "dropseq"))
FIVE_LINES = tuple(f"sc_mixology_lines/sc_celseq2_5cl_p{plate}.h5ad" for plate in (1, 2))

Reader = Callable[[Sequence[Path]], tuple[anndata.AnnData, str]]


def _mop(paths: Sequence[Path]) -> tuple[anndata.AnnData, str]:
    return mudata.read_h5ad(paths[0], mod="rna"), "batch"


def _kang(paths: Sequence[Path], condition: str) -> tuple[anndata.AnnData, str]:
    cells = anndata.read_h5ad(paths[0])
    kept = (cells.obs["condition"] == condition) & (cells.obs["donor"] != "unmatched")
    return cells[kept.to_numpy()].copy(), "donor"


def _lines(paths: Sequence[Path]) -> tuple[anndata.AnnData, str]:
    """Return the single cells of several files, with the genes that all of them have."""
    parts = [anndata.read_h5ad(path) for path in paths]
    parts = [
        part[part.obs["singlet"].to_numpy(bool), part.var["feature_type"] == "gene"].copy()
        for part in parts
    ]
    cells = anndata.concat(parts, join="inner")
    cells.obs["cell_type"] = cells.obs["cell_line"]
    return cells, "dataset"


#: Name of the task -> files, and how to read their cells and the name of the batch column.
TASKS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "mop": ((MOP,), _mop),
    "kang-ctrl": ((KANG,), partial(_kang, condition="ctrl")),
    "kang-stim": ((KANG,), partial(_kang, condition="stim")),
    "lines": (LINES, _lines),
    "five-lines": (FIVE_LINES, _lines),
}


def prepare(name: str, data: Path, settings: Settings) -> Task:
    """Return the cells of a task: 80 % to train, 10 % to validate, 10 % to test."""
    files, reader = TASKS[name]
    paths = [data / file for file in files]
    cells, batch_column = reader(paths)
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
        dataset=" + ".join(files),
        sha256=hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest(),
        counts=counts[:, genes],
        genes=cells.var_names.to_numpy(dtype=str)[genes],
        batch=batch,
        label=cells.obs["cell_type"].astype(str).to_numpy(dtype=str),
        part=part,
    )
