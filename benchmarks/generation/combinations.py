"""Cells of combinations that were never seen: two (cell type, condition) pairs of Kang are hidden whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import chreode as ch
from chreode.bench.generation import class_table
from chreode.bench.yardstick import split
from chreode.data.cells import Cells
from chreode.metrics import generation as measured
from chreode.metrics.space import Space

from ..common import Row, folded, spread
from ..speed.ratios import markdown
from .fits import fit
from .tasks import development, prepare

#: Chosen before any fit: a lymphoid and a myeloid type, one in each condition.
HIDDEN = (("B cells", "stim"), ("CD14+ Monocytes", "ctrl"))
OTHER = {"stim": "ctrl", "ctrl": "stim"}
#: How attributes are embedded; the last has the flow alone to say what a combination is.
HOWS: dict[str, dict[str, Any]] = {
    "both": {},
    "joint": {"conditioning": "joint"},
    "additive": {"conditioning": "additive"},
    "additive, no effects": {"conditioning": "additive", "effects": False},
}


#: What the page calls the clouds of the rows.
SAID = {
    "other real cells of it": "other real cells of the pair",
    "CFGen, carried over": "CFGen, moved",
}
KEYS = {"w2": "W2", "mmd": "MMD²", "energy": "energy"}


def cases() -> list[Row]:
    """Every seed, and one for what is known to be worse."""
    cases = [{"attributes": how, "seed": seed} for seed in (0, 1, 2) for how in HOWS]
    return [case for case in cases if not (case["seed"] and "no effects" in case["attributes"])]


def measure(case: Row, data: Path, kept: Path) -> Row:
    cells, schema = prepare("kang", data, case["seed"])
    # of every class, hidden or not: cells that chose the genes, span the space, and are nowhere else
    rows = split(class_table(Cells(cells, schema))[0], case["seed"]).yardstick
    yardstick = cells[rows].copy()
    space = Space.of(sp.csr_matrix(yardstick.X))
    yards = [space.place(sp.csr_matrix(yardstick.X[mask])) for mask in _parts(yardstick)[2]]
    cells = cells[np.setdiff1d(np.arange(cells.n_obs), rows)].copy()
    kind, condition, hidden, train = _parts(cells)
    model = ch.CFGen(**HOWS[case["attributes"]])
    fitted, told = fit(model, cells, schema, train, case["seed"], kept / "fits")
    counts = sp.csr_matrix(cells.X)
    scores = {}
    for (t, c), mask, yard in zip(HIDDEN, hidden, yards, strict=True):
        rng = np.random.default_rng(case["seed"])
        half = rng.permutation(np.flatnonzero(mask))
        real, spare = half[: len(half) // 2], half[len(half) // 2 :]
        made = fitted.generate(
            len(spare), given={"label": t, "perturbation": c}, seed=case["seed"], progress=False
        )
        before = np.flatnonzero((kind == t) & (condition == OTHER[c]))
        moved = fitted.predict(
            cells[before].copy(), to={"perturbation": c}, seed=case["seed"], progress=False
        )
        x = space.place(counts[real])
        clouds = {
            "other real cells of it": space.place(counts[spare]),
            "CFGen, generated": space.place(sp.csr_matrix(made.X)),
            "CFGen, carried over": space.place(sp.csr_matrix(moved.X)),
            "mean shift": space.place(counts[before])
            + _shift(space, counts, kind, condition, t, c),
        }
        seen = {
            (a, b): space.place(counts[np.flatnonzero((kind == a) & (condition == b))])
            for a in np.unique(kind)
            for b in OTHER
            if (a, b) not in HIDDEN
        }
        nearest = min(seen, key=lambda pair: measured.energy_distance(yard, seen[pair]))
        clouds["nearest seen combination"] = seen[nearest]
        scores[f"{t}, {c}"] = {
            name: _compared(x, y, yard, case["seed"]) for name, y in clouds.items()
        } | {"nearest": ", ".join(nearest)}
    return {**development(case), **told, "scores": scores}


def _parts(cells: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Return type and condition of each cell, which are hidden, and the rows of the others."""
    kind, condition = (cells.obs[c].astype(str).to_numpy() for c in ("cell_type", "condition"))
    hidden = [(kind == t) & (condition == c) for t, c in HIDDEN]
    return kind, condition, hidden, np.flatnonzero(~np.any(hidden, axis=0))


def _shift(
    space: Any, counts: sp.csr_matrix, kind: np.ndarray, condition: np.ndarray, of: str, to: str
) -> np.ndarray:
    """Return what the condition does to the mean, on average over the types that were seen in both."""
    hidden = {t for t, _ in HIDDEN}
    found = []
    for t in sorted(set(kind) - hidden - {of}):
        ends = [
            space.place(counts[np.flatnonzero((kind == t) & (condition == c))]).mean(0)
            for c in (to, OTHER[to])
        ]
        found.append(ends[0] - ends[1])
    return np.mean(found, axis=0)


def _compared(x: np.ndarray, y: np.ndarray, yard: np.ndarray, seed: int) -> dict[str, float]:
    return {
        "w2": measured.wasserstein2(x, y, seed=seed),
        "mmd": measured.mmd2(x, y, measured.median_widths(yard)),
        "energy": measured.energy_distance(x, y),
    }


def render(rows: list[Row]) -> list[str]:
    """Return means with the default's embedding of attributes; the others, and intervals, are folded."""
    short, full = [], []
    for pair in rows[0]["scores"]:
        mine, whole = _of_pair(rows, pair)
        short += mine
        full += whole
    header = ("hidden pair", "", *KEYS.values())
    return [
        *markdown(header, short),
        "",
        *folded("All ways to embed attributes, mean over seeds (lowest to highest)", markdown(header, full)),
    ]  # fmt: skip


def _of_pair(rows: list[Row], pair: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the lines of a hidden pair, the few that answer and all of them."""
    named: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        how = row["case"]["attributes"]
        for name, scores in row["scores"][pair].items():
            own = name.startswith("CFGen")
            if name != "nearest" and (own or how == "both"):  # the others do not depend on it
                named.setdefault((name, how if own else ""), []).append(scores)
    nearest = "; ".join(dict.fromkeys(row["scores"][pair]["nearest"] for row in rows))
    means = {
        who: {key: float(np.mean([scores[key] for scores in found])) for key in KEYS}
        for who, found in named.items()
    }
    contest = [
        who for who in means if not who[0].startswith("other real") and who[1] in ("", "both")
    ]
    short, full = [], []
    for (name, how), found in named.items():
        said = f"{name} ({nearest})" if name.startswith("nearest") else SAID.get(name, name)
        values = (spread([scores[key] for scores in found]) for key in KEYS)
        full.append((pair, f"{said}, {how}" if how else said, *values))
        if how in ("", "both"):
            cells = []
            for key in KEYS:
                told, least = means[name, how][key], min(means[who][key] for who in contest)
                bold = (name, how) in contest and told == least
                cells.append(f"**{told:.3g}**" if bold else f"{told:.3g}")
            short.append((pair, said, *cells))
    return short, full
