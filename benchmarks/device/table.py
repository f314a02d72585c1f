"""Write the section on a CUDA card of docs/speed.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Row, read, write_section

HERE = Path(__file__).parent


def line(row: Row) -> list[str]:
    """Return the cells of a row: speed, memory and the larger share of what the card can do."""
    limits, steps = row["about"]["limits"], 50_000 / row["batch"]
    shares = {
        "memory": row["bytes"] / row["seconds"] / limits["memory"],
        "products": row["operations"] / row["seconds"] / limits[row["precision"]],
    }
    most = max(shares, key=lambda name: shares[name])
    on_card = row["device"] == "cuda"
    return [
        row["model"] + ("" if row["phase"] == row["model"] else f", {row['phase']}"),
        f"{row['batch']:,}, "
        + (row["precision"] if on_card else f"{row['about']['threads']} cores"),
        f"{50_000 / row['seconds']:,.0f}",
        f"{1e3 * row['seconds'] / steps:.1f}",
        f"{row['peak_mib']:,.0f}" if on_card else "–",
        f"{shares[most]:.2%} of {most}" if on_card else "–",
    ]


if __name__ == "__main__":
    rows = read(HERE / "rows.jsonl")
    about = rows[-1]["about"]
    limits = about["limits"]
    head = ["model", "minibatch", "cells/s", "ms/step", "peak, MiB", "share of the limit"]
    lines = [head, ["---", "---", *["---:"] * 4], *map(line, rows)]
    told = (
        f"{about['card']}, torch {about['torch']}; a copy reaches {limits['memory'] / 1e12:.1f} TB/s, a "
        f"product {limits['fp32'] / 1e12:.0f} (fp32) or {limits['bf16'] / 1e12:.0f} (bf16) TFLOP/s."
    )
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    write_section(ROOT / "docs" / "speed.md", "device", f"{told}\n\n{table}")
