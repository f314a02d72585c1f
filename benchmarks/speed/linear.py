"""Linear models of all genes: seconds and memory from counts to coordinates, beside scanpy's PCA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, median, ratio, spread

THEIRS = Side("scanpy, PCA", "scanpy", rival=True)
SIDES = (
    THEIRS,
    *(
        Side(f"chreode, {name}", "chreode", options={"model": name})
        for name in ("PCA", "PPCA", "FactorAnalysis")
    ),
)
COMPONENTS = 50


def cases(quick: bool) -> list[Case]:
    sizes = {(500, 2_000): 30} if quick else {(1_000, 20_000): 120, (10_000, 20_000): 500}
    repeats = 1 if quick else 3
    return [
        Case(
            "linear", f"{cells:,} x {genes:,}", SIDES,
            {"cells": cells, "genes": genes, "density": 0.08, "components": COMPONENTS, "seed": 0},
            repeats * cost, repeats,
        )
        for (cells, genes), cost in sizes.items()
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    cells = {k: settings[k] for k in ("cells", "genes", "density", "seed")}
    few = simulated(folders.scratch, **{**cells, "cells": 200, "genes": 500})
    return {**simulated(folders.scratch, **cells), "few": few["file"]}


# the sides: laps are "ready", when a few cells have gone the same way, so that all is loaded and compiled;
# "load"; and "fit", from counts in memory to coordinates


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import torch

    import chreode as ch

    torch.set_num_threads(given["threads"])
    kind, schema = getattr(ch, given["model"]), ch.Schema(counts="X")
    width = "n_factors" if kind is ch.FactorAnalysis else "n_latent"
    model = kind(**{width: given["components"]})

    def coordinates(cells: anndata.AnnData) -> tuple[np.ndarray, int]:
        fitted = model.fit(cells, schema, seed=given["seed"], progress=False)
        return fitted.embed(cells, progress=False), len(fitted.history)

    coordinates(anndata.read_h5ad(given["few"]))
    lap("ready")
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    found, steps = coordinates(cells)
    lap("fit", steps=steps, coordinates=list(np.shape(found)))


def scanpy(given: Prepared, lap: Callable[..., None]) -> None:
    import scanpy as sc

    def coordinates(cells: sc.AnnData) -> np.ndarray:
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.pp.pca(cells, n_comps=given["components"], random_state=given["seed"])
        return cells.obsm["X_pca"]

    coordinates(sc.read_h5ad(given["few"]))
    lap("ready")
    cells = sc.read_h5ad(given["file"])
    lap("load")
    found = coordinates(cells)
    lap("fit", steps=0, coordinates=list(found.shape))


# the table


def render(rows: list[Row]) -> list[str]:
    short, full = [], []
    for row in rows:
        theirs = laps(row, THEIRS.label, "fit")
        for label in row["runs"]:
            ours = laps(row, label, "fit")
            above = laps(row, label, "fit", "peak_mib") - laps(row, label, "load", "resident_mib")
            found = None if label == THEIRS.label else ratio(theirs, ours)
            who = row["case"] + mark(row, "fit"), label
            short.append((*who, median(ours), median(above), found.plain() if found else "1"))
            told = spread(ours), spread(laps(row, label, "fit", "cpu_seconds")), spread(above)
            full.append((*who, *told, str(found) if found else "1"))
    header = ("cells x genes", "", "s", "processor, s", "above the data, MiB", "times as fast")
    return [
        *markdown((*header[:3], *header[4:]), short),
        "",
        *folded("With ranges and 95 % intervals", markdown(header, full)),
    ]
