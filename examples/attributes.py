"""Generate cells under several attributes at once, each with a weight of its own."""

import numpy as np

import chreode as ch

cells = ch.simulate.simulate_cells(
    1200, 150, n_types=3, depth=600, attributes={"condition": ["ctrl", "stim"]}, seed=0
)
schema = ch.Schema(counts="layers/counts", label="obs/cell_type", perturbation="obs/condition")
model = ch.CFGen(
    n_latent=10, hidden=(64, 32), flow_width=64, batch_size=64, max_epochs=60, flow_epochs=100
)
fitted = model.fit(cells, schema, seed=0)


def profile(counts):
    """Return the mean log-expression of every gene."""
    dense = counts.toarray()
    return np.log1p(1e4 * dense / dense.sum(1, keepdims=True)).mean(0)


def distance(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


groups = cells.obs.groupby(["cell_type", "condition"], observed=True).indices
real = {pair: profile(cells.layers["counts"][rows]) for pair, rows in groups.items()}

# Both attributes, in any order: which real cells are the new ones nearest to?
for t, c in real:
    made = fitted.generate(300, given={"perturbation": c, "label": t}, seed=0)
    nearest = min(real, key=lambda pair: distance(profile(made.X), real[pair]))
    print(f"asked for {t} {c}: nearest to {' '.join(nearest)}")

# One value per cell, and what is left open is drawn as it occurs.
some = fitted.generate(4, given={"label": ["type_1", "type_2", "type_1", "type_2"]}, seed=0)
print(some.obs.to_string())

# A weight of 0 forgets an attribute; above 1 cells are more typical of it, and less varied.
whole = profile(cells.layers["counts"])
for weight in (0, 1, 2):
    made = fitted.generate(200, given={"label": "type_1"}, guidance={"label": weight}, seed=0)
    print(f"guidance {weight}: {distance(profile(made.X), whole):.3f} from the mean cell")
