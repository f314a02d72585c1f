"""Open a data object and find the places a schema names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from anndata import AnnData
from mudata import MuData

from ..config.arguments import checked
from ..errors import ConfigError, StoreError
from .disk import refuse_elsewhere_in
from .files import OnDisk, open_file, stored_bytes
from .stack import stack

Data: TypeAlias = AnnData | MuData | OnDisk

#: Bytes of a file, uncompressed, up to which a path is read into memory.
IN_MEMORY = 2**30


@checked
def open(  # noqa: A001 (called as ch.open)
    paths: str | Path | Sequence[str | Path], *, join: Literal["same", "inner"] = "same"
) -> OnDisk:
    """Open cells that are larger than memory: tables are read, matrices stay in their files.

    What comes back is taken wherever an AnnData is. Nothing is ever written to the files.

    Parameters
    ----------
    paths
        An .h5ad, .h5mu or .zarr; or several .h5ad and .zarr, whose cells are taken as one. The cells
        get the number of their file behind their names (``-0``, ``-1``) if a name occurs twice.
    join
        What several files must share: ``"same"`` features, in any order, or ``"inner"``: those that
        all of them have. The order is that of the first file.

    Raises
    ------
    StoreError
        If a file is absent, cut short or of another kind.
    SchemaError
        If features are not the same.
    """
    if isinstance(paths, str | Path):
        return open_file(Path(paths))
    if not paths:
        raise StoreError("open() was given no file.")
    return stack([open_file(Path(path)) for path in paths], join)


def read(data: Data | str | Path) -> Data:
    """Return the cells; a path is opened.

    What roles name is read into memory once it is asked for, or left in a file larger than `IN_MEMORY`.

    Raises
    ------
    StoreError
        If the file is absent, cut short, of another kind, or takes data from other files.
    """
    if isinstance(data, AnnData) and data.isbacked and data.is_view:
        raise StoreError(
            "This is a part of data on disk. Give the whole and choose cells with rows=…, "
            "or load the part first: data.to_memory()."
        )
    if isinstance(data, AnnData | MuData):
        _refuse_elsewhere(data)
    if isinstance(data, AnnData | MuData | OnDisk):
        return data
    if not isinstance(data, str | Path):
        raise StoreError(f"Expected an AnnData, a MuData or a path, got {type(data).__name__}.")
    path = Path(data)
    return open_file(path, light=stored_bytes(path) <= IN_MEMORY)


def refuse_over(data: Data, into: str | Path | None) -> None:
    """Refuse to write a result over the file that its cells are read from, or into its folder."""
    if into is None:
        return
    for part in (data, *getattr(data, "mod", {}).values()):
        held = getattr(part, "filename", None) or getattr(part, "path", None)
        for file in getattr(part, "files", ()) or filter(None, [held]):
            if Path(into).resolve().is_relative_to(Path(file).resolve()):
                raise ConfigError(
                    f"into={str(into)!r} is where the cells are read from. Choose another."
                )


def _refuse_elsewhere(data: AnnData | MuData) -> None:
    for part in (data, *getattr(data, "mod", {}).values()):
        if isinstance(part, AnnData):
            raw = []
            with suppress(AttributeError):  # an open file lost it: naming it is an error later
                raw = [part.raw.X] if part.raw is not None else []
            for values in (part.X, *raw, *part.layers.values(), *part.obsm.values()):
                refuse_elsewhere_in(values)
