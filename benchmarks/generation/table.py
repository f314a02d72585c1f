"""Write the tables and the figure of docs/generation.md from the rows; no number is typed by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, read, write_section
from benchmarks.generation.run import HERE, TABLES

PAGE = ROOT / "docs" / "generation.md"


def section(name: str) -> str:
    """Return a table of the page."""
    rows = read(HERE / f"{name}.jsonl")
    if not rows:
        return "Not measured yet."
    return "\n".join(importlib.import_module(f"benchmarks.generation.{name}").render(rows)).strip()


def main() -> None:
    for name in TABLES:
        write_section(PAGE, name, section(name))
    if rows := read(HERE / "guidance.jsonl"):
        importlib.import_module("benchmarks.generation.guidance").draw(
            rows, PAGE.parent / "figures" / "guidance.svg"
        )


if __name__ == "__main__":
    main()
