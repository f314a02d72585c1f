"""What each process of a distributed fit does; run by torchrun, and alone for the joint minibatch.

Noise is taken away, so that one process and several must agree: each process draws its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import anndata
import mudata
import numpy as np
import torch
import torch.distributed as dist

import chreode as ch
from chreode import models as registry
from chreode.compute.processes import Group
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells
from chreode.errors import FitError
from chreode.learn import Rng
from chreode.models import scvi, vae
from chreode.module import Step
from chreode.nn.blocks import share_statistics

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch")
CELLS = simulate_cells(200, 40, n_types=3, n_batches=2, seed=0)
ROWS = np.arange(0, 200, 3)  # 67 cells: the shares are unequal

for models in (scvi, vae):
    models.reparametrise = lambda mean, variance: mean + 0 * variance


def gradient(group: Group) -> dict[str, list[float]]:
    """Return the gradient of SCVI's objective on the minibatch `ROWS`, shared out."""
    torch.set_default_dtype(torch.float64)
    spec = learn_spec(Cells(CELLS, SCHEMA), ["counts", "batch"], np.arange(200))
    source = open_source(Cells(CELLS, SCHEMA), spec, ["counts", "batch"], {})
    with Rng(0).scope("init"):
        module = ch.SCVI(dropout=0.0, n_hidden=16).build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    mine = group.share(ROWS)
    batch = source.batch(mine)
    batch.views["counts"].__dict__["values"] = batch.views["counts"].values.double()
    loss = module(batch, Step(Rng(0), 0, 1.0)).objectives["model"] * (len(mine) / len(ROWS))
    gradients = list(torch.autograd.grad(loss, list(module.parameters())))
    group.add(gradients)
    torch.set_default_dtype(torch.float32)
    names = [name for name, _ in module.named_parameters()]
    return {n: g.flatten().tolist() for n, g in zip(names, gradients, strict=True)}


def fits(distributed: bool) -> dict[str, object]:
    """Return history and weights of whole fits: minibatches with early stopping, and EM."""
    models = {
        "scvi": ch.SCVI(
            dropout=0.0, max_epochs=12, batch_size=40, patience=2, kl_warmup=0.1, lr=0.02
        ),
        "factoranalysis": ch.FactorAnalysis(n_factors=3, max_epochs=5),
    }
    found: dict[str, object] = {}
    for name, model in models.items():
        fitted = model.fit(CELLS, SCHEMA, validation=0.2, distributed=distributed)
        found[name] = {
            "history": fitted.history.drop(columns=["seconds", "phase"]).to_dict("list"),
            "weights": {k: v.flatten().tolist() for k, v in fitted.module.state_dict().items()},
        }
    return found


def every_model() -> dict[str, object]:
    """Return what a shared fit of every model ends with, in a few steps."""
    few = {
        "max_epochs": 2, "flow_epochs": 2, "n_latent": 3, "n_factors": 3, "n_hidden": 8, "hidden": (8, 4),
        "flow_width": 8, "batch_size": 50, "match_steps": 2, "piece_steps": 2, "path_steps": 2,
        "population_steps": 2, "strengths": (0.1, 0.2), "n_refits": 2,
    }  # fmt: skip
    cells, found = CELLS.copy(), {}
    cells.obs["day"] = [float(i % 20) for i in range(200)]
    cells.obs["donor"] = [f"donor{i // 20}" for i in range(200)]
    cells.obsm["protein"] = np.random.default_rng(2).poisson(3.0, (200, 6)).astype(np.float32)
    for key in registry.keys():  # noqa: SIM118 (a function)
        cls = registry.find(key)
        over_time = {"time": "obs/day", "trajectory": "obs/donor"} if "time" in cls.needs else {}
        two = any("protein" in need for need in cls.needs)
        further = over_time | ({"protein": "obsm/protein"} if two else {})
        names = {field.name for field in dataclasses.fields(cls)}
        model = cls(**{k: v for k, v in few.items() if k in names})
        fitted = model.fit(cells, SCHEMA.with_(**further), distributed=True)
        found[key] = ended(fitted)
    return found


def mosaic(distributed: bool) -> dict[str, object]:
    """Return what fits of cells end with of which few, half or most lack a modality; without noise."""
    found = {}
    for n, lacking in {"few": 4, "half": 100, "most": 190}.items():
        kept = np.sort(np.random.default_rng(0).permutation(200)[lacking:])
        other = anndata.AnnData(
            np.random.default_rng(1).poisson(3.0, (len(kept), 10)).astype(np.float32),
            obs=CELLS.obs.iloc[kept][[]],
        )
        with mudata.set_options(pull_on_update=False):
            data = mudata.MuData({"rna": CELLS, "atac": other})
        schema = ch.Schema(counts="rna:layers/counts", accessibility="atac:X")
        model = ch.CFGen(
            kl=0.0, hidden=(8, 4), n_latent=3, max_epochs=3, flow_epochs=1, batch_size=40, patience=None,
        )  # fmt: skip
        found[n] = ended(model.fit(data, schema, validation=0.2, distributed=distributed))
    return found


def ended(fitted: ch.Fitted) -> dict[str, object]:
    """Return weights, and the history of the first phase but for seconds."""
    first = fitted.history["phase"] == fitted.history["phase"].iloc[0]
    history = fitted.history[first].drop(columns=["seconds", "phase"]).dropna(axis=1, how="all")
    return {
        "history": history.to_dict("list"),
        "weights": {k: v.flatten().tolist() for k, v in fitted.module.state_dict().items()},
    }


def broken(group: Group) -> str:
    """Return what is said when the loss of one process alone is not finite."""
    whole = scvi.SCVIModule.loss

    def loss(self, batch, step):
        found = whole(self, batch, step)
        if group.rank == group.size - 1:
            found.objectives["model"] = found.objectives["model"] * torch.nan
        return found

    scvi.SCVIModule.loss = loss
    try:
        ch.SCVI(max_epochs=2).fit(CELLS, SCHEMA, distributed=not group.alone)
    except FitError as error:
        return str(error)
    finally:
        scvi.SCVIModule.loss = whole
    return "nothing"


def main() -> None:
    """Write what this process found to FOLDER/RANK.json."""
    torch.set_num_threads(1)
    distributed = sys.argv[2] == "distributed"
    group = Group.join() if distributed else Group()
    found = {"gradient": gradient(group), "fits": fits(distributed), "broken": broken(group)}
    found["mosaic"] = mosaic(distributed)
    if distributed:
        found["every"] = every_model()
    Path(sys.argv[1], f"{group.rank}.json").write_text(json.dumps(found))
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
