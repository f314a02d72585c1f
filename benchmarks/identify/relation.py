"""Does coverage predict what embeddings tell? Rank correlations over augmentations, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from ..common import Row
from ..speed.ratios import markdown
from .cells import VARIED
from .wells import DATA

DRAWS = 2000
POOLED = "all of them, within factors"
PREDICTORS = {"coverage": "coverage", "blur": "blur"}
FIGURE = "coverage.svg"
PICTURE = "R² of each factor over the coverage of it, a dot for each augmentation"


def pairs(
    recovered: Sequence[Row], covered: Sequence[Row], model: str, reader: str = "linear"
) -> pd.DataFrame:
    """Return a row for each data set, factor and augmentation that has both; `r2` is a list over seeds."""
    r2: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in recovered:
        case = row["case"]
        if case["model"] == model:
            r2.setdefault((case["data"], case["views"]), []).append(row["r2"][reader])
    found = [
        {
            "data": row["case"]["data"], "views": row["case"]["views"], "factor": factor,
            **{name: of[name] for name in PREDICTORS},
            "r2": [told[factor] for told in r2[row["case"]["data"], row["case"]["views"]]],
        }
        for row in covered if (row["case"]["data"], row["case"]["views"]) in r2
        for factor, of in row["factors"].items()
    ]  # fmt: skip
    table = pd.DataFrame(found, columns=["data", "views", "factor", *PREDICTORS, "r2"])
    return table.astype(dict.fromkeys(PREDICTORS, float))


def correlations(
    table: pd.DataFrame, predictor: str, seed: int = 0
) -> dict[tuple[str, str], Float[np.ndarray, " 3"]]:
    """Return Spearman's correlation of a predictor with R², and a 95 % interval, by data set and factor.

    Augmentations without the predictor are left out. The interval is a percentile bootstrap: augmentations
    are drawn with replacement, and the seeds of each, the same for all factors of a data set. `POOLED` is
    the mean over the factors of a data set, which is the correlation of ranks within factors.
    """
    rng, found = np.random.default_rng(seed), {}
    for data, of_data in table.groupby("data", sort=False):
        views = list(dict.fromkeys(of_data["views"]))
        n = np.array(
            [len(r2) for r2 in of_data.drop_duplicates("views").set_index("views")["r2"][views]]
        )
        chosen = rng.integers(len(views), size=(DRAWS, len(views)))
        seeds = (rng.random((*chosen.shape, n.max())) * n[chosen][..., None]).astype(int)
        drawn = seeds, np.arange(n.max()) < n[chosen][..., None]
        rho = {}
        for factor, of in of_data.groupby("factor", sort=False):
            of = of.set_index("views").loc[views]
            x, r2 = of[predictor].to_numpy(float), np.full((len(views), n.max()), np.nan)
            for row, told in zip(r2, of["r2"], strict=True):
                row[: len(told)] = told
            again = np.where(drawn[1], r2[chosen[..., None], drawn[0]], np.nan)
            y = np.vstack([np.nanmean(r2, 1), np.nanmean(again, 2)])
            rho[factor] = spearman(np.vstack([x, x[chosen]]), y)
        known = [of for of in rho.values() if np.isfinite(of[0])]
        if known:
            rho[POOLED] = np.mean(known, axis=0)
        found |= {(str(data), str(factor)): _interval(of) for factor, of in rho.items()}
    return found


def spearman(x: Float[np.ndarray, "d n"], y: Float[np.ndarray, "d n"]) -> Float[np.ndarray, " d"]:
    """Return the correlation of ranks of each row, of what is known in both.

    NaN where one is constant or fewer than three are known.
    """
    known = np.isfinite(x) & np.isfinite(y)
    ranks = [rankdata(np.where(known, v, np.nan), axis=1, nan_policy="omit") for v in (x, y)]
    n = known.sum(1, keepdims=True)
    a, b = (np.where(known, rank - (n + 1) / 2, 0) for rank in ranks)
    with np.errstate(invalid="ignore"):
        rho = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(n[:, 0] < 3, np.nan, rho)


def _interval(rho: Float[np.ndarray, " d"]) -> np.ndarray:
    if np.isnan(rho[0]):
        return np.full(3, np.nan)
    return np.array([rho[0], *np.nanquantile(rho[1:], [0.025, 0.975])])


def render(recovered: Sequence[Row], covered: Sequence[Row]) -> list[str]:
    """Return the correlations of both models and predictors, by factor and pooled."""
    found = {
        (model, predictor): correlations(pairs(recovered, covered, model), predictor)
        for model in VARIED for predictor in PREDICTORS
    }  # fmt: skip
    header = ("factor", *(f"{model}: {PREDICTORS[p]}" for model, p in found))
    lines: list[str] = []
    for data, of in DATA.items():
        rows = [
            (factor, *(_told(by.get((data, factor))) for by in found.values()))
            for factor in (*of.factors, POOLED)
        ]
        lines += [f"**{data[:1].upper()}{data[1:]}.**", "", *markdown(header, rows), ""]
    return [*lines, f"![{PICTURE}](figures/{FIGURE})"]


def _told(rho: np.ndarray | None) -> str:
    if rho is None or np.isnan(rho[0]):
        return "–"
    told = f"{rho[0]:.2f} ({rho[1]:.2f} to {rho[2]:.2f})"
    return f"**{told}**" if rho[1] > 0 or rho[2] < 0 else told


def draw(recovered: Sequence[Row], covered: Sequence[Row], path: Path) -> None:
    """Draw R² over coverage, a panel for each data set and model."""
    import matplotlib as mpl

    from chreode.plot.style import PALETTE, bare, panels, picture_of

    figure = picture_of(9, 6.4)
    grid = panels(figure, len(VARIED), len(DATA))
    for across, model in zip(grid, VARIED, strict=True):
        table = pairs(recovered, covered, model)
        for panel, (data, of) in zip(across, DATA.items(), strict=True):
            mine = table[table["data"] == data]
            for factor, colour in zip(of.factors, PALETTE, strict=False):
                some = mine[mine["factor"] == factor]
                panel.plot(some["coverage"], some["r2"].map(np.mean), "o", color=colour, markersize=4,
                           alpha=0.8, label=factor)  # fmt: skip
            panel.set(title=f"{data}, {model}", xlabel="coverage", ylabel="R² from the embedding")
            panel.set_xlim(-0.03, 1.03)
            bare(panel)
    for panel in grid[0]:
        panel.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "coverage"}):  # the same rows, the same file
        figure.savefig(path, metadata={"Date": None})
