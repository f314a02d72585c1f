"""Forecasts of a walker, of another one, and of a runner, from motion capture of the first."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import chreode as ch

from ..common import Row, folded
from .fits import METHODS, judge
from .report import across, at_rest, beside, chosen, means, ratios

#: Noise of what is learned from, in standard deviations of a channel, and the share of times that is left.
SETTINGS = {"noise 0.1": (0.1, 1.0), "noise 0.5": (0.5, 1.0), "half the times": (0.1, 0.5)}
#: One seed where the first setting is only held against another: fits to rest take minutes.
SEEDS = {"noise 0.1": (0, 1, 2), "noise 0.5": (0,), "half the times": (0,)}
LEVELS = {"new clip": "35", "new walker": "39", "running": "09"}


def cases() -> list[Row]:
    return [
        {"setting": setting, "seed": seed, "method": name}
        for setting, seeds in SEEDS.items()
        for name in ("baselines", *METHODS)
        for seed in seeds
    ]


def measure(case: Row, data: Path, kept: Path) -> Row:
    clips = {k: np.load(data / "mocap" / f"mocap{k}.npz") for k in LEVELS.values()}
    learned = clips["35"]["train"]
    alive = learned.std((0, 1)) > 1e-6
    centre, spread = learned.mean((0, 1))[alive], learned.std((0, 1))[alive]
    noise, share = SETTINGS[case["setting"]]
    rng = np.random.default_rng(case["seed"])
    sets = {
        "train": learned, "validation": clips["35"]["validation"],
        **{level: clips[k]["test"] for level, k in LEVELS.items()},
    }  # fmt: skip
    values, tables = [], []
    for part, some in sets.items():
        for number, clip in enumerate(some):
            x = (clip[:, alive] - centre) / spread
            at = np.arange(len(x))
            if part in ("train", "validation"):
                x = x + noise * rng.normal(size=x.shape)
                at = np.sort(rng.choice(at, round(share * len(at)), replace=False))
            values.append(x[at])
            tables.append(
                pd.DataFrame({"time": at / 100, "clip": f"{part} {number}", "part": part})
            )
    obs = pd.concat(tables, ignore_index=True)
    obs.index = obs.index.astype(str)
    cells = anndata.AnnData(np.concatenate(values).astype(np.float32), obs=obs)
    schema = ch.Schema(expression="X", time="obs/time", trajectory="obs/clip")
    return judge(
        case["method"], cells, schema, kept / "walking", seed=case["seed"],
        held_out=~obs["part"].isin(["train", "validation"]),
        validation=obs["part"].eq("validation").to_numpy(),
        tests={level: obs["part"].eq(level).to_numpy() for level in LEVELS},
    )  # fmt: skip


SHOWN = {
    "mse, validation": "validation", "mse, new clip": "new clip", "mse, new walker": "new walker",
    "mse, running": "running", "r2, new clip": "R², new clip", "r2, new walker": "R², new walker",
    "r2, running": "R², running", "weights_zero": "weights at 0",
    "edges_zero": "pairs without effect",
}  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    of = {s: [row for row in rows if row["case"]["setting"] == s] for s in SETTINGS}
    usual = next(iter(SETTINGS))
    lines = means({
        **{f"new clip, {s}": (mine, "mse, new clip", min) for s, mine in of.items()},
        **{f"{level}, {usual}": (of[usual], f"mse, {level}", min) for level in ("new walker", "running")},
    })  # fmt: skip
    for setting, mine in of.items():
        if mine:
            best = chosen(at_rest(mine)[0], "mse, validation", "mse, new clip")
            whole = [*across(mine, SHOWN), "", best]
            lines += ["", *folded(f"All scores, {setting}", whole)]
    for level in ("new clip", "new walker"):
        title = f"Errors as multiples of a dense NODE's, {level}"
        lines += ["", *folded(title, _beside(rows, f"mse, {level}"))]
    return lines


def _beside(rows: list[Row], metric: str) -> list[str]:
    """Return how many times a dense NODE's error those at rest have, setting by setting."""
    parts = {s: at_rest([r for r in rows if r["case"]["setting"] == s])[0] for s in SETTINGS}
    told = {s: ratios(part, "NODE", metric, invert=True) for s, part in parts.items()}
    names = [n for n in ("training mean", *METHODS) if any(n in found for found in told.values())]
    return beside(names, told)
