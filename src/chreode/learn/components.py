"""A view of the cells that has their principal components beside them, and which cells can have these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.sampler import Rows
from ..data.source import Source
from ..nn.sparse import centred_times
from .exact import principal
from .phase import Session, Split


def having_expression(source: Source, rows: Rows) -> Rows:
    """Return those of some rows in which expression was measured: cells without it are no cells of zeros."""
    found: Rows = rows[source.measured(source.spec.either("expression", "counts"))[rows]]
    return found


def components(
    k: int, column: str = "components"
) -> Callable[[Any, Source, Split, Session], tuple[Source, Split]]:
    """Return the view of a phase (see `Phase`) in which cells have k principal components as a column.

    They are those of the log-expression of the training rows, and held-out rows are projected on them.
    Cells without expression have none: NaN.
    """

    def view(
        module: Any,  # noqa: ARG001 (the contract)
        source: Source,
        split: Split,
        run: Session,
    ) -> tuple[Source, Split]:
        train, held_out = (having_expression(source, r) for r in (split.train, split.validation))
        found = principal(lambda: source.batches(train), k, run.rng)
        table = np.full((len(source), k), np.nan)
        for rows in source.pieces(np.union1d(train, held_out)):
            x = source.batch(rows).stored_expression()
            table[rows] = centred_times(x, found.mean, found.axes).numpy()
        return replace(source, columns={**source.columns, column: table}), split

    return view
