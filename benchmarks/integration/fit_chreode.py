"""Fit chreode's SCVI to a task; write what the evaluator needs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from exchange import (
    TEST,
    VALIDATION,
    Settings,
    Stopwatch,
    Task,
    fit_arguments,
    save_arrays,
    shared_noise,
)

import chreode as ch
from chreode.data.batch import CellBatch
from chreode.fitted import Fitted


def fit(task: Task, settings: Settings, seed: int) -> tuple[Fitted, Stopwatch]:
    model = ch.SCVI(
        n_latent=settings.n_latent, n_hidden=settings.n_hidden, n_layers=settings.n_layers,
        dropout=settings.dropout, likelihood="zinb", dispersion="gene",
        kl_warmup=settings.warmup, batch_size=settings.batch_size, max_epochs=settings.epochs,
        lr=settings.lr, weight_decay=settings.weight_decay,
    )  # fmt: skip
    eps = model.phases()[0].learner.eps
    if not math.isclose(eps, settings.eps):
        raise ValueError(f"SCVI's Adam has eps={eps}; the benchmark is for {settings.eps}")
    with Stopwatch() as watch:
        fitted = model.fit(
            as_anndata(task),
            ch.Schema(counts="X", batch="obs/batch"),
            seed=seed,
            rows=np.flatnonzero(task.part != TEST),
            validation=task.rows(VALIDATION),
            device="cpu",
            progress=False,
        )
    return fitted, watch


def as_anndata(task: Task) -> AnnData:
    names = pd.Index([str(i) for i in range(task.counts.shape[0])])
    obs = pd.DataFrame({"batch": pd.Categorical(task.batch)}, index=names)
    return AnnData(task.counts, obs=obs, var=pd.DataFrame(index=task.genes))


@torch.inference_mode()
def explain(fitted: Fitted, task: Task, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Return q(z|x) of the test cells, and p(x|z) for the z of each draw of `noise`."""
    rows = task.rows(TEST)
    codes = pd.Categorical(task.batch[rows], fitted.spec.categories["batch"]).codes
    cells = CellBatch(
        torch.arange(len(rows)),
        {"counts": torch.from_numpy(task.counts[rows].toarray())},
        columns={"batch": torch.from_numpy(codes.astype(np.int64))},
    )
    module = fitted.module
    latent = module.encode(cells)
    given_z = [
        module.decode(
            latent.mean + latent.variance.sqrt() * torch.from_numpy(eps),
            module.log_library(cells),
            cells,
        )
        for eps in noise
    ]
    never = torch.tensor(-math.inf)  # the log-odds of extra zeros where there are none
    return {
        "z_mean": latent.mean.numpy(),
        "z_variance": latent.variance.numpy(),
        "mu": np.stack([p.mu.numpy() for p in given_z]),
        "logits": np.stack([getattr(p, "logits", never).expand(p.mu.shape) for p in given_z]),
        "theta": np.stack([p.theta.expand(p.mu.shape) for p in given_z]),
    }


def main() -> None:
    task, settings, seed, out = fit_arguments()
    torch.set_num_threads(settings.threads)
    fitted, watch = fit(task, settings, seed)
    cells = as_anndata(task)
    own = fitted.score(
        cells[task.rows(TEST)].copy(), n_samples=settings.draws, seed=seed, progress=False
    )
    save_arrays(
        out,
        **explain(fitted, task, shared_noise(task, settings, seed)),
        embedding=fitted.embed(cells, progress=False),
        validation_elbo=fitted.history["validation_elbo"].to_numpy(),
        own_elbo=own.mean(),
        version=ch.__version__,
        **watch.times(),
    )


if __name__ == "__main__":
    main()
