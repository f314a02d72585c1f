"""What a fit depends on, part by part: a checkpoint is gone on from where all of it is the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from .. import store
from ..data.source import Source
from ..losses import kernel
from ..module import Module
from ..version import code_hash
from .phase import Session, Split


def fingerprint(
    about: Mapping[str, Any], module: Module, source: Source, split: Split, run: Session
) -> dict[str, str]:
    """Return a hash, or the value itself, of everything that the bits of a fit depend on.

    Parameters
    ----------
    about
        What the caller knows: model, options, spec, JSON-able.
    module
        As it is before the first step, whichever weights it starts from.
    """
    parts: dict[str, Any] = {
        **about,
        "rows": _digest([split.train.tobytes(), split.validation.tobytes(), bytes(split.named)]),
        "data": of_cells(source, np.union1d(split.train, split.validation)),
        "weights to start from": of_weights(module),
        "seed": run.rng.seed,
        "precision": run.precision,
        "device": run.device,
        "compile": run.compile,
        "processes": run.group.size,
        "code": code_hash(),
        **arithmetic(),
    }
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in parts.items()}


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the parts in which two fits differ; of options which, and what they were and are now."""
    parts = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if "options" in parts:
        old, new = (json.loads(of.get("options", "{}")) for of in (theirs, ours))
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        each = ", ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
        parts[parts.index("options")] = f"options ({each})"
    return parts


def arithmetic() -> dict[str, Any]:
    """Return what decides, on this machine and in this process, how numbers are rounded."""
    return {
        "threads": torch.get_num_threads(),
        "kernel": kernel.name() if kernel.available() else "",
        "torch": torch.__version__,
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "torch's settings": [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        ],
    }


def of_cells(source: Source, rows: np.ndarray) -> str:
    """Return a hash of all values of `rows`, in one pass.

    It sees values and the order of rows, and not how they are stored: types, zeros that are written
    down, memory or disk.
    """

    def pieces() -> Iterable[bytes]:
        yield str(source.block).encode()  # by which minibatches are mixed
        if source.control is not None:  # by which partners are drawn
            yield source.control[rows].tobytes()
        for batch in source.batches(rows):
            for role in sorted(batch.views):
                stored = batch.sparse(role)
                kept = stored.values != 0
                lengths = torch.bincount(stored.cells[kept], minlength=len(batch))
                for part in (lengths, stored.columns[kept].int(), stored.values[kept]):
                    yield part.numpy().tobytes()
            for table in (batch.present, batch.observed, batch.columns):
                for name in sorted(table):
                    yield name.encode() + table[name].numpy().tobytes()

    return _digest(pieces())


def of_weights(module: Module) -> str:
    """Return a hash of all parameters and buffers, and of which of them learn."""
    learns = [name for name, p in module.named_parameters() if p.requires_grad]
    return store.digest(module.state_dict(), json.dumps(learns))[:32]


def _digest(pieces: Iterable[bytes]) -> str:
    made = hashlib.sha256()
    for piece in pieces:
        made.update(len(piece).to_bytes(8, "little"))
        made.update(piece)
    return made.hexdigest()[:32]
