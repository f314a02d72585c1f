"""Forecasts of three lineages of blood for donors never seen."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import chreode as ch

from ..common import Row
from .fits import METHODS, judge
from .report import across, at_rest, beside, ratios

LINEAGES, LEARNED, DONORS = ("B", "eryth", "mono"), "12", ("11", "21", "36")
SEEDS = (0, 1, 2)
#: A fit of blood takes up to ten minutes: who forecasts for its own sake is refitted, the others show a kind.
REFITTED = ("NODE", "lineage NODE")


def cases() -> list[Row]:
    fits = [
        {"seed": seed, "method": name}
        for name in METHODS
        for seed in (SEEDS if name in REFITTED else SEEDS[:1])
    ]
    return [{"seed": SEEDS[0], "method": "baselines"}, *fits]


def cells_of(data: Path) -> anndata.AnnData:
    """Return the cells of all lineages and donors in the order of pseudotime, without the ends of each."""
    values, tables = [], []
    for donor in (LEARNED, *DONORS):
        for lineage in LINEAGES:
            place = data / "haematopoiesis_trajectories" / f"{lineage}_{donor}_norm.csv.gz"
            table = pd.read_csv(place, sep="\t", index_col=0).sort_index(kind="stable")
            table = table.iloc[10:-20]  # as published; so are scales of each file's own
            reach = table.max() - table.min()
            time = table.index.to_numpy(float)
            values.append((table - table.min()) / reach.where(reach > 0, 1.0))
            tables.append(pd.DataFrame({
                "time": (time - time.min()) / np.ptp(time), "donor": donor, "path": f"{lineage} {donor}",
            }))  # fmt: skip
    obs = pd.concat(tables, ignore_index=True)
    obs.index = obs.index.astype(str)
    x = pd.concat(values)
    return anndata.AnnData(
        x.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(x.columns.astype(str)))
    )


def reference(data: Path, genes: pd.Index) -> Row:
    """Return the reference network within these genes: edges, of unknown sign, and pairs that could be."""
    place = data / "haematopoiesis_trajectories" / "tf_targets_baseGRN_human_matrix.csv.gz"
    table = pd.read_csv(place, index_col=0)
    table = table.loc[table.index.intersection(genes), table.columns.intersection(genes)]
    source, target = np.nonzero(table.to_numpy())
    edges = {"source": table.index[source], "target": table.columns[target], "sign": 1.0}
    return {
        "edges": pd.DataFrame(edges), "regulators": list(table.index), "targets": list(table.columns),
    }  # fmt: skip


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells = cells_of(data)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/path")
    donor = cells.obs["donor"]
    return judge(
        case["method"], cells, schema, kept / "haematopoiesis", seed=case["seed"],
        held_out=donor.ne(LEARNED), **reference(data, cells.var_names),
        tests={f"donor {d}": donor.eq(d).to_numpy() for d in DONORS},
    )  # fmt: skip


SHOWN = {
    **{f"mse, donor {d}": f"cells, {d}" for d in DONORS},
    **{f"denoised, donor {d}": f"paths, {d}" for d in DONORS},
    **{f"scaling, donor {d}": f"of it scaling, {d}" for d in DONORS},
    "lift": "lift", "edges_zero": "edges 0", "spurious_zero": "spurious 0", "weights_zero": "weights 0",
}  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    # there is no chance in baselines: measured once, they stand beside every seed
    rows = [
        {**row, "case": {**row["case"], "seed": seed}}
        for row in rows
        for seed in (SEEDS if row["case"]["method"] == "baselines" else [row["case"]["seed"]])
    ]
    lines = across(rows, SHOWN)
    rows, _ = at_rest(rows)
    for row in rows:
        for told in row["methods"].values():
            for d in DONORS:
                path, scaling = (told["scores"][f"{k}, donor {d}"] for k in ("denoised", "scaling"))
                told["scores"][f"rest, donor {d}"] = path - scaling
    for key, name in (("denoised", "Smoothed paths"), ("rest", "What scaling would not mend")):
        told = {d: ratios(rows, "training mean", f"{key}, donor {d}", invert=True) for d in DONORS}
        lines += ["", f"{name}, ratios to the training mean:", ""]
        lines += beside([*told[DONORS[0]]], {f"donor {d}": found for d, found in told.items()})
    return lines
