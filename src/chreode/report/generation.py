"""What a report says of generated cells, and the pictures of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import counted
from ..metrics.markers import FEWEST, MIN_CLASS
from ..metrics.table import ScoreTable
from ..plot import dot_plot, marker_shares, mean_variance, real_and_generated, zero_fractions
from ..plot.dots import GENES
from ..schema import Schema
from .page import Section
from .words import best_of, yardsticks


def too_small(about: Mapping[str, Any]) -> str:
    """Return the sentences on what a bench's `about` names as too small to be scored; "" if nothing is."""
    classes, types = (
        ", ".join(f"{name} ({n})" for name, n in about.get(key, {}).items())
        for key in ("too small", "no markers")
    )
    left = [
        f"Nothing of {role} is scored: {why}." for role, why in about.get("not scored", {}).items()
    ]
    alone = (
        f"Not scored alone are classes with fewer than {counted(MIN_CLASS, 'held-out cell')}: {classes}. "
        f"They count in pooled scores, and in the markers of types with at least {counted(FEWEST, 'cell')}."
    )
    markers = f"Types with too few cells to compare their markers: {types}."
    return " ".join([*left, *[alone] * bool(classes), *[markers] * bool(types)])


def lead(bench: ScoreTable) -> Iterator[str]:
    """Say what comes nearest to held-out cells, in every modality, and how much is left to them."""
    table = bench.table()
    if "w2" not in table:
        return
    ceiling = table.index[table["role"] == "ceiling"]
    further = [name for name in table if str(name).endswith("_w2")]
    yield from _nearest(table, "w2", " by their RNA" if further else "")
    for name in further:
        yield from _nearest(table, name, f" by their {name.removesuffix('_w2')}")
    rows = table[table["role"] == "method"].dropna(subset="w2").sort_values("w2")
    for method, row in rows.iterrows():
        yield (
            f"A random forest tells cells of {method} from real ones of their class with an AUC of "
            f"{row['auc']:.2f} (0.5: it cannot, 1: always)."
        )
        if "membership" in row:
            yield (
                f"From cells of {method} one can guess whether a real cell was trained on, with an AUC of "
                f"{row['membership']:.2f} (0.5: by chance alone; from other real cells "
                f"{table.loc[ceiling, 'membership'].mean():.2f}). This is one attack, and no guarantee."
            )


def _nearest(table: pd.DataFrame, key: str, seen: str) -> Iterator[str]:
    """Say which row has the least W2 of a modality, and which one on the other side."""
    rows = table[table["role"].isin(["method", "baseline"])].dropna(subset=key).sort_values(key)
    if rows.empty:
        return
    best, floor = rows.index[0], table.loc[table["role"] == "ceiling", key].min()
    sentence = (
        f"its W2 is {rows.loc[best, key]:.2f}, that of other real cells {floor:.2f} (0 is best)"
    )
    other = {"method": "baseline", "baseline": "method"}[rows.loc[best, "role"]]
    of_other = rows.loc[rows["role"] == other, key]
    beside = (
        f" The best {other}, {of_other.index[0]}, has {of_other.iloc[0]:.2f}."
        if len(of_other)
        else ""
    )
    if other == "method" and len(of_other):
        yield (
            f"No method beats the baselines{seen}: {best}, a baseline, is nearest to held-out cells; "
            f"{sentence}.{beside}"
        )
    else:
        yield f"{best} is nearest to held-out cells{seen}: {sentence}.{beside}"


def sections(bench: ScoreTable) -> list[Section]:
    """Return pictures of every method and of the best baseline."""
    table = bench.table()
    methods, baselines = (table[table["role"] == role] for role in ("method", "baseline"))
    shown = [*methods.index, *(baselines.sort_values("w2").index[:1] if len(bench.pairs) else [])]
    return [_pictures(bench, name) for name in shown if name in bench.pairs]


def tables(bench: ScoreTable) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the scores of single classes; a narrow page shows the first columns."""
    if not len(bench.by_class):
        return
    role = bench.methods["role"].map({"ceiling": 0, "method": 1, "baseline": 2, "control": 3})
    means = bench.of_classes()[list(role.sort_values(kind="stable").index)]
    for metric in ("w2", "mmd", "auc"):
        yield (
            f"{bench.metrics.loc[metric, 'name']} of single classes. Means over seeds. "
            f"{best_of(bench, [metric])} {yardsticks(bench)} Where a class has few cells even real ones "
            "differ much.",
            means.loc[metric].rename_axis(None, axis=1),
        )


def _pictures(bench: ScoreTable, name: str) -> Section:
    real, fake = bench.pairs[name]
    labels: Any = (real.obs["class"], fake.obs["class"])
    one_class = real.obs["class"].nunique() < 2
    clouds = real_and_generated(real.X, fake.X, None if one_class else labels, names=("real", name))
    return Section(
        f"Cells of {name}",
        figures=(
            ("Real cells, generated ones, and both, in one layout.", clouds),
            *_of_markers(bench, name),
            (
                "Variance against mean of every feature.",
                mean_variance(real.X, fake.X, names=("real", name)),
            ),
            (
                "Share of cells without a count, for every feature.",
                zero_fractions(real.X, fake.X, names=("real", name)),
            ),
        ),
    )


def _of_markers(bench: ScoreTable, name: str) -> Iterator[tuple[str, Figure | Axes]]:
    """Yield what marker genes are like in real and in generated cells, where types have any."""
    (real, fake), markers = bench.pairs[name], bench.markers
    if not len(markers) or name not in set(markers["method"]):
        return
    mine = markers[markers["method"] == name]
    first = mine[mine["seed"] == mine["seed"].iloc[0]]
    first = first[first["gene"].isin(real.var_names)]
    each = max(1, GENES // first["class"].nunique()) if len(first) else 0
    genes = list(dict.fromkeys(first.groupby("class", sort=True).head(each)["gene"]))[:GENES]
    if genes:
        places = Schema(counts="X", label="obs/type")
        yield (
            "Marker genes of every type, in real held-out cells above and in generated ones below. The "
            "larger a dot, the more cells express the gene; the redder, the higher the mean. Real cells are "
            "the ceiling: the nearer the lower panel is to the upper one, the better.",
            dot_plot(real, places, genes, beside=fake, names=("real", name)),
        )
    yield (
        "Markers of every type: share of cells that express them. Grey: other real cells in place of "
        "generated ones, which is what chance does. Small dots: types of few cells. Named: what is "
        "furthest off beyond chance.",
        marker_shares(markers, name, beside=str(bench.methods.index[0])),
    )
