"""Tell the types of cells of a new batch, without a decoder, and say which are of a new type."""

import chreode as ch

# Cells whose truth is known; with your own: cells = anndata.read_h5ad("pbmc.h5ad")
cells = ch.simulate.simulate_cells(900, 300, n_types=5, n_batches=3, batch_strength=0.3, seed=0)
schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
new = (cells.obs["batch"] == "batch_2").to_numpy()
rare = (cells.obs["cell_type"] == "type_4").to_numpy()
reference, query = cells[~new & ~rare].copy(), cells[new].copy()

# The loss sees no labels: they are kept beside the embedding, for later cells to be compared with.
fitted = ch.SimCLR(max_epochs=60).fit(reference, schema, seed=0)
print(fitted)
for note in fitted.provenance["notes"]:
    print("Note:", note)

said = fitted.classify(query)  # writes obs["simclr_label"] and obs["simclr_confidence"]
truth = query.obs["cell_type"].astype(str).to_numpy()
known = truth != "type_4"
right = (said["label"].astype(str).to_numpy() == truth)[known].mean()
print(f"known types of the new batch: {right:.0%} are told right")
print(f"novelty, median: {said['novelty'][known].median():.2f} of known types, "
      f"{said['novelty'][~known].median():.2f} of the type that the reference lacks")  # fmt: skip

# The same task with baselines in the table: models learn from the other batches alone.
bench = ch.bench.probe(
    cells, schema, [ch.SimCLR(max_epochs=30)], held_out=["batch_2"], tasks=["typing"],
    depths=[1, 0.1], seeds=[0],
)  # fmt: skip
columns = ["role", "knn_shared_f1", "linear_shared_f1", "knn_f1_at_0.1"]
print(bench.table()[columns].to_string(float_format="%.3f"))
