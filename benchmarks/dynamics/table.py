"""Write the tables of docs/dynamics.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT
from benchmarks.dynamics.run import TABLES
from benchmarks.tables import write

if __name__ == "__main__":
    write("dynamics", TABLES, ROOT / "docs" / "dynamics.md")
