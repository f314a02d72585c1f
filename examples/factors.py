"""Find gene programmes: which genes move together, and how active each programme is per cell."""

import numpy as np

import chreode as ch

cells = ch.simulate.simulate_cells(600, 200, n_types=4, depth=400, seed=0)
schema = ch.Schema(counts="layers/counts")

# Non-negative factors of log-expression: a cell is a sum of programmes.
nmf = ch.NMF(n_factors=4).fit(cells, schema, seed=0)
activity = nmf.embed(cells)
loadings = nmf.loadings(cells)  # a table; also cells.varm["nmf_loadings"]
for name in loadings:
    top = loadings[name].nlargest(5).index
    share = activity[:, loadings.columns.get_loc(name)].mean()
    print(f"{name}: mean activity {share:.2f}, led by {', '.join(top)}")

# Factor analysis has a likelihood, so the number of factors can be judged on held-out cells.
train = np.arange(cells.n_obs) % 5 != 0
held_out = cells[~train].copy()
for n_factors in (1, 3, 10):
    fitted = ch.FactorAnalysis(n_factors=n_factors).fit(cells, schema, rows=train)
    print(f"{n_factors:>2} factors: {fitted.score(held_out).mean():.1f} nats per held-out cell")

# Entries that were not measured (NaN) are integrated out, not filled in.
holed = ch.simulate.simulate_linear_gaussian(500, d=20, k=3, missing=0.3, seed=0)
fitted = ch.PPCA(n_latent=3).fit(holed, ch.Schema(expression="X"))
filled = fitted.reconstruct(holed).X
truth = holed.obsm["true_latent"] @ holed.varm["true_loadings"].T + holed.var["true_mean"].values
lacking = np.isnan(holed.X)
error = np.sqrt(np.mean((filled - truth)[lacking] ** 2))
spread = np.sqrt(np.mean((truth - truth.mean(0))[lacking] ** 2))
print(f"missing entries: error {error:.2f} with pPCA, {spread:.2f} with each feature's mean")
