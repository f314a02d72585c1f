"""A fitted model: immutable, and either whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
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
from .learn.state import STATES, read_state
from .model import Model
from .module import capabilities
from .remember import WEIGHT
from .schema import CATEGORY_ROLES, NUMBER_ROLES, Place, Schema, Spec
from .surroundings import settled

#: Version of the folder's form; raised when older readers could not understand a new folder.
FORMAT = 3
#: What a model is saved as.
FILES = ("model.json", "weights.safetensors", "history.csv", "card.md")
_PROVENANCE = {
    "version": str, "seed": int, "cells": int, "validation_cells": int, "torch": str,
    "state": str, "notes": list,
}  # fmt: skip


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
        Model, version, configuration, spec, seed, and the state of the fit: *still improving*, *overfitted*
        or *rested* (see `learn.state`).
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
    trajectory = verbs.trajectory
    rank = verbs.rank

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

        It is written aside and renamed: an old folder survives a crash or a full disk. Other files
        in an old folder are kept.

        Raises
        ------
        StoreError
            If it cannot be written, or `folder` holds something that is no model.
        """
        folder = Path(folder)
        refuse_to_replace(folder)
        with store.aside(folder) as made:
            if folder.is_dir():
                ours = {folder: FILES}
                shutil.copytree(
                    folder, made, symlinks=True, ignore=lambda at, _: ours.get(Path(at), ())
                )
            else:
                made.mkdir()
            tensors = store.prefixed("module", self.module.state_dict())
            tensors |= store.prefixed(
                "statistics",
                {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.statistics.items()},
            )
            store.write_tensors(made / "weights.safetensors", tensors, {})
            self.history.to_csv(made / "history.csv", index=False)
            (made / "card.md").write_text(self.card(), encoding="utf-8")
            info = {
                "format": FORMAT, "key": self.model.key, "version": __version__,
                "config": config.as_dict(self.model), "schema": self.schema.as_dict(),
                "spec": self.spec.as_dict(), "provenance": dict(self.provenance),
                "weights": _stamp(made / "weights.safetensors"),
                "history": _stamp(made / "history.csv"),
            }  # fmt: skip
            info["sha256"] = seal(info)
            (made / "model.json").write_text(json.dumps(info, indent=1))
        return folder

    def card(self) -> str:
        """Return a page in Markdown that says what this model is and what it was learned from."""
        said = self.provenance
        rows = [f"| {k} | {v} |" for k, v in config.as_dict(self.model).items()]
        features = ", ".join(f"{len(n):,} {r}" for r, n in self.spec.features.items())
        groups = ", ".join(f"{len(n)} {r}" for r, n in self.spec.categories.items())
        return "\n".join(
            [
                f"# {type(self.model).__name__}", "",
                f"Fitted with chreode {said['version']} on {said['cells']:,} cells ({features}"
                f"{'; ' + groups if groups else ''}), seed {said['seed']}.",
                f"It {STATES[said['state']]}. It can: {', '.join(self.verbs)}.",
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


def refuse_to_replace(folder: Path) -> None:
    """Say at once that a model cannot be saved here: something else would be lost.

    Raises
    ------
    StoreError
        If `folder` is a file, or a folder that holds something but no model.
    """
    if folder.is_dir() and ((folder / "model.json").is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise StoreError(f"{folder} exists and holds no model; choose another place.")


@settled()
def load(folder: str | Path) -> Fitted:
    """Read a folder that `Fitted.save` wrote. Runs no code from it and follows no link out of it.

    Raises
    ------
    StoreError
        If it is absent, cut short, changed since it was written, of a newer version, or not a model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        previous = store.survivor(folder)
        if previous is None or folder.exists():
            raise StoreError(f"There is no model folder {str(folder)!r}.")
        warnings.warn(f"{folder} was lost while being replaced; reading {previous}.", stacklevel=2)
        folder = previous
    for name in ("model.json", "weights.safetensors", "history.csv"):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise StoreError(f"{folder} is no whole model: {name} is absent or a link.")
    description = folder / "model.json"
    try:
        info = json.loads(description.read_text(encoding="utf-8"))
        if int(info["format"]) > FORMAT:
            raise StoreError(
                f"{folder} was written by chreode {info.get('version')}, newer than this "
                f"{__version__}: upgrade."
            )
        if int(info["format"]) < FORMAT:
            raise StoreError(
                f"{folder} was written by chreode {info.get('version')}, whose numbers mean other things "
                f"to this {__version__}: fit it anew, or read it with the version that wrote it."
            )
        if info.pop("sha256") != seal(info):
            raise StoreError(f"{description} was changed since it was written (its hash differs).")
        for name, stated in (("weights.safetensors", "weights"), ("history.csv", "history")):
            _compare(folder / name, info[stated])
        return _assemble(folder, info)
    except StoreError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError,
            RuntimeError, ChreodeError) as error:  # fmt: skip
        raise StoreError(
            f"{folder} does not describe a model of this version: model.json is malformed, or says "
            f"what the weights are not ({type(error).__name__}: {error})."
        ) from error


def seal(info: Mapping[str, Any]) -> str:
    """Return a hash of a description. It tells accidents and is no signature: anyone can make one."""
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _stamp(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": store.sha256(file)}


def _compare(file: Path, stated: Mapping[str, Any]) -> None:
    size = file.stat().st_size
    if size != stated["bytes"]:
        raise StoreError(f"{file} has {size} bytes, expected {stated['bytes']}: it is cut short.")
    if store.sha256(file) != stated["sha256"]:
        raise StoreError(f"{file} was changed since it was written (its hash differs).")


def _assemble(folder: Path, info: Mapping[str, Any]) -> Fitted:
    tensors, _ = store.read_tensors(folder / "weights.safetensors")
    model = config.from_dict(models.find(info["key"]), info["config"])
    spec = Spec.from_dict(info["spec"])
    schema = Schema.from_dict(info["schema"])
    # built without memory, so that an absurd size costs nothing before the shapes are compared
    with torch.device("meta"):
        module = model.build(spec)
    expected = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    module.load_state_dict(store.under("module", tensors), assign=True)
    for name, tensor in module.state_dict().items():
        if tensor.dtype != expected[name]:
            raise StoreError(f"{name} is {tensor.dtype}, expected {expected[name]}.")
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    statistics = {k: v.numpy() for k, v in store.under("statistics", tensors).items()}
    _refuse_absurd(statistics, spec)
    provenance = dict(info["provenance"])
    provenance["state"] = read_state(provenance)
    provenance.pop("converged", None)
    told = [provenance[name] for name in ("model", "config", "spec")]
    typed = all(isinstance(provenance[name], kind) for name, kind in _PROVENANCE.items())
    if told != [model.key, config.as_dict(model), spec.hash] or not typed:
        raise StoreError("The provenance is not that of the model.")
    return Fitted(model, schema, spec, module.eval(), history, statistics, provenance)


def _refuse_absurd(statistics: Mapping[str, np.ndarray], spec: Spec) -> None:
    """Refuse conditions and depths of training cells that `generate` could not draw from."""
    stacked = {"categorical": spec.categorical, "continuous": spec.continuous}
    roles = [r for r in spec.roles if r in (*CATEGORY_ROLES, *NUMBER_ROLES, *stacked)]
    n = len(next(iter(statistics.values()), ()))
    kinds = {"library": np.float32, "number": np.float64, "code": np.int64}
    for name in [*roles, *(["library"] if "counts" in spec.roles else [])]:
        values, columns = statistics[name], stacked.get(name, ())
        coded = name == "categorical" or name in CATEGORY_ROLES
        known = [len(spec.categories[c]) for c in columns or (name,)] if coded else np.inf
        if not (
            n
            and values.dtype == kinds.get(name, kinds["code" if coded else "number"])
            and values.shape == (n, *([len(columns)] if columns else []))
            and np.isfinite(values).all()
            and (values < known).all()
            and (values >= (-1 if coded else 0 if name == "library" else -np.inf)).all()
        ):
            raise StoreError(f"The {name} of the training cells is not what the spec describes.")
    weight = statistics[WEIGHT]
    if not (
        weight.dtype == np.float64
        and weight.shape == (n,)
        and np.isfinite(weight).all()
        and (weight > 0).all()
    ):
        raise StoreError("The weights of the training cells are no positive numbers.")
