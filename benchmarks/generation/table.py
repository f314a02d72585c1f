"""Write the tables and the figure of docs/generation.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, write_section
from benchmarks.generation import guidance, methods
from benchmarks.generation.run import TABLES
from benchmarks.tables import shown, write

PAGE = ROOT / "docs" / "generation.md"


def main() -> None:
    write("generation", TABLES, PAGE)
    # the rows of single options are rows of methods, and have a section of their own
    write_section(PAGE, "options", "\n".join(methods.options(shown("generation", "methods")[0])))
    for table, figure in ((guidance, "guidance.svg"), (methods, methods.FIGURE)):
        rows, _ = shown("generation", table.__name__.rpartition(".")[2])
        if rows:
            table.draw(rows, PAGE.parent / "figures" / figure)


if __name__ == "__main__":
    main()
