"""A fitted model: immutable, and either whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from safetensors import SafetensorError

from . import config, store
from .compute.convergence import read_state
from .compute.settings import settled
from .config.arguments import checked
from .data.remember import WEIGHT
from .errors import ChreodeError, StoreError, counted, listed, warn
from .module import Module, Recipe
from .registry import find
from .schema import CATEGORY_ROLES, NUMBER_ROLES, Schema, Spec
from .text import spreadsheet
from .verbs import cells, description, factors, labels, latent, paths
from .verbs.state import FittedState
from .version import __version__

#: Version of the folder's form; raised when older readers could not understand a new folder.
FORMAT = 4
#: What a model is saved as.
FILES = ("model.json", "weights.safetensors", "history.csv", "card.md", "vectors.safetensors")
_PROVENANCE = {
    "version": str, "seed": int, "cells": int, "validation_cells": int, "torch": str,
    "state": str, "notes": list,
}  # fmt: skip
#: What folders of earlier versions lack.
_LATER = {
    "code": str, "device": str, "precision": str, "kernel": str, "threads": int, "members": list,
}  # fmt: skip
#: What is said of each member.
_MEMBER = {"cells": int, "validation_cells": int, "state": str, "notes": list}
#: Bytes that a description, a history, or what is remembered of training cells may have.
_MOST = 2**27
#: How often a folder is read that another process is replacing.
_TRIES = 100


class Fitted(FittedState):
    """What `Model.fit` returns: immutable; its verbs are functions of `chreode.verbs`."""

    embed = latent.embed
    posterior = latent.posterior
    score = latent.score
    loadings = factors.loadings
    variance_explained = factors.variance_explained
    classify = labels.classify
    reconstruct = cells.reconstruct
    predict = cells.predict
    generate = cells.generate
    trajectory = paths.trajectory
    rank = paths.rank
    card = description.card
    __repr__ = description.line
    _repr_html_ = description.table

    @property
    def members(self) -> list[Fitted]:
        """The fits that this one keeps beside its own, as restarts or refits: each answers as a model does.

        A model of one fit has none. The history of a member is its own where the fit kept it.
        """
        kept: Any = getattr(self.module, "members", ())
        model, common = self.model.alone(), dict(self.provenance)
        found = []
        # after Ctrl-C fewer were learned than there is room for; files of old keep no record of them
        own = common.pop("members", [{}] * len(kept))
        for number, (member, record) in enumerate(zip(kept, own, strict=False)):
            history = self.history
            if "member" in history:
                history = history[history["member"] == number].reset_index(drop=True)
            provenance = {**common, **record, "config": config.as_dict(model), "member": number}
            one = replace(self, model=model, module=member, history=history, provenance=provenance)
            found.append(one)
        return found

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write a folder: model.json, weights.safetensors, history.csv, card.md.

        There is vectors.safetensors too, if perturbations have vectors. The folder is written aside and
        renamed: an old one survives a crash or a full disk. Other files in an old folder are kept.

        Raises
        ------
        StoreError
            If it cannot be written or is too large to be loaded, or `folder` holds something that is no
            model.
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
            arrays = {k: np.ascontiguousarray(v) for k, v in self.statistics.items()}
            tensors |= store.prefixed(
                "statistics", {k: torch.from_numpy(v) for k, v in arrays.items()}
            )
            store.write_tensors(made / "weights.safetensors", tensors, {})
            spreadsheet(self.history).to_csv(made / "history.csv", index=False)
            (made / "card.md").write_text(self.card(), encoding="utf-8")
            vectors = {}
            if self.spec.vectors:
                rows = [self.spec.vectors[name] for name in self.spec.categories["perturbation"]]
                table = {"vectors": torch.tensor(rows, dtype=torch.float64)}
                store.write_tensors(made / "vectors.safetensors", table, {})
                vectors = {"vectors": _stamp(made / "vectors.safetensors")}
            info = {
                "format": FORMAT, "key": self.model.key, "version": __version__,
                "config": config.as_dict(self.model), "schema": self.schema.as_dict(),
                "spec": self.spec.as_dict(), "provenance": dict(self.provenance),
                "weights": _stamp(made / "weights.safetensors"),
                "history": _stamp(made / "history.csv"), **vectors,
            }  # fmt: skip
            info["sha256"] = seal(info)
            (made / "model.json").write_text(json.dumps(info, indent=1))
            _refuse_too_large(made, self.module)
        return folder


def refuse_to_replace(folder: Path) -> None:
    """Say at once that a model cannot be saved here: something else would be lost.

    Raises
    ------
    StoreError
        If `folder` is a file, or a folder that holds something but no model.
    """
    ours = folder.is_dir() and (_is_model(folder) or not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise StoreError(f"{folder} exists and holds no model; choose another place.")


def _refuse_too_large(folder: Path, module: Module) -> None:
    """Refuse to save what `load` would refuse to read."""
    most = {"model.json": _MOST, "history.csv": _MOST, "weights.safetensors": _most_bytes(module)}
    for name, limit in most.items():
        size = (folder / name).stat().st_size
        if size > limit:
            raise StoreError(
                f"The model is not saved, because load could not read it: {name} would have "
                f"{counted(size, 'byte')} where it reads {limit:,} at most. Fit on fewer features or "
                "categories, or in fewer epochs."
            )


def _most_bytes(module: Module) -> int:
    """Return how many bytes the weights of a module, and what is remembered of cells, may have."""
    return _MOST + sum(tensor.nbytes for tensor in module.state_dict().values())


def _is_model(folder: Path) -> bool:
    """Return whether the model.json in a folder is of chreode, and not of another program."""
    try:
        info = json.loads((folder / "model.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and {"format", "key", "spec", "weights"} <= info.keys()


@settled()
@checked
def load(folder: str | Path) -> Fitted:
    """Read a folder that `Fitted.save` wrote. Runs no code from it and follows no link out of it.

    Raises
    ------
    StoreError
        If it is absent, cut short, changed since it was written, of a newer version, or not a model.
    """
    folder = Path(folder)
    for last in (*[False] * _TRIES, True):
        place, previous = _place(folder), store.survivor(folder)
        if place is None and previous is None and _place(folder) is None:
            raise StoreError(f"There is no model folder {str(folder)!r}.")
        found = folder
        if last and place is None and previous is not None:
            warn(f"{folder} was lost while being replaced; reading {previous}.")
            found = previous
        try:
            return _read(found)
        except StoreError:
            if last or (place is not None and place == _place(folder)):
                raise
        time.sleep(0.01)  # another process is replacing it
    raise AssertionError("the last try returns or raises")


def _place(folder: Path) -> tuple[int, int, int] | None:
    """Return what distinguishes this folder from the one that may replace it, None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns  # numbers are given again


