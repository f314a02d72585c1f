"""A fitted model: immutable, and either whole or not there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import __version__, config, models, store, verbs
from .errors import ChreodeError, StoreError
from .model import Model
from .module import capabilities
from .schema import Place, Schema, Spec

#: Version of the folder's form; raised when older readers could not understand a new folder.
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Fitted:
    """What `Model.fit` returns. Its verbs are functions of `chreode.verbs`.

    Attributes
    ----------
    model
        The hyper-parameters.
    schema
        Where the roles lived; verbs look there, unless told another `schema`.
    spec
        Names of features and categories.
    module
        The trained tensors, on the CPU.
    history
        One row per epoch and phase.
    statistics
        Conditions and depths of training cells, from which `generate` draws.
    provenance
        Model, version, configuration, spec, seed, and whether the fit had converged.
    """

    model: Model
    schema: Schema
    spec: Spec
    module: Any  # a Module; its capabilities depend on the model
    history: pd.DataFrame
    statistics: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]

    embed = verbs.embed
    posterior = verbs.posterior
    reconstruct = verbs.reconstruct
    predict = verbs.predict
    generate = verbs.generate
    score = verbs.score
    loadings = verbs.loadings

    @property
    def verbs(self) -> list[str]:
        """The questions that this model can answer."""
        return capabilities(self.module)

    def column(self, condition: str) -> str:
        """Return the obs column of a condition, a role or the name of a covariate."""
        place = getattr(self.schema, condition, None)
        return Place.parse(place).key if isinstance(place, str) else condition

    def feature_weight(self) -> dict[str, np.ndarray]:
        """Return, per matrix role, how much each feature matters to `embed`."""
        return {role: w.detach().cpu().numpy() for role, w in self.module.feature_weight().items()}

    def save(self, folder: str | Path) -> Path:
        """Write a folder: model.json, weights.safetensors, history.csv, card.md.

        It is written aside and renamed: an old folder survives a crash or a full disk.

        Raises
        ------
        StoreError
            If it cannot be written, or `folder` holds something that is no model.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / "model.json").is_file() and any(folder.iterdir()):
            raise StoreError(f"{folder} exists and holds no model; choose another place.")
        with store.aside(folder) as made:
            made.mkdir()
            tensors = store.prefixed("module", self.module.state_dict())
            tensors |= store.prefixed(
                "statistics",
                {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.statistics.items()},
            )
            weights = made / "weights.safetensors"
            store.write_tensors(weights, tensors, {})
            self.history.to_csv(made / "history.csv", index=False)
            (made / "card.md").write_text(self.card())
            info = {
                "format": FORMAT, "key": self.model.key, "version": __version__,
                "config": config.as_dict(self.model), "schema": self.schema.as_dict(),
                "spec": self.spec.as_dict(), "provenance": dict(self.provenance),
                "weights": {"bytes": weights.stat().st_size, "sha256": store.sha256(weights)},
            }  # fmt: skip
            (made / "model.json").write_text(json.dumps(info, indent=1))
        return folder

    def card(self) -> str:
        """Return a page in Markdown that says what this model is and what it was learned from."""
        said = self.provenance
        rows = [f"| {k} | {v} |" for k, v in config.as_dict(self.model).items()]
        features = ", ".join(f"{len(n):,} {r}" for r, n in self.spec.features.items())
        groups = ", ".join(f"{len(n)} {r}" for r, n in self.spec.categories.items())
        state = "yes" if said["converged"] else "no: the objective was still improving"
        return "\n".join(
            [
                f"# {type(self.model).__name__}", "",
                f"Fitted with chreode {said['version']} on {said['cells']:,} cells ({features}"
                f"{'; ' + groups if groups else ''}), seed {said['seed']}.",
                f"Converged: {state}. It can: {', '.join(self.verbs)}.",
                *[f"Note: {note}." for note in said["notes"]], "",
                "| option | value |", "|---|---|", *rows, "",
            ]
        )  # fmt: skip

    def __repr__(self) -> str:
        features = ", ".join(f"{len(n):,} {r}" for r, n in self.spec.features.items())
        return (
            f"Fitted {type(self.model).__name__} on {self.provenance['cells']:,} cells ({features}); "
            f"it can {', '.join(self.verbs)}"
        )


def load(folder: str | Path) -> Fitted:
    """Read a folder that `Fitted.save` wrote. Runs no code from it and follows no link out of it.

    Raises
    ------
    StoreError
        If it is absent, cut short, changed since it was written, of a newer version, or not a model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        previous = folder.parent / f".{folder.name}.previous"
        if not previous.is_dir():
            raise StoreError(f"There is no model folder {str(folder)!r}.")
        warnings.warn(f"{folder} was lost while being replaced; reading {previous}.", stacklevel=2)
        folder = previous
    for name in ("model.json", "weights.safetensors", "history.csv"):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise StoreError(f"{folder} is no whole model: {name} is absent or a link.")
    weights = folder / "weights.safetensors"
    try:
        info = json.loads((folder / "model.json").read_text())
        newer = int(info["format"]) > FORMAT
        stated = info["weights"]
        if not newer and weights.stat().st_size != stated["bytes"]:
            raise StoreError(
                f"{weights} has {weights.stat().st_size} bytes, expected {stated['bytes']}: it is cut short."
            )
        if not newer and store.sha256(weights) != stated["sha256"]:
            raise StoreError(f"{weights} was changed since it was written (its hash differs).")
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder / 'model.json'} is malformed ({error!r}).") from error
    if newer:
        raise StoreError(
            f"{folder} was written by chreode {info.get('version')}, newer than this {__version__}: upgrade."
        )
    return _assemble(folder, info, weights)


def _assemble(folder: Path, info: Mapping[str, Any], weights: Path) -> Fitted:
    tensors, _ = store.read_tensors(weights)
    try:
        model = config.from_dict(models.find(info["key"]), info["config"])
        spec = Spec.from_dict(info["spec"])
        schema = Schema.from_dict(info["schema"])
        # built without memory, so that an absurd size costs nothing before the shapes are compared
        with torch.device("meta"):
            module = model.build(spec)
        module.load_state_dict(store.under("module", tensors), assign=True)
        history = pd.read_csv(folder / "history.csv")
        provenance = dict(info["provenance"])
    except StoreError:
        raise
    except (ChreodeError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{folder} does not describe a model of this version: {error}") from error
    statistics = {k: v.numpy() for k, v in store.under("statistics", tensors).items()}
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return Fitted(model, schema, spec, module.eval(), history, statistics, provenance)
