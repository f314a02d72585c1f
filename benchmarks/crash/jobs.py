"""What is cut off: fits with a checkpoint, saves, streamed results, commands. Each is one short job."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import harmonypy  # noqa: F401 (or every child would import it, as the others marked so)
import numpy as np
import scipy.sparse as sp
import torch._dynamo  # noqa: F401

import chreode as ch
from chreode import store
from chreode.commands import fit, use  # noqa: F401
from chreode.commands.app import main
from chreode.learn.phase import Phase

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch")
SMALL = {"n_latent": 4, "n_hidden": 16}
EPOCHS = 40


class Averaged(ch.SCVI):
    """SCVI whose weights are averaged over the steps."""

    def phases(self) -> list[Phase]:
        return [replace(p, learner=replace(p.learner, ema=0.9)) for p in super().phases()]


class Twice(ch.SCVI):
    """SCVI in two phases, the second with a lower learning rate."""

    def phases(self) -> list[Phase]:
        (first,) = super().phases()
        return [first, replace(first, learner=replace(first.learner, lr=1e-4), name="again")]


@dataclass(frozen=True)
class Job:
    """One job: it makes `target` in a folder of its own, from what `make_base` made in `base`."""

    target: str
    run: Callable[[Path, Path], None]  # base, folder
    read: Callable[[Path], str]  # hash of the whole target; a torn one cannot be read
    old: str = ""  # what stands at the target before, by its name in the base

    def prepare(self, base: Path, folder: Path) -> None:
        """Put the old thing in place."""
        if self.old:
            copy = shutil.copytree if (base / self.old).is_dir() else shutil.copy
            copy(base / self.old, folder / self.target)

    def found(self, base: Path, folder: Path, new: str) -> str:
        """Return ``old``, ``new`` or ``absent`` and how far a checkpoint is, or fail: it is torn."""
        target = folder / self.target
        if not self.old and not target.exists():
            word = "absent"
        else:
            known = {new: "new"}
            if self.old:
                known[self.read(base / self.old)] = "old"
            word = known[self.read(target)]
        return ", ".join([word, *_epochs(folder), *_results(folder)])


def _epochs(folder: Path) -> list[str]:
    """Return how far each checkpoint is; all must be whole."""
    files = sorted(f for f in folder.rglob("phase*.safetensors") if ".writing-" not in str(f))
    return [f"epoch {store.read_tensors(file)[1]['epoch']}" for file in files]


def _results(folder: Path) -> list[str]:
    """Return how many lines of a bench are kept; the first says what it is."""
    lines = [file.read_bytes().splitlines() for file in folder.rglob("rows.jsonl")]
    return [f"{len(of_file)} lines" for of_file in lines]


def make_base(base: Path) -> None:
    """Make the cells and the models that the jobs work on."""
    for name, seed in (("cells", 0), ("query", 1)):
        cells = ch.simulate.simulate_cells(300, 60, n_types=3, n_batches=2, seed=seed)
        cells.write_h5ad(base / f"{name}.h5ad")
    many = anndata.concat([cells] * 60, index_unique="-")
    many.write_h5ad(base / "many.h5ad")
    for name, seed in (("old", 0), ("new", 1)):
        fitted = ch.SCVI(max_epochs=2, **SMALL).fit(base / "cells.h5ad", SCHEMA, seed=seed)
        fitted.save(base / name)


# what is compared


def hashed(*parts: Any) -> str:
    """Return a hash of arrays and texts, bit for bit."""
    digest = hashlib.sha256()
    for part in parts:
        values = part.toarray() if sp.issparse(part) else part
        is_array = isinstance(values, np.ndarray)
        digest.update(np.ascontiguousarray(values).tobytes() if is_array else str(values).encode())
    return digest.hexdigest()[:16]


def of_fit(fitted: ch.Fitted) -> str:
    """Return the hash of weights, tables, provenance and history (without the seconds)."""
    state = fitted.module.state_dict()
    history = fitted.history.drop(columns="seconds").to_csv(index=False)
    tables = [v for _, v in sorted(fitted.statistics.items())]
    told = json.dumps(dict(fitted.provenance), sort_keys=True)
    return hashed(*(v.numpy() for _, v in sorted(state.items())), *tables, history, told)


def of_model(folder: Path) -> str:
    """Return the hash of a model folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old model may be read from where it was moved to
        return of_fit(ch.load(folder))


