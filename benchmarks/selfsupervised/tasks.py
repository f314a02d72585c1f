"""The real cells of the benchmark of self-supervision: three tasks, and cells to tune on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np

import chreode as ch
from chreode.data.read import Data

from ..common import Row

GENES = 2000
SEEDS = (0, 1, 2)
#: Cells on which options were chosen: what is measured on them flatters those who have options.
DEVELOPMENT = ("kang-stim",)
LINES = ("celseq2", "dropseq", "celseq2_5cl_p1", "celseq2_5cl_p2")


@dataclass(frozen=True)
class Task:
    """Cells, where their roles are, and what is asked.

    Attributes
    ----------
    read
        Returns the cells from the folder of data.
    schema
        Where the roles are.
    held_out
        Batches that are the query of typing, or of the missing modality.
    unseen
        Types of which the reference is robbed, so that the query holds types that it lacks.
    """

    read: Callable[[Path], Data]
    schema: ch.Schema
    tasks: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    unseen: tuple[str, ...] = field(default=())


def _kang(condition: str) -> Callable[[Path], Data]:
    def read(data: Path) -> Data:
        cells = anndata.read_h5ad(data / "kang_pbmc_ifnb/kang_13999x14053.h5ad")
        kept = (cells.obs["condition"] == condition) & (cells.obs["donor"] != "unmatched")
        return cells[(kept & cells.obs["cell_type"].notna()).to_numpy()].copy()

    return read


def _tusi(data: Path) -> Data:
    return anndata.read_h5ad(data / "tusi_haematopoiesis/tusi_mouse_hpc_4batches.h5ad")


def _mop(data: Path) -> Data:
    return mudata.read_h5ad(data / "mop_snareseq_multiome/mop_snareseq.h5mu", mod="rna")


def _lines(data: Path) -> Data:
    """Return single cells of four files; their labels are genotypes, which no clustering made."""
    parts = [anndata.read_h5ad(data / f"sc_mixology_lines/sc_{name}.h5ad") for name in LINES]
    parts = [p[p.obs["singlet"].to_numpy(bool), p.var["feature_type"] == "gene"] for p in parts]
    return anndata.concat(parts, join="inner")


def _midas(data: Path) -> Data:
    return mudata.read_h5mu(data / "midas_pbmc_rna_adt/quickstart_pbmc_mosaic.h5mu")


def _cite(data: Path) -> Data:
    """Return cells of one lane, cut at random into a reference and a query: it has no batches."""
    cells = anndata.read_h5ad(data / "pbmc10k_citeseq/pbmc10k_cite_6855x4000_14prot.h5ad")
    half = np.random.default_rng(0).random(cells.n_obs) < 0.5
    cells.obs["part"] = np.where(half, "query", "reference")
    return cells


_RNA = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type")
_KANG = _RNA.with_(batch="obs/donor")
TASKS = {
    "kang-stim": Task(_kang("stim"), _KANG, ("correction", "typing"), ("101", "1488")),
    "kang-ctrl": Task(_kang("ctrl"), _KANG, ("correction",)),
    "kang-ctrl, two donors": Task(
        _kang("ctrl"), _KANG, ("typing",), ("1039", "1256"), ("Dendritic cells",)
    ),
    "mop": Task(_mop, _RNA, ("correction",)),
    "mop, two libraries": Task(_mop, _RNA, ("typing",), ("09K", "09L"), ("Oligo",)),
    "tusi": Task(_tusi, _RNA, ("correction",)),
    "lines": Task(
        _lines, _RNA.with_(batch="obs/dataset", label="obs/cell_line"), ("correction",)
    ),
    "midas": Task(
        _midas,
        ch.Schema(counts="rna:X", protein="adt:X", batch="obs/batch", label="obs/celltype"),
        ("correction",),
    ),
    "midas, p4": Task(
        _midas,
        ch.Schema(counts="rna:X", protein="adt:X", batch="obs/batch", label="obs/celltype"),
        ("missing",), ("p4_0",),
    ),
    "cite": Task(
        _cite,
        ch.Schema(counts="X", protein="obsm/protein_counts", batch="obs/part",
                  label="obs/cell_type_gated"),
        ("missing",), ("query",),
    ),
}  # fmt: skip


def development(case: Row) -> Row:
    """Return what a row says of its data: whether anything was chosen on them."""
    return {"development": case["task"] in DEVELOPMENT}


def prepare(name: str, data: Path) -> tuple[Data, ch.Schema, Any]:
    """Return the cells of a task with genes chosen on the reference alone, their schema, and the task."""
    task = TASKS[name]
    cells = task.read(data)
    if isinstance(cells, mudata.MuData):
        return cells, task.schema, task
    batch = cells.obs[task.schema.batch.removeprefix("obs/")].astype(str)
    query = batch.isin(task.held_out).to_numpy()
    label = cells.obs[task.schema.label.removeprefix("obs/")].astype(str)
    kept = query | ~label.isin(task.unseen).to_numpy()
    cells, query = cells[kept].copy(), query[kept]
    if cells.n_vars > GENES:
        where = ch.Schema(counts="X", batch=task.schema.batch)
        genes = ch.pp.select_genes(cells, where, GENES, rows=np.flatnonzero(~query))
        cells = cells[:, cells.var_names.isin(genes)].copy()
    return cells, task.schema, task
