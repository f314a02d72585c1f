"""The real cells of the benchmark of generation, and how their classes are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import mudata
import numpy as np

import chreode as ch
from chreode.bench.generation import class_table
from chreode.bench.yardstick import split
from chreode.data.cells import Cells
from chreode.data.read import Data

from ..common import Row

GENES, PEAKS = 2000, 5000
#: Data on which options of CFGen were chosen (other splits): what is measured on them flatters it.
DEVELOPMENT = ("pbmc3k", "kang")
#: Seeds of splits, fits and draws.
SEEDS = {"pbmc3k": (0, 1, 2), "kang": (0, 1, 2), "midas": (0, 1, 2), "tusi": (0,), "mop": (0,)}


def development(case: Row) -> Row:
    """Return what a row says of its data: whether anything was chosen on them."""
    return {"development": case.get("task", "kang").partition(",")[0] in DEVELOPMENT}


def titled(task: str) -> str:
    """Return the name of a task, marked if anything was chosen on its data."""
    return f"{task} (development)" if task.partition(",")[0] in DEVELOPMENT else task


@dataclass(frozen=True)
class Task:
    """Cells of a file, and the schema that names their classes.

    Attributes
    ----------
    file
        Place below the folder of data.
    read
        How to read it.
    schema
        Where the roles are.
    n_genes
        Genes to choose on the cells of the yardstick (None: those in at least a hundredth of them).
    """

    file: str
    read: Callable[[Path], Data]
    schema: ch.Schema
    n_genes: int | None = GENES


def _kang(path: Path) -> Data:
    cells = anndata.read_h5ad(path)
    return cells[cells.obs["cell_type"].notna()].copy()


def _mop(path: Path) -> Data:
    return mudata.read_h5mu(path)


TASKS = {
    "pbmc3k": Task(
        "pbmc3k/pbmc3k_2700.h5ad", anndata.read_h5ad,
        # blank in the file: cells that the tutorial drops
        ch.Schema(counts="X", label="obs/cell_type", missing=("nan",)), None,
    ),
    "kang": Task(
        "kang_pbmc_ifnb/kang_13999x14053.h5ad", _kang,
        ch.Schema(counts="X", label="obs/cell_type", perturbation="obs/condition", control="ctrl"),
    ),
    "midas": Task(
        "midas_pbmc_rna_adt/quickstart_pbmc_mosaic.h5mu", mudata.read_h5mu,
        ch.Schema(counts="rna:X", protein="adt:X", label="obs/celltype"), 500,
    ),
    "tusi": Task(
        "tusi_haematopoiesis/tusi_mouse_hpc_4batches.h5ad", anndata.read_h5ad,
        ch.Schema(counts="X", label="obs/cell_type"),
    ),
    "mop": Task(
        "mop_snareseq_multiome/mop_snareseq.h5mu", _mop,
        ch.Schema(counts="rna:X", accessibility="atac:X", label="obs/cell_type"), 1677,
    ),
}  # fmt: skip


def prepare(
    name: str,
    data: Path,
    seed: int,
    chosen_by: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[Data, ch.Schema]:
    """Return the cells, with features chosen on cells that nothing is learned from or compared with.

    Parameters
    ----------
    chosen_by
        Returns these, from the classes (default: the yardstick, as `bench.generation` splits them).
    """
    task = TASKS[name]
    cells = task.read(data / task.file)
    classes = class_table(Cells(cells, task.schema))[0]
    yardstick = chosen_by(classes) if chosen_by else split(classes, seed).yardstick
    if isinstance(cells, anndata.AnnData):
        return cells[:, _genes(cells, task, yardstick)].copy(), task.schema
    if isinstance(cells, mudata.MuData) and task.schema.accessibility:
        atac = cells.mod["atac"]
        rows = atac.obs_names.get_indexer(cells.obs_names[yardstick])
        seen = np.asarray((atac.X[rows[rows >= 0]] > 0).sum(0)).ravel()
        cells.mod["atac"] = atac[:, np.sort(np.argsort(-seen, kind="stable")[:PEAKS])].copy()
        cells.mod["atac"].X.data[:] = 1  # 2 % of the entries are above 1
        cells.update()
    return cells, task.schema


def _genes(cells: anndata.AnnData, task: Task, rows: np.ndarray) -> np.ndarray:
    if task.n_genes is None:
        return np.asarray((cells.X[rows] > 0).mean(0)).ravel() >= 0.01
    return cells.var_names.isin(
        ch.pp.select_genes(cells, ch.Schema(counts="X"), task.n_genes, rows=rows)
    )


def corrected(
    name: str, data: Path, seed: int
) -> tuple[anndata.AnnData, np.ndarray, np.ndarray, np.ndarray]:
    """Return cells with ``obs["label"]`` and ``obs["batch"]``, and the rows of three parts.

    Seven of ten are learned from, a fifth is judged, and a tenth chooses the genes and the components in
    which batches are sought before the correction.
    """
    if name == "mop":
        cells = mudata.read_h5ad(data / TASKS[name].file, mod="rna")
        columns = "cell_type", "batch"
    else:  # one condition: the other one is no batch effect
        cells = anndata.read_h5ad(data / TASKS[name].file)
        cells = cells[
            (cells.obs["condition"] == "ctrl") & (cells.obs["donor"] != "unmatched")
        ].copy()
        columns = "cell_type", "donor"
    cells.obs["label"], cells.obs["batch"] = (cells.obs[c].astype(str) for c in columns)
    drawn = np.random.default_rng([seed, 13]).random(cells.n_obs)
    parts = drawn >= 0.3, drawn < 0.2, (drawn >= 0.2) & (drawn < 0.3)
    train, test, yardstick = map(np.flatnonzero, parts)
    if cells.n_vars > GENES:
        genes = ch.pp.select_genes(
            cells, ch.Schema(counts="X", batch="obs/batch"), GENES, rows=yardstick
        )
        cells = cells[:, cells.var_names.isin(genes)].copy()
    return cells, train, test, yardstick
