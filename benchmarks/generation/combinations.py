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

from ..common import Row, spread
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
    lines = []
    for pair in rows[0]["scores"]:
        named: dict[str, list[Row]] = {}
        for row in rows:
            for name, scores in row["scores"][pair].items():
                if name == "nearest":
                    continue
                own = name.startswith("CFGen")
                label = f"{name}, {row['case']['attributes']}" if own else name
                found = named.setdefault(label, [])
                if own or row["case"]["attributes"] == "both":  # the others do not depend on it
                    found.append(scores)
        nearest = ", ".join(dict.fromkeys(row["scores"][pair]["nearest"] for row in rows))
        for name, found in named.items():
            said = f"{name} ({nearest})" if name.startswith("nearest") else name
            values = (spread([scores[key] for scores in found]) for key in ("w2", "mmd", "energy"))
            lines.append((pair, said, *values))
    return markdown(("hidden", "", "W2", "MMD²", "energy"), lines)
