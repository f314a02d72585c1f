"""How a fit stood when it stopped: one word of four."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np

State: TypeAlias = Literal["still improving", "overfitted", "moving target", "rested"]

#: What each word means, in a sentence that begins with the fit; what matters most comes first.
STATES: dict[str, str] = {
    "still improving": "was still improving when it stopped: train it for longer before you judge it",
    "overfitted": "had been better on the validation cells before it stopped",
    "moving target": "followed a target that moves as it learns: its objective tells neither whether it had "
    "converged nor whether it overfitted, and its last weights are kept",
    "rested": "had stopped improving when it ended",
}
#: Those that a reader must know of before relying on a fit.
DOUBTFUL: tuple[State, ...] = ("still improving", "overfitted")
#: Share of what was gained after the first tenth which counts as nothing.
SHARE = 0.005
#: Epochs of noise from which its size can be estimated.
_ENOUGH = 10


def worst(states: Iterable[State]) -> State:
    """Return the state that a reader must know of first; of none, "rested"."""
    return min(states, key=list(STATES).index, default="rested")


def state_of(objective: Sequence[float], *, held_out: bool, warm_up: int = 0) -> State:
    """Return the state of a fit from its objective by epoch, the lower the better.

    The objective is averaged over a tenth of the epochs. It was *still improving* if the last tenth is
    below the tenth before, and had *overfitted* if the last tenth is above the lowest one, both by more
    than three standard errors and by more than `SHARE` of what was gained after the first tenth, in which
    a start far from any cell is left behind; a climb in between is nothing to be gained back. A single
    epoch tells nothing and counts as still improving.

    Parameters
    ----------
    objective
        Of one and the same function of the weights: no weight of a term may change along it.
    held_out
        Whether it is of cells that were not learned from. Only those can tell of overfitting.
    warm_up
        Epochs at the start that minimised something else. None of them is the lowest.

    Examples
    --------
    >>> state_of([3.0, 2.0, 1.0], held_out=True)
    'still improving'
    >>> state_of([3.0, 1.0, 1.0], held_out=True)
    'rested'
    >>> state_of([3.0, 1.0, 2.0], held_out=True)
    'overfitted'
    """
    values = np.array(objective, float)
    finite = np.isfinite(values)
    if len(values) < 2 or not finite.any():
        return "still improving"
    values[~finite] = values[finite].max()
    width = max(1, len(values) // 10)
    means = np.convolve(values, np.full(width, 1 / width), "valid")
    end, lowest = means[-1], means[min(warm_up, len(means) - 1) :].min()
    error = _noise(values[len(values) // 2 :]) * (2 / width) ** 0.5
    gained = means[: width + 1].min() - lowest
    least = max(SHARE * gained, 3 * error)
    if held_out and end - lowest > least:
        return "overfitted"
    return "still improving" if means[-1 - width] - end > least else "rested"


def _noise(values: np.ndarray) -> float:
    """Return the standard deviation of what is not smooth; second differences know no trend."""
    if len(values) < _ENOUGH:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2)))) / (0.6745 * 6**0.5)


def read_state(row: Any) -> State:
    """Return the state that a saved row tells, also one of the time when there were two words."""
    if "state" not in row:
        return "rested" if row["converged"] else "still improving"
    if row["state"] not in STATES:
        raise ValueError(f"{row['state']!r} is no state of a fit")
    return cast(State, row["state"])
