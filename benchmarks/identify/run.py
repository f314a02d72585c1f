"""Measure what has no row yet, of the tables named; kill and repeat at will."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.tables import measure

#: In the order of the page.
TABLES = ("cells", "covered")


if __name__ == "__main__":
    measure("identify", TABLES, __doc__)