def _read(folder: Path) -> Fitted:
    """Read every file of a model once, and refuse those whose hash is not that of the description."""
    description = folder / "model.json"
    if not description.is_file() or description.is_symlink():
        inside = listed(path.parent for path in sorted(folder.glob("*/model.json")))
        models = f" Models inside it: {inside}." if inside else ""
        raise StoreError(f"{folder} is no model folder: model.json is absent or a link.{models}")
    try:
        info = json.loads(store.read_once(description, _MOST))
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
        return _assemble(folder, info)
    except StoreError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError,
            RuntimeError, SafetensorError, ChreodeError) as error:  # fmt: skip
        raise StoreError(
            f"{folder} does not describe a model of this version: model.json is malformed, or says "
            f"what the weights are not ({type(error).__name__}: {error})."
        ) from error


def seal(info: Mapping[str, Any]) -> str:
    """Return a hash of a description. It detects accidents and is no signature: anyone can make one."""
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _stamp(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": store.sha256(file)}


def _content(file: Path, stated: Mapping[str, Any], most: int) -> bytes:
    content = store.read_once(file, most)
    if len(content) != stated["bytes"]:
        raise StoreError(
            f"{file} has {counted(len(content), 'byte')}, expected {stated['bytes']}: it is cut short."
        )
    if hashlib.sha256(content).hexdigest() != stated["sha256"]:
        raise StoreError(f"{file} was changed since it was written (its hash differs).")
    return content


def _assemble(folder: Path, info: Mapping[str, Any]) -> Fitted:
    model = config.from_dict(find(info["key"]), info["config"])
    spec = Spec.from_dict(info["spec"], _vectors(folder, info))
    schema = Schema.from_dict(info["schema"])
    provenance = _provenance(info["provenance"], model, spec)
    _refuse_other_roles(schema, spec)
    for name, sizes in spec.blocks.items():
        if min(sizes, default=1) < 1 or sum(sizes) != len(spec.categories[name]):
            raise StoreError(f"The blocks of {name} are not those of its categories.")
    # built without memory, so that an absurd size costs nothing before the shapes are compared
    with torch.device("meta"):
        module = model.build(spec)
    expected = module.state_dict()
    content = _content(folder / "weights.safetensors", info["weights"], _most_bytes(module))
    tensors, _ = store.tensors_of(content)
    strange = [name for name in tensors if name.partition("/")[0] not in ("module", "statistics")]
    if strange:
        raise StoreError(f"The weights hold {strange[0]!r}, which no model has.")
    module.load_state_dict(store.under("module", tensors), assign=True)
    unknown = {
        f"{part}.{name}".lstrip(".")
        for part, inner in module.named_modules()
        for name in (inner.unknown if isinstance(inner, Module) else ())
    }
    for name, tensor in module.state_dict().items():
        if tensor.dtype != expected[name].dtype:
            raise StoreError(f"{name} is {tensor.dtype}, expected {expected[name].dtype}.")
        if not bool((tensor.nan_to_num(0) if name in unknown else tensor).isfinite().all()):
            raise StoreError(f"{name} holds what is no finite number: the model cannot answer.")
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    statistics = {k: v.numpy() for k, v in store.under("statistics", tensors).items()}
    _refuse_absurd(statistics, spec)
    history = _history(_content(folder / "history.csv", info["history"], _MOST))
    return Fitted(model, schema, spec, module.eval(), history, statistics, provenance)


def _vectors(folder: Path, info: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the vector of each single perturbation, if there are any: a row for each, in their order."""
    if "vectors" not in info:
        return {}
    stated, names = info["vectors"], info["spec"]["categories"]["perturbation"]
    content = _content(folder / "vectors.safetensors", stated, stated["bytes"])
    rows = store.tensors_of(content)[0]["vectors"].tolist()
    return dict(zip(names, map(tuple, rows), strict=True))


def _history(content: bytes) -> pd.DataFrame:
    history = pd.read_csv(io.BytesIO(content), float_precision="round_trip")
    numbers = history.drop(columns="phase")
    if history.empty or not all(map(is_numeric_dtype, numbers.dtypes)):
        raise StoreError("The history is no table of numbers by phase.")
    return history


def _provenance(record: Mapping[str, Any], model: Recipe, spec: Spec) -> dict[str, Any]:
    """Return the provenance, whose words will be printed and whose numbers will be believed."""
    provenance = dict(record)
    provenance["state"] = read_state(provenance)
    provenance.pop("converged", None)
    own = [provenance[name] for name in ("model", "config", "spec")]
    typed = all(type(provenance[name]) is kind for name, kind in _PROVENANCE.items()) and all(
        type(provenance.get(name, kind())) is kind for name, kind in _LATER.items()
    )
    members = provenance.get("members", [])
    typed = typed and all({k: type(v) for k, v in member.items()} == _MEMBER for member in members)
    if own != [model.key, config.as_dict(model), spec.hash] or not typed:
        raise StoreError("The provenance is not that of the model.")
    for member in members:
        read_state(member)
    values = [v for part in (provenance, *members) for v in part.values()]
    words = [v for v in values if isinstance(v, str)]
    words += [note for part in (provenance, *members) for note in part["notes"]]
    numbers = [v for v in values if type(v) is int]
    if not all(isinstance(word, str) and _can_be_printed(word) for word in words):
        raise StoreError("The provenance holds notes or names that are no text.")
    if not all(-(2**63) <= number < 2**64 for number in numbers):
        raise StoreError("The provenance holds numbers beyond all sense.")
    return provenance


def _can_be_printed(word: str) -> bool:
    """Return whether a text holds neither control characters nor halves of characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in word)


def _refuse_other_roles(schema: Schema, spec: Spec) -> None:
    """Refuse a spec that holds more than its roles, or roles of which the schema has no place."""
    found = {name.partition("/")[0] for name in spec.features}
    found |= {"categorical" if name in spec.categorical else name for name in spec.categories}
    found |= {"continuous" if name in spec.continuous else name for name in spec.numbers}
    named = {role.partition("/")[0] for role, _ in schema.places()}
    if not found <= set(spec.roles) <= named:
        raise StoreError("The roles of the schema are not those of the spec.")


def _refuse_absurd(statistics: Mapping[str, np.ndarray], spec: Spec) -> None:
    """Refuse conditions and depths of training cells that `generate` could not draw from."""
    stacked = {"categorical": spec.categorical, "continuous": spec.continuous}
    roles = [r for r in spec.roles if r in (*CATEGORY_ROLES, *NUMBER_ROLES, *stacked)]
    n = len(next(iter(statistics.values()), ()))
    kinds = {"library": np.float32, "number": np.float64, "code": np.int64}
    # no other category is ever unknown
    least = {"library": 0, "label": -1, **dict.fromkeys(spec.sets, -1)}
    wanted = [*roles, *(["library"] if "counts" in spec.roles else [])]
    if set(statistics) != {*wanted, WEIGHT}:
        raise StoreError("What is stored about the training cells is not what the spec describes.")
    for name in wanted:
        values, columns = statistics[name], stacked.get(name, ())
        widths = [len(columns)] if columns else [*values.shape[-1:]] if name in spec.sets else []
        coded = name == "categorical" or name in CATEGORY_ROLES
        known = [len(spec.categories[c]) for c in columns or (name,)] if coded else np.inf
        if not (
            n
            and values.dtype == kinds.get(name, kinds["code" if coded else "number"])
            and values.shape == (n, *widths)
            and (values < known).all()
            and (values >= least.get(name, 0 if coded else -np.inf)).all()
            and np.isfinite(spec.narrowed(name, values)).all()
        ):
            raise StoreError(f"The {name} of the training cells is not what the spec describes.")
    weight = statistics[WEIGHT]
    if not (
        weight.dtype == np.float64
        and weight.shape == (n,)
        and ((weight > 0) & (weight < 2.0**63)).all()
    ):
        raise StoreError("The weights of the training cells are no positive numbers.")
