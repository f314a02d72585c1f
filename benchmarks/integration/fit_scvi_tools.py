"""Fit scvi-tools' SCVI to a task; write what the evaluator needs. Runs in the rivals' environment."""

from __future__ import annotations

import logging
import warnings

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from exchange import (
    TEST,
    TRAIN,
    VALIDATION,
    Settings,
    Stopwatch,
    Task,
    fit_arguments,
    save_arrays,
    shared_noise,
)


def fit(task: Task, settings: Settings, seed: int) -> tuple[scvi.model.SCVI, Stopwatch]:
    scvi.settings.seed = seed
    obs = pd.DataFrame({"batch": pd.Categorical(task.batch)})
    obs.index = obs.index.astype(str)
    cells = anndata.AnnData(task.counts, obs=obs, var=pd.DataFrame(index=task.genes))
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells, n_hidden=settings.n_hidden, n_latent=settings.n_latent, n_layers=settings.n_layers,
        dropout_rate=settings.dropout, dispersion="gene", gene_likelihood="zinb",
    )  # fmt: skip
    with Stopwatch() as watch:
        model.train(
            max_epochs=settings.epochs, accelerator="cpu", devices=1, early_stopping=False,
            batch_size=settings.batch_size, check_val_every_n_epoch=1,
            enable_progress_bar=False,
            datasplitter_kwargs={
                "external_indexing": [task.rows(part) for part in (TRAIN, VALIDATION, TEST)]
            },
            plan_kwargs={
                "lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay,
                "n_epochs_kl_warmup": max(1, round(settings.warmup * settings.epochs)),
            },
        )  # fmt: skip
    return model, watch


@torch.inference_mode()
def explain(model: scvi.model.SCVI, task: Task, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Return q(z|x) of the test cells, and p(x|z) for the z of each draw of `noise`."""
    rows = task.rows(TEST)
    mapping = model.adata_manager.get_state_registry("batch").categorical_mapping
    codes = pd.Categorical(task.batch[rows], mapping).codes.astype(np.int64)
    batch_index = torch.from_numpy(codes)[:, None]
    module = model.module.eval()
    inferred = module.inference(torch.from_numpy(task.counts[rows].toarray()), batch_index)
    q = inferred["qz"]
    given_z = [
        module.generative(q.loc + q.scale * torch.from_numpy(eps), inferred["library"], batch_index)
        for eps in noise
    ]
    return {
        "z_mean": q.loc.numpy(),
        "z_variance": q.variance.numpy(),
        "mu": np.stack([p["px"].mu.numpy() for p in given_z]),
        "logits": np.stack([p["px"].zi_logits.numpy() for p in given_z]),
        "theta": module.px_r.exp().detach().numpy(),
    }


def main() -> None:
    task, settings, seed, out = fit_arguments()
    scvi.settings.num_threads = settings.threads
    scvi.settings.dl_num_workers = 0
    model, watch = fit(task, settings, seed)
    own = [
        float(model.get_elbo(indices=task.rows(TEST), return_mean=True))
        for _ in range(settings.draws)
    ]
    save_arrays(
        out,
        **explain(model, task, shared_noise(task, settings, seed)),
        embedding=model.get_latent_representation(),
        # scvi-tools logs the negative of the bound
        validation_elbo=-model.history["elbo_validation"].to_numpy(dtype=float).ravel(),
        own_elbo=np.mean(own),
        version=scvi.__version__,
        **watch.times(),
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")  # advice on loader workers and loggers
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main()
