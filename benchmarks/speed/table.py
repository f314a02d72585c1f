"""Write the tables of docs/speed.md from the rows; no number is typed by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import ROOT, Row, folded, read, write_section
from benchmarks.speed import converged, disk, imports, linear, metrics, training
from benchmarks.speed.ratios import laps, mark, markdown, median, ratio
from benchmarks.speed.run import HERE, TABLES, rows_file, table

PAGE = ROOT / "docs" / "speed.md"
#: Minibatch of the training steps that the first table shows.
FEW = 128


def section(name: str, rows: list[Row]) -> str:
    """Return a table for every machine and number of threads that there are rows of."""
    places = dict.fromkeys((row["machine"], row["threads"]) for row in rows)
    if not places:
        return "Not measured yet."
    parts = []
    for place in places:
        here = [row for row in rows if (row["machine"], row["threads"]) == place]
        parts += ["", f"{place[0]}; threads: {place[1]}.", ""]
        parts += [*table(name).render(here), "", *folded("Versions", [f"{_versions(here)}."])]
    return "\n".join(_noted(parts)).strip()


def _noted(lines: list[str]) -> list[str]:
    """Add what a dagger means, where there is one."""
    told = "†: other programs kept more than a tenth of a core busy meanwhile."
    return [*lines, *(["", told] if any(" †" in line for line in lines) else [])]


def in_short(rows: Mapping[str, list[Row]]) -> str:
    """Return a line for each kind of work, of the first machine and number of threads, from all tables."""
    places = dict.fromkeys((r["machine"], r["threads"]) for of in rows.values() for r in of)
    if not places:
        return "Not measured yet."
    place = next(iter(places))
    here = {
        name: [row for row in of if (row["machine"], row["threads"]) == place]
        for name, of in rows.items()
    }
    header = ("", "chreode", "the other", "it needs", "ratio")
    lines = [f"{place[0]}; threads: {place[1]}.", "", *markdown(header, _works(here))]
    return "\n".join(_noted(lines))


def _works(rows: Mapping[str, list[Row]]) -> Iterator[tuple[str, ...]]:
    for row in rows["training"]:
        batch, likelihood = row["settings"]["batch_size"], row["settings"]["likelihood"].upper()
        sides = training.THEIRS.label, training.OURS[-1].label
        if batch != FEW:
            continue
        if row["settings"]["epochs"] > 1:
            steps = training.steps(row) / 1e3
            theirs, ours = (laps(row, side, "epoch") / steps for side in sides)
            what = f"training step of scVI, {likelihood}, minibatches of {batch}"
            yield what + mark(row, "epoch"), *_compared(theirs, ours, sides[0], "ms")
        else:
            theirs, ours = (training.peaks(row)[side] for side in sides)
            what = f"peak memory of a training, {likelihood}, minibatches of {batch}"
            yield what, *_compared(theirs, ours, sides[0], "MiB")
    fits = [row for row in rows["converged"] if converged.reached(row)]
    for task in dict.fromkeys(row["settings"]["task"] for row in fits):
        mine = [row for row in fits if row["settings"]["task"] == task]
        to_best, _, own = np.transpose([converged.times(row) for row in mine])
        what = f"fit of {task} to the same held-out ELBO"
        disturbed = max((mark(row, "epoch") for row in mine), key=len)
        yield what + disturbed, *_compared(to_best, own, converged.THEIRS.label, "s")
    for row in rows["metrics"]:
        theirs, ours = (laps(row, s.label, "second call") for s in (metrics.THEIRS, metrics.OURS))
        what = f"metrics of integration, {row['case']}, second call"
        yield what + mark(row, *metrics.CALLS), *_compared(theirs, ours, metrics.THEIRS.label, "s")
    for row in rows["disk"]:
        if "cold" in row["settings"]:
            theirs, ours = (laps(row, s.label, "epoch") for s in (disk.THEIRS, disk.OURS))
            what = f"epoch of minibatches from a file, {row['case']}"
            yield what + mark(row, "epoch"), *_compared(theirs, ours, disk.THEIRS.label, "s")
    for row in rows["linear"]:
        theirs, ours = (laps(row, s.label, "fit") for s in linear.SIDES[:2])
        what = f"PCA, {row['case']}" + mark(row, "fit")
        yield what, *_compared(theirs, ours, linear.THEIRS.label, "s")
    for row in rows["imports"]:
        theirs, ours = (laps(row, imports.SIDES[i].label, "import") for i in (0, 2))
        what = "import of the model" + mark(row, "import")
        yield what, *_compared(theirs, ours, imports.THEIRS.label, "s")


def _compared(theirs: np.ndarray, ours: np.ndarray, who: str, unit: str) -> tuple[str, ...]:
    """Return medians and their ratio, bold where the other needs less."""
    found = ratio(theirs, ours)
    told = f"**{found}**" if found.value < 1 else str(found)
    return f"{median(ours)} {unit}", who, f"{median(theirs)} {unit}", told


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
    rows = {name: read(rows_file(name, given.rows)) for name in TABLES}
    for name, found in rows.items():
        write_section(given.page, name, section(name, found))
    write_section(given.page, "summary", in_short(rows))


if __name__ == "__main__":
    main()
