"""Kill jobs at random moments, go on, and compare with the job that nobody disturbed, bit for bit.

    python -m benchmarks.crash.run --kills 200 --seed 0

One line of JSON per trial. Trials that are in the file of rows already are not repeated. The exit code
is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from chreode import __version__

from ..common import Row, append, machine, read, write_section
from .jobs import JOBS, make_base
from .trial import Clean, clean, must_end, trial

HERE = Path(__file__).parent


def trials(file: Path, kills: int, seed: int, names: list[str]) -> Iterator[Row]:
    """Yield the row of every trial until there are enough kills."""
    rows = read(file)
    yield from rows
    done, number = sum(map(n_kills, rows)), len(rows)
    known: dict[str, Clean] = {}
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        base = place / "base"
        base.mkdir()
        must_end(lambda: make_base(base))
        while done < kills:
            name = names[number % len(names)]
            if name not in known:
                known[name] = clean(JOBS[name], base, place / name)
            folder = place / f"trial{number}"
            row = trial(number, name, known[name], base, folder, seed)
            shutil.rmtree(folder)
            append(row, file)
            yield row
            done, number = done + n_kills(row), number + 1


def n_kills(row: Row) -> int:
    """Return how often the job was killed; a full disk is no kill."""
    return sum(not cut["how"].startswith("full disk") for cut in row["cuts"])


def section(rows: list[Row]) -> str:
    """Return the table in Markdown: a row per job."""
    jobs = {row["job"]: [r for r in rows if r["job"] == row["job"]] for row in rows}
    head = (
        "job", "trials", "kills by time", "kills at a call", "full disks", "found after it",
        "equal in the end", "losses",
    )  # fmt: skip
    table = [_line(job, of_job) for job, of_job in jobs.items()]
    lost = [text for row in rows for text in row["lost"]]
    return "\n".join(
        [
            f"chreode {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"seed {rows[0]['seed']}; {machine()}, 1 thread.",
            "",
            f"| {' | '.join(head)} |",
            "|---|---:|---:|---:|---:|---|---:|---:|",
            *table,
            _line("**all**", rows),
            *(f"\nLost: {text}" for text in lost),
        ]
    )


def _line(name: str, rows: list[Row]) -> str:
    cuts = [cut for row in rows for cut in row["cuts"]]
    kills = sum(map(n_kills, rows))
    by_time = sum(cut["how"].endswith(" s") for cut in cuts)
    found = Counter(cut["found"].partition(",")[0] for cut in cuts)
    said = ", ".join(f"{word} {n}" for word, n in sorted(found.items()))
    begun = sum("," in cut["found"] for cut in cuts)  # a checkpoint, or lines of a bench
    said += f"; {begun} with a state to go on from" if begun else ""
    equal, lost = sum(row["equal"] for row in rows), sum(len(row["lost"]) for row in rows)
    return (
        f"| {name} | {len(rows)} | {by_time} | {kills - by_time} | {len(cuts) - kills} | {said} | "
        f"{equal} of {len(rows)} | {lost} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=HERE / "rows.jsonl")
    parser.add_argument("--readme", type=Path, help="page to write the table to")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in trials(options.rows, options.kills, options.seed, options.jobs):
        print(f"{row['trial']:>4} {row['job']:<38} {len(row['cuts'])}", *row["lost"], flush=True)
        rows.append(row)
    if options.readme:
        write_section(options.readme, "crash", section(rows))
    lost = sum(len(row["lost"]) for row in rows)
    print(f"{lost} losses")
    return int(lost > 0)


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # children are forked: the parent has no threads
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    sys.exit(main())
