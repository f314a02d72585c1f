"""Every registered model with its defaults on real cells, three seeds, beside PCA, Harmony and a ceiling.

Writes the bench beside this file and its table into README.md. Needs the package index once (0.5 MB).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import chreode as ch
from benchmarks.common import write_section

HERE = Path(__file__).parent


def section(bench: ch.bench.Bench) -> str:
    """Return the totals of each method and, folded, all scores: raw means over seeds."""
    table, intervals = bench.table(), bench.intervals()
    short = [
        ["method", "bio", "batch", "total", "total, 95 %", "note"],
        ["---", "---:", "---:", "---:", "---:", "---"],
    ]
    for name, row in table.iterrows():
        told = name if row["role"] == "method" else f"{name} ({row['role']})"
        scores = [f"{float(row[key]):.3f}" for key in ("bio", "batch", "total")]
        short.append([told, *scores, intervals["total"][name], row["note"]])
    rows = [
        ["", *table.index],
        ["---", *("---:" for _ in table.index)],
        ["role", *table["role"]],
        ["seeds", *map(str, table["seeds"])],
        *([key, *(f"{v:.3f}" for v in table[key].astype(float))] for key in bench.metrics.index),
        ["total, 95 %", *intervals["total"]],
        ["note", *table["note"]],
    ]
    about = bench.about
    return (
        f"{about['cells']:,} cells, {about['labels']} published types, {about['batches']} donors, 500 genes; "
        f"data `{about['data']}`, chreode {about['chreode']}, {about['threads']} thread. Every model has its "
        "default options and was fitted on all cells, because integration is used this way.\n\n"
        f"{_table(short)}\n\n<details><summary>All scores</summary>\n\n{_table(rows)}\n\n</details>"
    )


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cells = ch.datasets.pbmc_mosaic()["rna"]
    schema = ch.Schema(counts="X", batch="obs/batch", label="obs/celltype")
    models = [
        ch.PPCA(),
        ch.FactorAnalysis(),
        ch.NMF(),
        ch.VAE(),
        ch.SCVI(),
        ch.SCVI(linear_decoder=True),
    ]
    bench = ch.bench.integration(cells, schema, models, progress=True)
    bench.save(HERE / "models.json")
    write_section(HERE / "README.md", "models", section(bench))
