"""Generate RNA and chromatin accessibility of the same new cells, and fill up a rare type."""

import numpy as np

import chreode as ch

cells = ch.simulate.simulate_multiome(800, 150, 300, n_types=3, seed=0)
schema = ch.Schema(counts="rna:X", accessibility="atac:X", label="obs/cell_type")

# One latent state per cell: genes and peaks are drawn from it together, each with its own depth.
model = ch.CFGen(n_latent=10, hidden=(64, 32), flow_width=64, max_epochs=60, flow_epochs=150)
fitted = model.fit(cells, schema, seed=0)
new = fitted.generate(500, seed=0)
print(new)


def openness(data):
    """Return the mean openness of every peak by type."""
    x = (data["atac"].X > 0).astype(float)
    types = data.obs["cell_type"].astype(str).to_numpy()
    return np.stack([np.asarray(x[types == t].mean(0)).ravel() for t in np.unique(types)])


real, fake = openness(cells), openness(new)
print(
    f"correlation of the peaks' openness by type: {np.corrcoef(real.ravel(), fake.ravel())[0, 1]:.3f}"
)

# A cell whose peaks were not measured is completed from its RNA.
rna_only = ch.simulate.simulate_multiome(
    800, 150, 300, n_types=3, n_batches=2, absent={"atac": ["batch_1"]}, seed=1
)
mosaic = model.fit(rna_only, schema, seed=0)
completed = mosaic.reconstruct(rna_only, to={}, role="accessibility")
print(f"peaks of {completed.n_obs} cells from {rna_only['atac'].n_obs} that were measured")

# A rare type, filled up to 300 cells; the generated ones are marked.
more = ch.augment(rna_only, mosaic, by="label", floor=300, seed=0)
print(more.obs.groupby("cell_type", observed=True)["generated"].agg(["size", "sum"]).to_string())
