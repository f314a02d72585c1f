"""Map cells of a new batch onto a finished model, without moving what it knows."""

import numpy as np

import chreode as ch

cells = ch.simulate.simulate_cells(600, 200, n_types=3, n_batches=3, batch_strength=0.8, seed=0)
new = (cells.obs["batch"] == "batch_2").to_numpy()
reference, query = cells[~new].copy(), cells[new].copy()
schema = ch.Schema(counts="layers/counts", batch="obs/batch")

model = ch.SCVI(max_epochs=40, lr=5e-3)
fitted = model.fit(reference, schema, seed=0)

# The encoder takes no batch, so it embeds the new cells at once; the decoder must know the batch.
fitted.embed(query)
try:
    fitted.score(query)
except ch.DataError as error:
    print("Without mapping:", error)

# Only the parameters of the new category are learned.
mapped = model.fit(query, schema, from_=fitted, seed=0)
print("batches known now:", ", ".join(mapped.spec.categories["batch"]))
same = np.array_equal(mapped.embed(reference), fitted.embed(reference))
print("reference embedding unchanged, bit for bit:", same)

disguised = query.copy()
disguised.obs["batch"] = "batch_0"
before, after = fitted.score(disguised).mean(), mapped.score(query).mean()
print(f"evidence bound of the new cells: {before:.1f} nats taken for batch_0, {after:.1f} mapped")
