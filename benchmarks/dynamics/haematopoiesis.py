"""Forecasts of three lineages of blood for donors never seen."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import chreode as ch

from ..common import Row, folded
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
    **{f"scaling, donor {d}": f"scaling, {d}" for d in DONORS},
    "lift": "lift", "edges_zero": "pairs without effect",
    "spurious_zero": "the same, of genes that drive none", "weights_zero": "weights at 0",
}  # fmt: skip
#: Error of smoothed paths, and the part of it that no line per gene would remove.
RATIOS = {
    "denoised": "With 95 % intervals over seeds",
    "rest": "Without the part of the error that scaling would remove",
}


def render(rows: list[Row]) -> list[str]:
    # there is no chance in baselines: measured once, they stand beside every seed
    rows = [
        {**row, "case": {**row["case"], "seed": seed}}
        for row in rows
        for seed in (SEEDS if row["case"]["method"] == "baselines" else [row["case"]["seed"]])
    ]
    whole = folded("All scores", across(rows, SHOWN))
    rows, _ = at_rest(rows)
    for row in rows:
        for told in row["methods"].values():
            for d in DONORS:
                path, scaling = (told["scores"][f"{k}, donor {d}"] for k in ("denoised", "scaling"))
                told["scores"][f"rest, donor {d}"] = path - scaling
    lines: list[str] = []
    for key, title in RATIOS.items():
        told = {
            f"donor {d}": ratios(rows, "training mean", f"{key}, donor {d}", invert=True)
            for d in DONORS
        }
        names = [*next(iter(told.values()))]
        if not lines:  # the first table is without intervals
            plain = {d: {n: r.partition(" (")[0] for n, r in of.items()} for d, of in told.items()}
            lines += beside(names, plain)
        lines += ["", *folded(title, beside(names, told))]
    return [*lines, "", *whole]
