"""Measure what has no row yet: one case after the other, its sides in turn; kill and repeat at will."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import RIVALS, ROOT, alone, append, read, say
from benchmarks.speed.harness import Case, Folders, SideError, measure, missing

HERE = Path(__file__).parent
#: In the order of the page.
TABLES = (
    "training", "converged", "linear", "metrics", "disk", "likelihood", "imports", "selfsupervised",
)  # fmt: skip


def table(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.speed.{name}")


def rows_file(name: str, folder: Path = HERE) -> Path:
    """Return where the rows of a table are kept; remove the file, or a line, to measure anew."""
    return folder / f"{name}.jsonl"


def run(plan: list[Case], threads: int, rows: Path, folders: Folders) -> list[Case]:
    """Measure the cases, keep each row as soon as there is one, and return the cases that failed."""
    failed = []
    total = sum(case.cost for case in plan)
    folders.scratch.mkdir(parents=True, exist_ok=True)
    say(f"{len(plan)} cases to do, about {total / 60:.0f} minutes:")
    for case in plan:
        labels = " | ".join(side.label for side in case.sides)
        say(f"  {case.table}: {case.name}: {labels}; about {case.cost / 60:.1f} minutes")
    for number, case in enumerate(plan, 1):
        say(f"[{number}/{len(plan)}] {case.table}: {case.name}")
        start = time.perf_counter()
        given = table(case.table).prepare(dict(case.settings), folders)
        total -= case.cost
        try:
            row = measure(case, given, threads, folders.scratch / "workers.log", say)
        except SideError as error:
            failed.append(case)
            say(f"  FAILED: {error}")
            continue
        append(row, rows_file(case.table, rows), same=("case", "threads", "machine"))
        took = (time.perf_counter() - start) / 60
        say(f"  took {took:.1f} minutes; about {total / 60:.0f} minutes left")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # the empty list is the default, which argparse checks too
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="default: all")
    parser.add_argument(
        "--threads", type=int, choices=(1, 2), default=1, help="cores for each side"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument(
        "--any-code", action="store_true", help="leave rows that other code made as they are"
    )
    parser.add_argument(
        "--rows", type=Path, help="folder of the rows (default: beside this script)"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "chreode-speed",
        help="folder on a disk for simulated cells, 3 GB in all",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="real data, for `converged`",
    )
    given = parser.parse_args()
    if not RIVALS.exists():
        sys.exit("The rivals are not there: make rivals")
    rows = given.rows or (given.scratch / "quick" if given.quick else HERE)
    # an exception, so that workers are ended too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; run again to go on"))
    with alone():
        plan = [
            case
            for name in given.tables or TABLES
            for case in missing(
                table(name).cases(given.quick),
                read(rows_file(name, rows)),
                given.threads,
                any_code=given.any_code,
            )
        ]
        failed = run(plan, given.threads, rows, Folders(given.scratch, given.data))
    if failed:
        sys.exit("Failed: " + "; ".join(f"{case.table}: {case.name}" for case in failed))


if __name__ == "__main__":
    main()
