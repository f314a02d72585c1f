"""Write the tables of docs/selfsupervised.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, write_section
from benchmarks.selfsupervised.methods import of_model
from benchmarks.selfsupervised.run import TABLES
from benchmarks.selfsupervised.tuning import CLASSES
from benchmarks.tables import shown, write

DOCS = ROOT / "docs"


def pages() -> dict[str, Path]:
    """Return the page of every self-supervised model, by the name of its row."""
    of = {name: cls().key for name, cls in CLASSES.items() if not name.startswith("scVI")}
    return {name: DOCS / "models" / f"{key}.md" for name, key in of.items()}


def main() -> None:
    write("selfsupervised", TABLES, DOCS / "selfsupervised.md")
    rows, waiting = shown("selfsupervised", "methods")
    for name, page in pages().items():
        write_section(page, "bench", "\n".join([*of_model(rows, name), "", waiting]).strip())


if __name__ == "__main__":
    main()
