"""How many times a course needs: the same networks, as many cells, at 3, 4, 6 and 40 times."""

from __future__ import annotations

from pathlib import Path

import anndata

import chreode as ch

from ..common import Row, folded
from .fits import judge
from .report import across, means

#: Of 40 times there are 20 trajectories, of fewer as many more as make as many cells.
GENES, SEEDS, TIMES, CELLS = 50, (10, 11, 12), (3, 4, 6, 40), 800
COMPARED = ("baselines", "NODE", "C-NODE", "PathReg")
SHOWN = {
    "signed": "signed edges",
    "edges_zero": "pairs without effect",
    "denoised, new start": "new start",
}


def cases() -> list[Row]:
    return [
        {"times": n, "seed": seed, "method": name}
        for n in TIMES
        for name in COMPARED
        for seed in SEEDS
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (simulated)
    network, n = ch.simulate.GeneNetwork.random(GENES, seed=case["seed"]), case["times"]
    many = ch.simulate.Sampling(n_trajectories=CELLS // n, n_times=n, noise=0.1)
    new = ch.simulate.Sampling(n_trajectories=6, n_times=40, noise=0.0)
    parts = {"train": network.simulate(many, seed=1), "new start": network.simulate(new, seed=2)}
    cells = anndata.concat(parts, label="part", index_unique="-")
    cells.obs["path"] = cells.obs["part"].astype(str) + " " + cells.obs["trajectory"].astype(str)
    part = cells.obs["part"]
    return judge(
        case["method"], cells, ch.Schema(expression="X", time="obs/time", trajectory="obs/path"),
        kept / "few_times", seed=case["seed"], held_out=part.ne("train"), edges=network.edges,
        tests={"new start": part.eq("new start").to_numpy()},
    )  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    of = {n: [row for row in rows if row["case"]["times"] == n] for n in TIMES}
    lines = ["**Signed edges** (1 is best):", ""]
    lines += means({f"{n} times": (some, "signed", max) for n, some in of.items()})
    lines += ["", "**Error of forecasts from new starts** (0 is best):", ""]
    lines += means({f"{n} times": (some, "denoised, new start", min) for n, some in of.items()})
    for n, some in of.items():
        if some:
            lines += ["", *folded(f"All scores, {n} times", across(some, SHOWN))]
    return lines
