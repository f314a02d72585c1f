"""Draw new cells from a fitted model, and move measured ones to another batch."""

import numpy as np

import chreode as ch

cells = ch.simulate.simulate_cells(400, 200, n_types=3, n_batches=3, seed=0)
schema = ch.Schema(counts="layers/counts", batch="obs/batch")
fitted = ch.SCVI(max_epochs=50, lr=5e-3).fit(cells, schema, seed=0)


def described(counts):
    """Say what counts look like: depth, zeros, and how they vary."""
    dense = counts.toarray()
    return f"{dense.sum(1).mean():6.1f} counts per cell, {np.mean(dense == 0):.1%} zeros"


# New cells: states from the prior; batch and depth as they occur together in training cells.
new = fitted.generate(1_000, seed=0)
print("real cells:     ", described(cells.layers["counts"]))
print("generated cells:", described(new.X))
by_gene = [np.log1p(np.asarray(x.mean(0)).ravel()) for x in (cells.layers["counts"], new.X)]
print(f"correlation of the genes' log means: {np.corrcoef(*by_gene)[0, 1]:.3f}")

# Under a condition: all of one batch.
one = fitted.generate(100, given={"batch": "batch_1"}, seed=0)
print("asked for batch_1, got", one.obs["batch"].unique().tolist())

# The same cells as another batch would have measured them: counts, or expected values.
moved = fitted.predict(cells, to={"batch": "batch_0"}, seed=0)
print("moved to batch_0:", described(moved.X))
expected = fitted.reconstruct(cells, to={"batch": "batch_0"}, library=10_000)
print(f"expected values add up to {expected.X.sum(1).mean():,.0f} per cell")
