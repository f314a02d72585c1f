"""Every registered model with its defaults on real cells, three seeds, beside PCA, Harmony and a ceiling.

Writes the bench beside this file and its table into README.md. Needs the package index once (0.5 MB).
"""

from __future__ import annotations

from pathlib import Path

import torch

import chreode as ch

HERE = Path(__file__).parent
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def section(bench: ch.bench.Bench) -> str:
    """Return the table in Markdown: metrics down, methods across, as raw means over seeds."""
    table, intervals = bench.table(), bench.intervals()
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
        "defaults and was fitted on all cells, as integration is used.\n\n"
        + "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    )


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
    page = (HERE / "README.md").read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    (HERE / "README.md").write_text(f"{before}{BEGIN}\n{section(bench)}\n{END}{after}")
