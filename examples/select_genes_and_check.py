"""Look at the data before any compute: are these counts, and which genes carry the differences?"""

import numpy as np

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.check import findings

cells = ch.simulate.simulate_cells(600, 1_000, n_types=4, n_batches=2, seed=0)
cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
cells.obs.iloc[:7, cells.obs.columns.get_loc("cell_type")] = "unknown"
schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")

# What `chreode check FILE` says: errors stop a fit; warnings and notes do not.
for finding in findings(Cells(cells, schema)):
    print(f"{finding.level}: {finding.text}")
schema = schema.with_(missing=("unknown",))

# Normalised values are refused as counts, with the evidence.
normalised = cells.copy()
normalised.layers["counts"] = normalised.layers["counts"] * np.float32(0.37)
try:
    ch.PCA().fit(normalised, schema)
except ch.DataError as error:
    print("refused:", error)

# Genes whose counts vary more than a gene without biology would, within batches.
train = np.arange(cells.n_obs) % 5 != 0  # choose genes on training cells alone
genes = ch.pp.select_genes(cells, schema, 200, rows=train)
cells = cells[:, genes].copy()
print(f"kept {cells.n_vars} of 1000 genes, such as {', '.join(genes[:3])}")

fitted = ch.PCA(n_latent=10).fit(cells, schema, rows=train)
print(fitted)
