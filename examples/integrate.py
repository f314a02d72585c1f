"""Take batch effects out of an embedding, and see whether that beat PCA."""

import chreode as ch

# Cells whose truth is known; with your own: cells = anndata.read_h5ad("pbmc.h5ad")
cells = ch.simulate.simulate_cells(
    400, 200, n_types=4, n_batches=3, batch_strength=0.6, depth=400, seed=0
)
schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")

fitted = ch.SCVI(max_epochs=50, lr=5e-3).fit(cells, schema, seed=0)
fitted.embed(cells)  # writes cells.obsm["X_scvi"]
print(fitted)

# PCA, Harmony and a label oracle are in every table; raw scores, 1 is best.
bench = ch.bench.integration(cells, schema, [fitted])
table = bench.table()
print(table[["role", "bio", "batch", "total", "note"]].to_string(float_format="%.3f"))

gain = table.loc["SCVI", "total"] - table.loc["PCA", "total"]
print(f"SCVI against PCA: {gain:+.3f} in total")
print("95 % intervals of the total over cells:")
print(bench.intervals()["total"].to_string())