def of_cells(file: Path) -> str:
    """Return the hash of a file of cells."""
    cells = anndata.read_h5ad(file)
    slots = [cells.obsm[key] for key in sorted(cells.obsm)]
    return hashed(cells.X, *slots, cells.obs.to_csv(), cells.var.to_csv(), cells.uns)


# the jobs


def _fit(model: ch.Model) -> Job:
    def run(base: Path, folder: Path) -> None:
        fitted = model.fit(base / "cells.h5ad", SCHEMA, seed=3, checkpoint=folder / "state")
        with store.aside(folder / "hash") as made:
            made.write_text(of_fit(fitted))

    return Job("hash", run, Path.read_text)


def _save(base: Path, folder: Path) -> None:
    old, new = ch.load(base / "old"), ch.load(base / "new")
    for fitted in (new, old, new, old, new):
        fitted.save(folder / "model")


def _generate(base: Path, folder: Path) -> None:
    ch.load(base / "new").generate(18_000, seed=5, into=folder / "out.h5ad")


def _predict(base: Path, folder: Path) -> None:
    many = base / "many.h5ad"
    ch.load(base / "new").predict(many, to={"batch": "batch_0"}, into=folder / "out.h5ad")


def _reconstruct(base: Path, folder: Path) -> None:
    ch.load(base / "new").reconstruct(base / "many.h5ad", into=folder / "out.h5ad")


def _command_fit(base: Path, folder: Path) -> None:
    roles = ["--counts", "layers/counts", "--batch", "obs/batch"]
    options = ["--max-epochs", str(EPOCHS), "--n-latent", "4", "--n-hidden", "16", "--resume"]
    file, out = str(base / "cells.h5ad"), str(folder / "model")
    _say("fit", "scvi", file, *roles, *options, "-o", out)


def _command_embed(base: Path, folder: Path) -> None:
    _say("embed", str(base / "new"), str(base / "many.h5ad"), "-o", str(folder / "out.h5ad"))


def _command_embed_in_place(base: Path, folder: Path) -> None:
    _say("embed", str(base / "new"), str(folder / "cells.h5ad"), "--in-place")


def _bench(base: Path, folder: Path) -> None:
    cells, model = base / "cells.h5ad", ch.SCVI(max_epochs=2, **SMALL)
    schema = SCHEMA.with_(label="obs/cell_type")
    metrics = ["silhouette_label", "bras", "ilisi"]
    bench = ch.bench.integration(cells, schema, [model], metrics=metrics, into=folder / "bench")
    told = bench.methods.drop(columns="seconds").to_csv()
    with store.aside(folder / "hash") as made:
        made.write_text(hashed(bench.scores.to_csv(), told))


def _say(*words: str) -> None:
    if main(words):
        raise ch.StoreError(f"chreode {' '.join(words)} failed")


JOBS = {
    "fit scvi": _fit(ch.SCVI(max_epochs=EPOCHS, **SMALL)),
    "fit scvi, early stop, latent library": _fit(
        # its best weights are not its last ones
        ch.SCVI(
            max_epochs=EPOCHS, patience=15, lr=5e-3, kl_warmup=0.1, latent_library=True, **SMALL
        )
    ),
    "fit scvi, averaged weights": _fit(Averaged(max_epochs=EPOCHS, **SMALL)),
    "fit scvi, two phases": _fit(Twice(max_epochs=EPOCHS // 2, **SMALL)),
    "fit vae": _fit(ch.VAE(max_epochs=EPOCHS, **SMALL)),
    "fit ppca (EM, no checkpoint)": _fit(ch.PPCA(n_latent=4)),
    "save over a model": Job("model", _save, of_model, "old"),
    "generate into a file": Job("out.h5ad", _generate, of_cells),
    "predict into an old file": Job("out.h5ad", _predict, of_cells, "query.h5ad"),
    "reconstruct into a file": Job("out.h5ad", _reconstruct, of_cells),
    "chreode fit --resume over a model": Job("model", _command_fit, of_model, "old"),
    "chreode embed -o": Job("out.h5ad", _command_embed, of_cells),
    "bench into a folder": Job("hash", _bench, Path.read_text),
    "chreode embed --in-place": Job("cells.h5ad", _command_embed_in_place, of_cells, "query.h5ad"),
}
