"""What drives cells along lineages, and where they would go without it: simulated genes, known truth."""

import numpy as np

import chreode as ch

network = ch.simulate.GeneNetwork.random(20, seed=0)
how = ch.simulate.Sampling(n_trajectories=15, n_times=30, noise=0.1)
cells = network.simulate(how, seed=0)
schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")

# Few edges: each gene's network has gates on its inputs; refits tell which edges to believe.
fitted = ch.PathReg(n_refits=5, match_steps=150, piece_steps=60, path_steps=20).fit(
    cells, schema, seed=0
)
edges = fitted.rank()
true = {(e.source, e.target): e.sign for e in network.edges.itertuples()}
edges["right"] = [
    np.sign(w) == true.get((s, t), 0)
    for s, t, w in zip(edges["source"], edges["target"], edges["weight"], strict=True)
]
print(edges.head(8).to_string(index=False, float_format="{:.2f}".format))
sure = edges["confidence"] >= 0.8
print(f"right among the surest: {edges.loc[sure, 'right'].mean():.0%} of {sure.sum()}")
print(f"right among the others: {edges.loc[~sure, 'right'].mean():.0%} of {(~sure).sum()}")
print(f"pairs with an edge: {len(edges)} of {20 * 19}, true: {len(true)}")

# A knock-out: the same start without the gene that drives most.
gene = network.edges["source"].value_counts().index[0]
start = cells[(cells.obs["time"] == 0) & (cells.obs["trajectory"] == "path_3")].copy()
with_it, without = (fitted.predict(start, to=to).X[0] for to in ({}, {"knockout": gene}))
truth = network.simulate(how, knockout=[gene], seed=0)
truth = truth[truth.obs["trajectory"] == "path_3"].layers["true_state"][-1]
print(f"end of path_3 without {gene}: error {np.mean((without - truth) ** 2):.3f}, ", end="")
print(f"{np.mean((with_it - truth) ** 2):.3f} if nothing changed")
