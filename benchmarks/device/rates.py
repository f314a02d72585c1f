"""Trainings on a CUDA card: cells per second, memory, and how near they come to what the card can do."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anndata
import torch
from benchmarks.common import Row, append
from benchmarks.speed.data import simulated

import chreode as ch
from chreode.models import cfgen

CELLS, GENES = 50_000, 2_000
EPOCHS = 3  # the first warms up
ROLES = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type")
MODELS: dict[str, Any] = {
    "SCVI": lambda **sizes: ch.SCVI(max_epochs=EPOCHS, **sizes),
    "CFGen": lambda **sizes: ch.CFGen(max_epochs=EPOCHS, flow_epochs=EPOCHS, **sizes),
}


def cases() -> list[Row]:
    """Return what is measured, in the order of the page."""
    on_the_card = [
        {"model": model, "batch": batch, "precision": precision, "device": "cuda"}
        for model in MODELS
        for batch in (128, 512, 4096)
        for precision in ("fp32", "bf16")
    ]
    beside = [
        {"model": model, "batch": 512, "precision": "fp32", "device": "cpu"} for model in MODELS
    ]
    return beside + on_the_card


def limits() -> dict[str, float]:
    """Return bytes and operations per second that the card reaches: a copy, and products by precision."""
    a = torch.randn(2**29, device="cuda")
    b = torch.empty_like(a)
    found = {"memory": 2 * a.nbytes / _seconds(lambda: b.copy_(a))}
    del a, b
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        m = torch.randn(8192, 8192, device="cuda").to(dtype)
        found[name] = 2 * 8192**3 / _seconds(lambda m=m: m @ m)
    return found


def _seconds(work: Any) -> float:
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e4


def measure(case: Row, cells: anndata.AnnData) -> list[Row]:
    """Return what a training took, by phase.

    `operations` and `bytes` are the fewest that an epoch needs: six per weight of a matrix and cell (two
    forward, four back); ten accesses per parameter and step (forward, back, gradient written and read,
    Adam's three read and written) and four per entry of the decoder's output.
    """
    model = MODELS[case["model"]](batch_size=case["batch"])
    if case["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fitted = model.fit(
        cells,
        ROLES,
        validation=0,
        device=case["device"],
        precision=case["precision"],
        progress=False,
    )
    peak = torch.cuda.max_memory_allocated() / 2**20 if case["device"] == "cuda" else None
    rows = []
    for name, epochs in fitted.history.groupby("phase", sort=False):
        if len(epochs) == 1:  # no gradients: the effects of CFGen
            continue
        part = getattr(fitted.module, name, fitted.module)
        weights = list(part.parameters())
        matrices = sum(p.numel() for p in weights if p.dim() == 2)
        steps, outputs = CELLS / case["batch"], 0 if name == "flow" else GENES
        rows.append({
            **case, "phase": name, "seconds": median(epochs["seconds"][1:]),
            "first": float(epochs["seconds"].iloc[0]), "epochs": len(epochs), "peak_mib": peak,
            "operations": 6 * matrices * CELLS,
            "bytes": 4 * (10 * steps * sum(p.numel() for p in weights) + 4 * CELLS * outputs),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    cfgen.FLOW_STEPS = 0  # so that three epochs are three
    path = Path(sys.argv[1])
    scratch = Path(tempfile.gettempdir()) / "chreode-device"
    file = simulated(scratch, cells=CELLS, genes=GENES, density=0.08)["file"]
    cells = anndata.read_h5ad(file)
    about = {
        "card": torch.cuda.get_device_name(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "limits": limits(),
    }  # fmt: skip
    for case in cases():
        for row in measure(case, cells):
            append({"case": {**case, "phase": row["phase"]}, **row, "about": about}, path)
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
