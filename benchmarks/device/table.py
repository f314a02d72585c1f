"""Write the section on a CUDA card of docs/speed.md from the rows; no number is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Row, folded, read, write_section
from benchmarks.speed.ratios import markdown

HERE = Path(__file__).parent
CELLS = 50_000


def name(row: Row) -> str:
    return row["model"] + ("" if row["phase"] == row["model"] else f", {row['phase']}")


def line(row: Row) -> list[str]:
    """Return the cells of a row: speed, memory and the larger share of what the card can do."""
    limits, steps = row["about"]["limits"], CELLS / row["batch"]
    shares = {
        "memory": row["bytes"] / row["seconds"] / limits["memory"],
        "products": row["operations"] / row["seconds"] / limits[row["precision"]],
    }
    most = max(shares, key=lambda name: shares[name])
    on_card = row["device"] == "cuda"
    return [
        name(row),
        f"{row['batch']:,}, "
        + (row["precision"] if on_card else f"{row['about']['threads']} cores"),
        f"{CELLS / row['seconds']:,.0f}",
        f"{1e3 * row['seconds'] / steps:.1f}",
        f"{row['peak_mib']:,.0f}" if on_card else "–",
        f"{shares[most]:.2%} of {most}" if on_card else "–",
    ]


def short(rows: list[Row]) -> list[str]:
    """Return the speed of the card by model and minibatch, beside the cores of its machine."""
    on_card = [row for row in rows if row["device"] == "cuda"]
    cores = {name(row): row["seconds"] for row in rows if row["device"] != "cuda"}
    seconds: dict[tuple[str, int], dict[str, float]] = {}
    for row in on_card:
        seconds.setdefault((name(row), row["batch"]), {})[row["precision"]] = row["seconds"]
    lines = []
    for (model, batch), found in seconds.items():
        pace = [f"{CELLS / found[p]:,.0f}" if p in found else "" for p in ("fp32", "bf16")]
        beside = f"{CELLS / cores[model]:,.0f}", f"{cores[model] / found['fp32']:.1f}"
        lines.append((model, f"{batch:,}", *pace, *beside))
    header = ("", "minibatch", "GPU, fp32, cells/s", "GPU, bf16, cells/s", "16 cores, cells/s",
              "GPU over cores, fp32")  # fmt: skip
    return markdown(header, lines)


def section(rows: list[Row]) -> str:
    about = rows[-1]["about"]
    limits = about["limits"]
    told = (
        f"{about['card']}, torch {about['torch']}; a copy reaches {limits['memory'] / 1e12:.1f} TB/s, a "
        f"product {limits['fp32'] / 1e12:.0f} (fp32) or {limits['bf16'] / 1e12:.0f} (bf16) TFLOP/s."
    )
    header = ("model", "minibatch", "cells/s", "ms/step", "peak, MiB", "share of the limit")
    whole = [told, "", *markdown(header, map(line, rows))]
    return "\n".join([*short(rows), "", *folded("All runs", whole)])


if __name__ == "__main__":
    write_section(ROOT / "docs" / "speed.md", "device", section(read(HERE / "rows.jsonl")))
