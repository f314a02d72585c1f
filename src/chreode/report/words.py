"""What a report says of seeds, fits, times and rows, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..compute.convergence import State
from ..metrics.table import ScoreTable

#: What stands for a value that is not there.
ABSENT = "–"
#: How a fit ended, for a cell of a table.
ENDED: dict[State, str] = {
    "still improving": "the fit was still improving",
    "overfitted": "the fit overfitted",
    "moving target": "not known: its target moves",
    "rested": "the fit had stopped improving",
}


def listed(lines: Iterable[str]) -> str:
    """Return lines as a list of `Section.text`."""
    return "\n".join(f"- {line}" for line in lines)


def joined(names: Iterable[object]) -> str:
    """Return names as they are said.

    Examples
    --------
    >>> joined(["PCA", "Harmony", "scVI"])
    'PCA, Harmony and scVI'
    """
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    """Return a time with two digits.

    Examples
    --------
    >>> [duration(s) for s in (0.0, 1.25, 75.0, 600.0, 9000.0)]
    ['under 0.1 s', '1.2 s', '75 s', '10 min', '2.5 h']
    """
    if np.isnan(seconds):
        return ABSENT
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def yardsticks(bench: ScoreTable) -> str:
    """Say which rows of a bench are the ceiling and the baselines."""
    role = bench.methods["role"]
    ceilings, baselines = (role.index[role == name] for name in ("ceiling", "baseline"))
    sentence = (
        f"The ceiling is {joined(ceilings)}" if len(ceilings) else "This bench has no ceiling"
    )
    if not len(baselines):
        return f"{sentence}; there is no baseline."
    verb = "are" if len(baselines) > 1 else "is"
    return f"{sentence}; the baseline{'s' * (len(baselines) > 1)} {verb} {joined(baselines)}."


def best_of(bench: ScoreTable, metrics: Sequence[str]) -> str:
    """Say which value of each metric is the best.

    Metrics of which none is the best are left out.
    """
    best = bench.metrics.loc[list(metrics), "best"].dropna()
    if best.empty:
        return ""
    if best.nunique() == 1:
        return f"{best.iloc[0]:g} is best."
    names = bench.metrics["name"]
    return f"The best value is {joined(f'{v:g} for {names[m]}' for m, v in best.items())}."
