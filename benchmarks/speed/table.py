"""Write the tables of docs/speed.md from the rows; no number is typed by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Row, read, write_section
from benchmarks.speed.run import HERE, TABLES, rows_file, table

PAGE = ROOT / "docs" / "speed.md"


def section(name: str, rows: list[Row]) -> str:
    """Return a table for every machine and number of threads that there are rows of."""
    places = dict.fromkeys((row["machine"], row["threads"]) for row in rows)
    if not places:
        return "Not measured yet."
    parts = []
    for place in places:
        here = [row for row in rows if (row["machine"], row["threads"]) == place]
        parts += ["", f"{place[0]}; threads: {place[1]}; {_versions(here)}.", ""]
        parts += table(name).render(here)
    if any(" †" in line for line in parts):
        parts += ["", "†: others kept more than a tenth of a core busy meanwhile."]
    return "\n".join(parts).strip()


def _versions(rows: list[Row]) -> str:
    found = {
        f"{package} {version}"
        for row in rows for about in row["about"].values()
        for package, version in about["versions"].items()
    }  # fmt: skip
    return ", ".join(sorted(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=HERE, help="folder of the rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write into")
    given = parser.parse_args()
    for name in TABLES:
        write_section(given.page, name, section(name, read(rows_file(name, given.rows))))


if __name__ == "__main__":
    main()
