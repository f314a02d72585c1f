"""Tables of a page: rows are measured once each, and written by a script."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from chreode.version import code_hash

from .common import ROOT, Row, append, read, same_numbers, say, write_section

DATA = ROOT.parent / "shared" / "data"


def measure(package: str, tables: Sequence[str], description: str | None) -> None:
    """Measure what has no row yet, of the tables named on the command line.

    Parameters
    ----------
    package
        Folder of `benchmarks`. Each table is a module of it with ``cases()``,
        ``measure(case, data, kept)`` and ``render(rows)``. A row that other code made is measured again
        and gives way to the new one, unless the command line says ``--any-code`` or `same_numbers`
        holds that code.
    """
    parser = argparse.ArgumentParser(description=description)
    # the empty list is the default, which argparse checks too
    parser.add_argument("tables", nargs="*", choices=[[], *tables], help="default: all")
    parser.add_argument(
        "--only", nargs="+", default=[], help="words that a case, as printed, must contain"
    )
    here = ROOT / "benchmarks" / package
    parser.add_argument("--rows", type=Path, default=here, help="folder of the rows")
    parser.add_argument("--data", type=Path, default=DATA, help="real data")
    parser.add_argument(
        "--kept", type=Path, default=ROOT / ".cache" / package, help="folder that keeps fits"
    )
    parser.add_argument(
        "--any-code", action="store_true", help="leave rows that other code made as they are"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.tables or tables:
        table, rows = _module(package, name), given.rows / f"{name}.jsonl"
        for case in table.cases():
            told = ", ".join(f"{k} {v}" for k, v in case.items()) + "."
            if not all(word in told for word in given.only):
                continue
            # another run may have added rows meanwhile
            made = [row for row in read(rows) if row["case"] == case]
            if any(map(stands, made)) or (made and given.any_code):
                continue
            say(f"{name}: {told}")
            start = time.perf_counter()
            found: Row = table.measure(case, given.data, given.kept)
            append({"case": case, "took": time.perf_counter() - start, **found}, rows)
            say(f"{name}: {told} {time.perf_counter() - start:.0f} s")


def stands(row: Row) -> bool:
    """Return whether today's code would give the numbers of a row."""
    return row.get("code") in {code_hash(), *same_numbers()}


def shown(package: str, name: str) -> tuple[list[Row], str]:
    """Return the rows of a table, and what is to be said of those that wait to be measured again.

    Rows of older code stand in no table with today's: what changed may be the yardstick.
    """
    cases = _module(package, name).cases()
    rows = [r for r in read(ROOT / "benchmarks" / package / f"{name}.jsonl") if r["case"] in cases]
    rows.sort(key=lambda row: cases.index(row["case"]))  # not as it happened to be measured
    good = [row for row in rows if stands(row)]
    missing = sum(all(row["case"] != case for row in good) for case in cases)
    if not missing:
        return good, ""
    told = f"**Not measured by today's code yet: {missing} of {len(cases)} rows.**"
    return good or rows, told if good or not rows else f"{told} The table is of older code."


def write(package: str, tables: Sequence[str], page: Path) -> None:
    """Write the tables of a page from their rows; no number is typed by hand."""
    for name in tables:
        rows, waiting = shown(package, name)
        lines = _module(package, name).render(rows) if rows else []
        write_section(page, name, "\n".join([*lines, "", waiting]).strip())


def _module(package: str, name: str):  # type: ignore[no-untyped-def]  # a table is duck-typed
    return importlib.import_module(f"benchmarks.{package}.{name}")
