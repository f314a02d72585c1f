"""Files that are whole or absent: written aside, flushed, renamed. No pickle anywhere."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import h5py
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import StoreError, counted

T = TypeVar("T")
#: Files of which a .zarr holds one.
_ZARR = ("zarr.json", ".zgroup")
#: How a rename is refused where a folder stands that is not empty.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def aside(target: str | Path, *, first: bool = False) -> Iterator[Path]:
    """Yield a path to write to; rename it to `target` if the block succeeds, else remove it.

    A file replaces a file in one step. A folder may be made at the path instead: it then replaces
    the old folder, which for the instant between two renames is where `survivor` finds it. A link
    is followed. What a killed process left of an earlier write is removed first. If it is to be the
    `first`, a file that stands there by then stays: of several that begin at once, one does.

    Raises
    ------
    StoreError
        If the disk is full or the place cannot be written. What was at `target` is untouched.
    """
    target = Path(os.path.realpath(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in _abandoned(target):
            _discard(left, target)
        prefix = f"{_prefix(target)}{os.getpid()}-"
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        made = work / target.name
        yield made
        with suppress(FileNotFoundError):
            shutil.copymode(target, made)  # what was private stays private
        _flush(made)
        (_link if first else _replace)(made, target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{target} could not be written ({error}); what was there before is untouched. "
            "Free some space or choose another place."
        ) from error
    finally:
        _discard(work, target)


def require_writable(target: Path) -> None:
    """Refuse a place that cannot be written: before the work whose result is to stand there.

    Raises
    ------
    StoreError
        If so. Nothing is left behind.
    """
    target = Path(os.path.realpath(target))
    there = next(folder for folder in target.parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_prefix(target)}{os.getpid()}-", dir=there):
            pass
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}.") from error


def refuse_folder(target: Path) -> None:
    """Refuse to replace a folder that is no .zarr.

    Raises
    ------
    StoreError
        If one stands at `target`.
    """
    zarr = target.suffix == ".zarr"
    if not target.is_dir() or (zarr and not any(target.iterdir())):
        return
    if not zarr or not any((target / name).is_file() for name in _ZARR):
        holds = " that holds no .zarr" if zarr else ""
        raise StoreError(f"{target} is a folder{holds}; choose another place.")


def remove(target: Path) -> None:
    """Remove a file, and what a killed process left of an earlier write to it."""
    for left in _abandoned(target):
        _discard(left, target)
    target.unlink(missing_ok=True)


def survivor(target: Path) -> Path | None:
    """Return the old folder of a replacement that was cut off between its two renames, if any."""
    target = Path(os.path.realpath(target))
    found = target.parent.glob(f"{glob.escape(f'.{target.name}.writing-')}*/*.previous")
    try:
        return next(iter(sorted(found)), None)
    except FileNotFoundError:  # the replacement came to its end while it was looked for
        return None


def _prefix(target: Path) -> str:
    return f".{target.name}.writing-{platform.node()}-"


def _abandoned(target: Path) -> Iterator[Path]:
    """Yield the working folders of processes of this machine that are gone.

    They are recognised by the process's number, because locks can hang on network file systems.
    """
    prefix = _prefix(target)
    for work in target.parent.glob(f"{glob.escape(prefix)}*"):
        number = work.name.removeprefix(prefix).partition("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            yield work
        except (ValueError, OverflowError, PermissionError):  # not ours, or of another user
            continue


def _discard(work: Path, target: Path) -> None:
    """Remove a working folder; what it moved out of the way goes back if nothing took its place."""
    previous = work / f"{target.name}.previous"
    if previous.exists() and not target.exists():
        try:
            previous.rename(target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
    shutil.rmtree(work, ignore_errors=True)


def _replace(made: Path, target: Path) -> None:
    """Rename `made` to `target`; a folder in the way is moved beside `made` first."""
    previous = made.with_name(f"{target.name}.previous")
    while True:  # again only if another process puts a folder there in the same instant
        try:
            made.replace(target)
        except OSError as error:
            if made.is_file() or error.errno not in _TAKEN:
                raise
        else:
            break
        shutil.rmtree(previous, ignore_errors=True)
        with suppress(FileNotFoundError):
            target.rename(previous)
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _link(made: Path, target: Path) -> None:
    """Put the file `made` at `target`, unless there is one."""
    try:
        os.link(made, target)
    except FileExistsError:
        return
    except OSError:  # a file system without links, where the last of those that begin at once wins
        _replace(made, target)
    _sync(target.parent)


def _flush(path: Path) -> None:
    """Hand a file, or a folder and all that it holds, to the disk."""
    for part in (*path.rglob("*"), path):
        _sync(part)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def hdf5(
    path: Path, mode: Literal["w", "r+"] = "w"
) -> Iterator[tuple[h5py.File, Callable[[Iterable[T]], Iterator[T]]]]:
    """Yield an HDF5 file to write, and a filter that passes chunks on for as long as the disk takes them.

    Where the disk is full this ends in an OSError. HDF5 by itself would end the process: it cannot
    close a file whose last values could not be written.
    """
    with _Patient(path, "w+" if mode == "w" else mode) as raw:

        def until_full(chunks: Iterable[T]) -> Iterator[T]:
            for chunk in chunks:
                yield chunk
                raw.check()

        with h5py.File(raw, mode) as file:
            yield file, until_full
        raw.check()


class _Patient(io.FileIO):
    """A file that keeps in memory what the disk refuses, from the first failure on."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        """Write all of `data` here."""
        start, view, done = self.tell(), memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                self.check()
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
            self.kept.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read what was written last; a hole is zeros."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        got = super().readinto(view)
        view[got:] = bytes(len(view) - got)
        for at, piece in self.kept:
            low, high = max(at, start), min(at + len(piece), start + len(view))
            if low < high:
                view[low - start : high - start] = piece[low - at : high - at]
        self.seek(start + len(view))
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position; the end is that of what was written or kept."""
        if whence == os.SEEK_END:
            end = super().seek(0, whence)
            return super().seek(offset + max([end, *(at + len(p) for at, p in self.kept)]))
        return super().seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or let it grow."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = error
            return size or 0


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header as one safetensors file, with a hash that shows changes."""
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(info)
    header = {"info": text, "sha256": digest(plain, text)}
    # as bytes, because the library's own writer makes files that only their owner can read
    path.write_bytes(save(plain, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    StoreError
        If the file is absent, cut short, changed since it was written, or not safetensors.
    """
    try:
        return tensors_of(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): it was cut short, or changed since it was written. "
            "Remove it, or put a whole copy in its place."
        ) from error


def tensors_of(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header in the content of a file, or raise what is wrong with it."""
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("sha256") != digest(tensors, metadata.get("info", "")):
        raise ValueError("its hash differs")
    return tensors, json.loads(metadata["info"])


def read_once(path: Path, most: int) -> bytes:
    """Return the content of a file of at most so many bytes, following no link.

    Raises
    ------
    StoreError
        If it is absent, no plain file, or larger.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise StoreError(f"{path} is absent or a link ({error.strerror}).") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is no file.")
        if status.st_size > most:
            raise StoreError(
                f"{path} has {counted(status.st_size, 'byte')}, expected {most:,} at the most."
            )
        return file.read(status.st_size)


def digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """Return a hash of names, types, shapes, values and header."""
    made = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


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
