"""A whole transcriptome in little memory: all genes of Kang, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ..common import ROOT, Row
from ..speed.ratios import markdown
from .tasks import development, titled

GENERATED = 20_000


def cases() -> list[Row]:
    return [{"task": "kang, all genes", "seed": 0}]


def measure(case: Row, data: Path, kept: Path) -> Row:
    kept.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation.whole", str(data), str(kept), str(case["seed"])],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return {**development(case), **found}


def alone(data: Path, kept: Path, seed: int) -> Row:
    import anndata
    import torch

    import chreode as ch

    from .fits import MINUTES, budgeted
    from .tasks import TASKS

    torch.set_num_threads(1)
    cells = TASKS["kang"].read(data / TASKS["kang"].file)
    model, budget = budgeted(ch.CFGen(), cells, TASKS["kang"].schema, None)
    start = time.perf_counter()
    fitted = model.fit(cells, TASKS["kang"].schema, seed=seed, progress=False)
    trained = time.perf_counter() - start
    place = kept / "whole.h5ad"
    place.unlink(missing_ok=True)
    start = time.perf_counter()
    fitted.generate(GENERATED, seed=seed, into=place, progress=False)
    seconds = time.perf_counter() - start
    made = anndata.read_h5ad(place, backed="r")
    assert made.shape == (GENERATED, cells.n_vars)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {
        "genes": cells.n_vars, "cells": cells.n_obs, "minutes": MINUTES, **budget,
        "train_seconds": trained, "cells_per_second": GENERATED / seconds,
        "peak_mib": peak / 1024, "file_mib": place.stat().st_size / 2**20,
    }  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    lines = [
        (
            titled(row["case"]["task"]), f"{row['cells']:,} x {row['genes']:,}",
            " + ".join(map(str, row["epochs"])),
            f"{row['train_seconds']:.0f}", f"{row['cells_per_second']:,.0f}", f"{row['peak_mib']:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    header = ("", "cells x genes", "epochs", "training, s", "generated, cells/s", "peak, MiB")
    return markdown(header, lines)


if __name__ == "__main__":
    folder, cache, number = sys.argv[1:]
    print(json.dumps(alone(Path(folder), Path(cache), int(number))))
