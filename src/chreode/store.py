"""Files that are whole or absent: written aside, flushed, renamed. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import StoreError


@contextmanager
def aside(target: str | Path) -> Iterator[Path]:
    """Yield a path to write to; rename it to `target` if the block succeeds, else remove it.

    A folder may be made at the path instead of a file: it then replaces the old folder, which
    stands beside it as ``.NAME.previous`` for the instant between two renames.

    Raises
    ------
    StoreError
        If the disk is full or the place cannot be written. What was at `target` is untouched.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        made = work / target.name
        yield made
        _flush(made)
        if made.is_dir() and target.exists():
            previous = target.parent / f".{target.name}.previous"
            shutil.rmtree(previous, ignore_errors=True)
            target.rename(previous)
            made.rename(target)
            shutil.rmtree(previous)
        else:
            made.replace(target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{target} could not be written ({error}); what was there before is untouched. "
            "Free some space or choose another place."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _flush(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header as one safetensors file."""
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    # as bytes, because the library's own writer makes files that only their owner can read
    path.write_bytes(save(plain, metadata={"info": json.dumps(info)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    StoreError
        If the file is absent, cut short or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {}).get("info", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); it may be cut short.") from error


def sha256(path: Path) -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` under ``prefix/name``."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `prefixed` put under `prefix`."""
    head = f"{prefix}/"
    return {name[len(head) :]: t for name, t in tensors.items() if name.startswith(head)}


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}
