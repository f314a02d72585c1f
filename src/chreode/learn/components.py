"""A view of the cells that has their principal components beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.source import Source
from ..nn.sparse import centred_times
from .exact import principal
from .phase import Session, Split


def components(
    k: int, column: str = "components"
) -> Callable[[Any, Source, Split, Session], tuple[Source, Split]]:
    """Return the view of a phase (see `Phase`) in which cells have k principal components as a column.

    They are those of the log-expression of the training rows, and held-out rows are projected on them.
    """

    def view(
        module: Any,  # noqa: ARG001 (the contract)
        source: Source,
        split: Split,
        run: Session,
    ) -> tuple[Source, Split]:
        found = principal(lambda: source.batches(split.train), k, run.rng)
        table = np.full((len(source), k), np.nan)
        for rows in source.pieces(np.union1d(split.train, split.validation)):
            x = source.batch(rows).stored_expression()
            table[rows] = centred_times(x, found.mean, found.axes).numpy()
        return replace(source, columns={**source.columns, column: table}), split

    return view
