"""Write the tables and the figure of docs/generation.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, read
from benchmarks.generation import guidance, methods
from benchmarks.generation.run import TABLES
from benchmarks.tables import write

PAGE = ROOT / "docs" / "generation.md"


def main() -> None:
    write("generation", TABLES, PAGE)
    if rows := read(Path(__file__).parent / "guidance.jsonl"):
        guidance.draw(rows, PAGE.parent / "figures" / "guidance.svg")
    methods.draw(
        read(Path(__file__).parent / "methods.jsonl"), PAGE.parent / "figures" / methods.FIGURE
    )


if __name__ == "__main__":
    main()
