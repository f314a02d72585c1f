"""Files from strangers: refused, before anything is decoded, if they do more than hold cells."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from ..errors import StoreError

#: Codecs of zarr that only turn bytes into bytes, or into numbers and text. Others can run code ("pickle").
CODECS = frozenset({
    "adler32", "astype", "base64", "bitround", "blosc", "bytes", "bz2", "categorize", "crc32", "crc32c",
    "delta", "endian", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "json2", "lz4", "lzma",
    "packbits", "pcodec", "quantize", "sharding_indexed", "shuffle", "transpose", "vlen-array",
    "vlen-bytes", "vlen-utf8", "zfpy", "zlib", "zstd",
})  # fmt: skip
#: Groups within groups; HDF5 looks each up from the first one, so that thousands take hours.
_DEEPEST = 100
_METADATA = (".zarray", ".zmetadata", "zarr.json")
#: How files of cells are called.
SUFFIXES = (".h5ad", ".h5mu", ".zarr")


class _Way(NamedTuple):
    """How a file of another format becomes an .h5ad: what reads it, and what to know of the result."""

    read: str
    known: str = "Raw counts are then in X."


_GENES = "Raw counts, if it holds them, are then in X. If its rows are genes, add .T to the call."
#: By the end of the name. Those of text are read as they are if they are packed by gzip.
_TEXT = {
    "matrix.mtx": _Way("scanpy.read_10x_mtx({folder!r}{prefix})"),
    ".mtx": _Way(
        "anndata.io.read_mtx({file!r})",
        "It has no names: set a.obs_names and a.var_names from the files beside it. If its rows are "
        "genes, add .T to the call.",
    ),
    ".csv": _Way("anndata.io.read_csv({file!r})", _GENES),
    ".tsv": _Way("anndata.io.read_csv({file!r}, delimiter='\\t')", _GENES),
    ".txt": _Way("anndata.io.read_text({file!r})", _GENES),
}
_BINARY = {
    ".h5": _Way(
        "scanpy.read_10x_h5({file!r})",
        "Raw counts are then in X. If anndata wrote the file, rename it to {new!r} instead.",
    ),
    ".loom": _Way(
        "anndata.io.read_loom({file!r})",
        "It needs the package loompy. chreode check {new!r} shows where the raw counts are.",
    ),
}
_R = {
    ".h5seurat": _Way(
        "SeuratDisk::Convert({file!r}, dest = 'h5ad')",
        "Raw counts are then in raw; they are lost if the object has scale.data.",
    ),
    ".rds": _Way(
        "anndataR::write_h5ad(readRDS({file!r}), {new!r})",
        "chreode check {new!r} shows where the raw counts are.",
    ),
}


def refuse_other_formats(path: Path) -> None:
    """Refuse a fitted model, and a name that is not one of a file of cells; say which call converts it.

    Raises
    ------
    StoreError
        If it is a model, or ends in none of `SUFFIXES`.
    """
    if (path / "model.json").is_file():
        raise StoreError(f"{str(path)!r} is a fitted model; a file of cells was expected here.")
    if path.suffix not in SUFFIXES:
        raise StoreError(
            f"{str(path)!r}: expected a name that ends in .h5ad, .h5mu or .zarr.{_converted(path)}"
        )


def _converted(path: Path) -> str:
    """Return what to do with a file, or a folder of 10x, of another format; nothing if it is not known."""
    if path.is_dir():
        path = next(iter(sorted(path.glob("*matrix.mtx*"))), path)
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    if plain != name and plain.endswith((*SUFFIXES, *_BINARY, *_R)):
        return f" Unpack it first: gunzip {str(path)!r}."
    ways = {**_TEXT, **_BINARY, **_R}
    end = next((end for end in ways if plain.endswith(end)), None)
    if end is None:
        return ""
    words = {
        "file": str(path), "folder": str(path.parent),
        "new": str(path.with_name(path.name[: len(plain)]).with_suffix(".h5ad")),
    }  # fmt: skip
    before = path.name[: plain.rfind(end)]
    call = ways[end].read.format(**words, prefix=f", prefix={before!r}" if before else "")
    known = ways[end].known.format(**words)
    if end in _R:
        return f" Convert it once, in R: {call}. {known} See docs/with-scanpy.md."
    return (
        f" Convert it once, in Python: import {call.partition('.')[0]}; a = {call}; "
        f"a.var_names_make_unique(); a.write_h5ad({words['new']!r}). {known} See docs/with-scanpy.md."
    )


def refuse_foreign(path: Path) -> None:
    """Refuse a file of cells that points out of itself, or names a codec that could run code.

    Raises
    ------
    StoreError
        If an HDF5 file has external links, external storage or virtual data sets, or a folder of zarr has
        links, anything that is neither a file nor a folder, or filters and compressors not in `CODECS`.
    """
    if path.is_dir():
        for file in _files(path):
            if file.name in _METADATA:
                refuse_codecs(str(file), _metadata(file))
    elif path.suffix != ".zarr":
        with h5py.File(path, "r") as root:
            refuse_elsewhere(root)


def _files(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, and refuse what is no plain file or folder."""
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            item = Path(at, name)
            mode = item.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise StoreError(
                    f"{item} is a link: chreode follows none inside a .zarr, since it could lead to any "
                    "file of yours. Put a copy of what it should be in its place."
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StoreError(f"{item} is no plain file. Remove it from the .zarr.")
            if name in files:
                yield item


def _metadata(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(
            f"{file} is no JSON ({error}): the folder is damaged. Copy or download it again."
        ) from error


def refuse_codecs(name: str, metadata: Any) -> None:
    """Refuse metadata of zarr, of format 2 or 3, that names a codec not in `CODECS`."""
    for codec in _codecs(metadata):
        if not isinstance(codec, str) or codec.removeprefix("numcodecs.") not in CODECS:
            raise StoreError(
                f"{name} is to be decoded with {codec!r}, which chreode does not run on files that others "
                "may have made. If you trust it, read it with zarr, and write it anew."
            )


def _codecs(metadata: Any) -> Iterator[Any]:
    """Yield the names of all codecs in metadata, those inside of codecs and of other nodes included."""
    if isinstance(metadata, Mapping):
        for key, value in metadata.items():
            if key in ("filters", "compressor", "codecs", "index_codecs"):
                for codec in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(codec, Mapping):
                        yield codec.get("id", codec.get("name"))
                    elif codec is not None:
                        yield codec
            if key not in ("attributes", ".zattrs"):
                yield from _codecs(value)
    elif isinstance(metadata, (list, tuple)):
        for value in metadata:
            yield from _codecs(value)


def refuse_elsewhere(root: h5py.File | h5py.Group) -> None:
    """Refuse an open HDF5 file that takes data from other files, or is nested without end."""
    seen, groups = set(), [(root, 0)]
    while groups:
        group, depth = groups.pop()
        if depth > _DEEPEST:
            raise StoreError(
                f"{group.file.filename} holds groups within groups, more than {_DEEPEST} deep: it is no file "
                "that anndata wrote. Ask for one that is."
            )
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            kind = _link(group, name)
            if kind is h5py.SoftLink:
                continue  # to a place in this file, which is looked at where it is
            if kind is not h5py.HardLink:
                _refuse(group, name, "a link to another file")
            try:
                item = group[name]
            except (KeyError, OSError, TypeError, ValueError):
                continue  # unreadable, so it leads nowhere; reading it is an error later
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                if item.external:
                    _refuse(group, name, f"stored in another file ({item.external[0][0]})")
                if item.is_virtual:
                    _refuse(group, name, "a virtual data set, made of parts of other files")


def _link(group: h5py.Group, name: str) -> type | None:
    try:
        found: type = group.get(name, getlink=True, getclass=True)
    except TypeError:  # a kind of link that HDF5 leaves to plug-ins
        return None
    return found


def _refuse(group: h5py.Group, name: str, why: str) -> None:
    raise StoreError(
        f"{group.file.filename}:{group.name.rstrip('/')}/{name} is {why}. chreode reads what is in the file "
        "alone, since it could be any file of yours. Ask for a file that holds its own data."
    )
