"""Measure what has no row yet, of the tables named; kill and repeat at will."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.tables import measure

#: Of simulated latents, and of cells; in the order of their pages. `digits` is a script of its own.
LABORATORY = ("sphere", "ratios", "dimensions", "theorems", "further")
CELLS = ("cells", "covered")


if __name__ == "__main__":
    measure("identify", (*LABORATORY, *CELLS), __doc__)
