"""Write the tables of docs/selfsupervised.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT
from benchmarks.selfsupervised.run import TABLES
from benchmarks.tables import write

if __name__ == "__main__":
    write("selfsupervised", TABLES, ROOT / "docs" / "selfsupervised.md")
