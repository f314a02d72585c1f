"""What a reader must know of a forecast: times without cells, paths that blow up, values out of range."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...data.batch import CellBatch
from ...data.horizon import NEAR, ForecastWarning, plain, refuse_far
from ...errors import BlowUpError, counted, warn
from ...schema import Spec
from .frame import Frame


def refuse_distant(spec: Spec, frame: Frame, times: Tensor) -> None:
    """Warn of times beyond those of the fit.

    Raises
    ------
    ConfigError
        If they are far beyond.
    """
    first, last = frame.clock.tolist()
    asked = float(times.amin()), float(times.amax())
    beyond = max(first - asked[0], asked[1] - last) / float(frame.length)
    of_fit, of_question = (
        " to ".join(plain(*spec.outside("time", pair))) for pair in ((first, last), asked)
    )
    refuse_far(
        f"Paths are asked for from time {of_question}, from where their cells are, and the cells of the "
        f"fit have times from {of_fit}",
        beyond,
    )


def warn_lost(spec: Spec, found: Tensor, start: Tensor, batch: CellBatch) -> None:
    """Warn of paths that blew up, which are NaN from then on.

    Raises
    ------
    BlowUpError
        If all did.
    """
    lost = found.isnan().any(2).any(1).nonzero()[:, 0].tolist()
    if not lost:
        return
    name, row = f"the path of cell {int(batch.rows[lost[0]])}", lost[0]
    begun = float(spec.outside("time", float(batch["time"][row])))
    if len(lost) == len(batch):
        raise BlowUpError(row, begun, start[row], name)
    warn(
        f"The solver failed in {len(lost)} of {counted(len(batch), 'path')}, with NaN from then on. "
        f"One is {name}, which begins at time {plain(begun)[0]}.",
        ForecastWarning,
    )


def warn_held(spec: Spec, frame: Frame, found: Tensor, held: Tensor) -> None:
    """Warn of values that would have left the range that they are held in, and by how much."""
    width = (frame.highest - frame.lowest).clamp(min=1e-6)
    excess = ((found - held).abs() / width).nan_to_num(0.0)
    n = int((excess > NEAR).sum())
    if not n:
        return
    at = np.unravel_index(int(excess.argmax()), excess.shape)
    gene = spec.features[spec.either("expression", "counts")][at[-1]]
    warn(
        f"Of {counted(held.numel(), 'forecast value')}, {n:,} would leave the range that a gene has in the "
        f"cells of the fit by more than {NEAR:.0%} of it. Such values are held at its end: the furthest is "
        f"{gene}, {float(found[at]):.4g} held at {float(held[at]):.4g}.",
        ForecastWarning,
    )
