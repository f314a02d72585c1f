"""What a report says of generated cells, and the pictures of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..metrics.markers import FEWEST, MIN_CLASS
from ..metrics.table import ScoreTable
from ..plot import marker_shares, mean_variance, real_and_generated, zero_fractions
from .page import Section


def too_small(about: Mapping[str, Any]) -> str:
    """Return the sentences on what a bench's `about` names as too small to be scored; "" if nothing is."""
    classes, types = (
        ", ".join(f"{name} ({n})" for name, n in about.get(key, {}).items())
        for key in ("too small", "no markers")
    )
    left = [
        f"Of {role} nothing is scored: {why}." for role, why in about.get("not scored", {}).items()
    ]
    alone = (
        f"Too small to be scored alone, with fewer than {MIN_CLASS} held-out cells: {classes}. They count "
        f"in what is pooled, and in markers from {FEWEST} cells of a type on."
    )
    markers = f"Of too few cells for their markers to be compared: {types}."
    return " ".join([*left, *[alone] * bool(classes), *[markers] * bool(types)])


def lead(bench: ScoreTable) -> Iterator[str]:
    """Say what comes nearest to held-out cells, and how much is left to them."""
    table = bench.table()
    if "w2" not in table:
        return
    ceiling = table.index[table["role"] == "ceiling"]
    rows = table[table["role"].isin(["method", "baseline"])].dropna(subset="w2").sort_values("w2")
    if rows.empty:
        return
    best, floor = rows.index[0], table.loc[ceiling, "w2"].min()
    said = f"W2 {rows.loc[best, 'w2']:.2f}; other real cells in their place {floor:.2f}"
    if rows.loc[best, "role"] == "baseline" and (rows["role"] == "method").any():
        yield f"No method beats the baselines: {best}, a baseline, is nearest to held-out cells, {said}."
    else:
        yield f"{best} is nearest to held-out cells, {said}."
    for method, row in rows[rows["role"] == "method"].iterrows():
        yield (
            f"{method}: a random forest tells its cells from real ones of their class with an AUC of "
            f"{row['auc']:.2f} (0.5: a coin; 1: always)."
        )
        if "membership" in row:
            yield (
                f"{method}: whoever has its cells guesses of a real one whether it was trained on with an "
                f"AUC of {row['membership']:.2f} (0.5: a coin; cells of other real ones "
                f"{table.loc[ceiling, 'membership'].mean():.2f}). This is one attack, and no guarantee."
            )
    if said := too_small(bench.about):
        yield said


def sections(bench: ScoreTable) -> list[Section]:
    """Return pictures of every method and of the best baseline, and the scores of single classes."""
    table = bench.table()
    methods, baselines = (table[table["role"] == role] for role in ("method", "baseline"))
    shown = [*methods.index, *(baselines.sort_values("w2").index[:1] if len(bench.pairs) else [])]
    found = [_pictures(bench, name) for name in shown if name in bench.pairs]
    if len(bench.by_class):
        # a narrow page shows the first columns
        rank = table["role"].map({"ceiling": 0, "method": 1, "baseline": 2, "control": 3})
        means = bench.by_class.pivot_table(
            index=["metric", "class"], columns="method", values="value", sort=False
        ).reindex(columns=rank.sort_values(kind="stable").index)
        names = bench.metrics["name"]
        found.append(
            Section(
                "Single classes",
                "Means over seeds. Where a class has few cells even real ones differ much.",
                tables=tuple(
                    (names[metric], means.loc[metric].rename_axis(None, axis=1))
                    for metric in ("w2", "mmd", "auc")
                ),
            )
        )
    return found


def _pictures(bench: ScoreTable, name: str) -> Section:
    real, fake = bench.pairs[name]
    markers = bench.markers
    of_types = (
        (
            (
                "Markers of every type: share of cells that express them. Grey: other real cells in place of "
                "generated ones, which is what chance does. Small dots: types of few cells. Named: what is "
                "furthest off beyond chance.",
                marker_shares(markers, name, beside=str(bench.methods.index[0])),
            ),
        )
        if len(markers) and name in set(markers["method"])
        else ()
    )
    labels: Any = (real.obs["class"], fake.obs["class"])
    one_class = real.obs["class"].nunique() < 2
    clouds = real_and_generated(real.X, fake.X, None if one_class else labels, names=("real", name))
    return Section(
        f"Cells of {name}",
        figures=(
            ("Real cells, generated ones, and both, in one layout.", clouds),
            *of_types,
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
