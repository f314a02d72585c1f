"""Linear models of all genes: seconds and memory from counts to coordinates, beside scanpy's PCA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..common import Row
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, ratio, spread

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
            {"cells": cells, "genes": genes, "density": 0.08, "seed": 0}, repeats * cost, repeats,
        )
        for (cells, genes), cost in sizes.items()
    ]  # fmt: skip


def prepare(settings: Row, folders: Folders) -> Prepared:
    from .data import simulated

    return simulated(folders.scratch, **settings)


# the sides: laps are "load", imports included, and "fit", from counts in memory to coordinates


def chreode(given: Prepared, lap: Callable[..., None]) -> None:
    import anndata
    import torch

    import chreode as ch

    torch.set_num_threads(given["threads"])
    kind, schema = getattr(ch, given["model"]), ch.Schema(counts="X")
    width = "n_factors" if kind is ch.FactorAnalysis else "n_latent"
    cells = anndata.read_h5ad(given["file"])
    lap("load")
    fitted = kind(**{width: COMPONENTS}).fit(cells, schema, seed=given["seed"], progress=False)
    found = fitted.embed(cells, progress=False)
    lap("fit", steps=len(fitted.history), coordinates=list(np.shape(found)))


def scanpy(given: Prepared, lap: Callable[..., None]) -> None:
    import scanpy as sc

    cells = sc.read_h5ad(given["file"])
    lap("load")
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=COMPONENTS, random_state=given["seed"])
    lap("fit", steps=0, coordinates=list(cells.obsm["X_pca"].shape))


# the table


def render(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        theirs = laps(row, THEIRS.label, "fit")
        for label in row["runs"]:
            ours = laps(row, label, "fit")
            above = laps(row, label, "fit", "peak_mib") - laps(row, label, "load", "resident_mib")
            against = "1" if label == THEIRS.label else str(ratio(theirs, ours))
            told = spread(ours), spread(laps(row, label, "fit", "cpu_seconds")), spread(above)
            lines.append((row["case"] + mark(row, "fit"), label, *told, against))
    header = ("cells x genes", "", "s", "processor, s", "above the data, MiB", "times faster")
    return markdown(header, lines)
