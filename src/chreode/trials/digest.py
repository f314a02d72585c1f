"""What a result depends on, as hashes: data, options, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from ..data.cells import Cells
from ..schema import MATRIX_ROLES
from ..version import __version__, code_hash

#: Rows of a matrix that are hashed in one go.
_ROWS = 4096


def provenance(cells: Cells) -> dict[str, Any]:
    """Return what a number depends on and a reader needs to repeat it: data, schema, versions, threads."""
    return {
        "data": fingerprint(cells), "schema": cells.schema.as_dict(),
        "chreode": __version__, "code": code_hash(), "torch": torch.__version__,
        "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def fingerprint(cells: Cells) -> str:
    """Return a hash of the names of the cells and the values of every role."""
    parts: list[Any] = [pd.Series(cells.names)]
    for role in cells.places:
        if role.partition("/")[0] in MATRIX_ROLES:
            values, names = cells.matrix(role)
            parts += [values, pd.Series(names)]
        else:
            parts.append(cells.column(role))
    return digest(*parts)


def digest(*parts: Any) -> str:
    """Return a hash of matrices (in memory, or on disk), columns, and anything that JSON can hold.

    Examples
    --------
    >>> digest({"n_latent": 10}) == digest({"n_latent": 10}) != digest({"n_latent": 11})
    True
    """
    made = hashlib.sha256()
    for part in parts:
        for array in _arrays(part):
            made.update(f"{array.dtype} {array.shape}".encode())
            made.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return made.hexdigest()[:16]


def _arrays(part: Any) -> Iterator[np.ndarray]:
    """Yield what `part` is made of; a matrix by rows, as one on disk may not fit into memory."""
    if isinstance(part, pd.Series):
        yield pd.util.hash_pandas_object(part, index=False).to_numpy()
    elif len(getattr(part, "shape", ())) == 2:
        yield np.array(part.shape)
        for start in range(0, part.shape[0], _ROWS):
            rows = part[np.arange(start, min(start + _ROWS, part.shape[0]))]
            if sp.issparse(rows):
                yield from (np.diff(rows.indptr).astype(np.int64), rows.indices.astype(np.int64))
            yield rows.data if sp.issparse(rows) else rows
    else:
        json_able = not isinstance(part, np.ndarray)
        yield (
            np.frombuffer(json.dumps(part, sort_keys=True).encode(), np.uint8)
            if json_able
            else part
        )
