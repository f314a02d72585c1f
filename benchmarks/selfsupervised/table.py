"""Write the tables of docs/selfsupervised.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, write_section
from benchmarks.selfsupervised.methods import CLASSES, of_model
from benchmarks.selfsupervised.run import TABLES
from benchmarks.tables import shown, write

DOCS = ROOT / "docs"


def main() -> None:
    write("selfsupervised", TABLES, DOCS / "selfsupervised.md")
    rows, _ = shown("selfsupervised", "methods")
    for name, cls in CLASSES.items():
        if not name.startswith("scVI"):
            text = "\n".join(of_model(rows, name))
            write_section(DOCS / "models" / f"{cls.key}.md", "bench", text)


if __name__ == "__main__":
    main()
