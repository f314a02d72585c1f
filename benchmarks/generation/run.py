"""Measure what has no row yet, of the tables named; kill and repeat at will."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Row, append, read, say

HERE = Path(__file__).parent
#: In the order of the page. Each module has `cases()` and `measure(case, data, folder)`.
TABLES = ("methods", "combinations", "guidance", "solvers", "correction", "rare", "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # the empty list is the default, which argparse checks too
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="default: all")
    parser.add_argument(
        "--only", nargs="+", default=[], help="words that a case, as printed, must contain"
    )
    parser.add_argument("--rows", type=Path, default=HERE, help="folder of the rows")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="real data"
    )
    parser.add_argument(
        "--kept", type=Path, default=ROOT / ".cache" / "generation", help="folder that keeps fits"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.tables or TABLES:
        table, rows = (
            importlib.import_module(f"benchmarks.generation.{name}"),
            given.rows / f"{name}.jsonl",
        )
        for case in table.cases():
            told = ", ".join(f"{k} {v}" for k, v in case.items()) + "."
            if not all(word in told for word in given.only):
                continue
            # another run may have added rows meanwhile
            if case in [row["case"] for row in read(rows)]:
                continue
            say(f"{name}: {told}")
            start = time.perf_counter()
            found: Row = table.measure(case, given.data, given.kept)
            append({"case": case, "took": time.perf_counter() - start, **found}, rows)
            say(f"{name}: {told} {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
