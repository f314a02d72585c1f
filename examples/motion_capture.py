"""Forecast motion from its start: a walker's clips if their file is named, simulated swings otherwise.

python examples/motion_capture.py mocap35.npz
"""

import sys

import anndata
import numpy as np
import pandas as pd

import chreode as ch

if len(sys.argv) > 1 and sys.argv[1].endswith(".npz"):  # sets of clips, clips x times x channels
    clips = np.load(sys.argv[1])
    learned, unseen = clips["train"], clips["test"]
else:
    swings = ch.simulate.Sampling(n_trajectories=24, n_times=60, noise=0.05)
    seen = ch.simulate.simulate_system("damped", swings, seed=0)
    learned, unseen = np.split(seen.X.reshape(24, 60, -1), [20])

moving = learned.std((0, 1)) > 1e-6
centre, spread = learned.mean((0, 1))[moving], learned.std((0, 1))[moving]


def cells(clips, name):
    """Return times of clips as cells, in standard deviations of each channel."""
    n, times, _ = clips.shape
    x = ((clips[..., moving] - centre) / spread).reshape(n * times, -1)
    clip = np.repeat([f"{name} {i}" for i in range(n)], times)
    obs = pd.DataFrame({"time": np.tile(np.arange(times) / times, n), "clip": clip})
    obs.index = [f"{name}_{i}" for i in range(len(obs))]
    return anndata.AnnData(x.astype(np.float32), obs=obs)


data = anndata.concat([cells(learned, "learned"), cells(unseen, "new")])
schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/clip")
new = data.obs["clip"].str.startswith("new").to_numpy()

# Clips of which only the start is told; a second-order model has velocities of its own.
models = [ch.NeuralODE(), ch.SecondOrderNODE()]
bench = ch.bench.dynamics(data, schema, models, tests={"new clip": new}, seeds=[0])
table = bench.table()
for name, row in table.sort_values("mse, new clip").iterrows():
    print(f"{name:20s} {row['role']:9s} error {row['mse, new clip']:.3f}")
