"""Results as JSON, one line per task, method and seed; every number of the tables comes from here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("rows.jsonl")
Row = dict[str, Any]


def read(path: Path = FILE) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def append(row: Row, path: Path = FILE) -> None:
    """Write aside and rename, so that a run killed here loses no row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    lines = [json.dumps(r) for r in [*read(path), row]]
    aside.write_text("\n".join(lines) + "\n")
    aside.replace(path)
