"""Methods and metrics at a glance: raw scores, on a scale that does not move with the rows."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..config.arguments import checked
from ..errors import visible
from ..metrics.table import ScoreTable
from ..text import spelled
from .style import GREY, PALETTE, axes, short

#: Room between groups of metrics, in columns.
_GAP = 0.35
#: Part of a cell's width that stands for a score of 1, and of its height that is bar.
_WIDE, _HIGH = 0.88, 0.5
#: Inches of a column, a line of text, a line of a name, the names of methods, and the names of metrics.
_COLUMN, _LINE, _NAME, _NAMES, _HEAD = 0.5, 0.14, 0.2, 1.75, 1.1
#: Letters in a line of a name, and of a name: it is never longer unless a user made it so.
_LETTERS, _LONGEST = 22, 66
#: Lines of notes under a name at the most.
_LINES = 4
_GROUPS = (PALETTE[2], PALETTE[0], PALETTE[1], *PALETTE[3:])


@checked
def score_table(bench: ScoreTable, *, ax: Axes | None = None) -> Axes:
    """Draw methods x metrics: means over seeds in numbers, and as bars from 0 to 1.

    A bar is the raw score on a fixed scale: it stays the same whatever else is in the table. The
    thin line under it is the 95 % interval. Rows are sorted by the total, if there is one; baselines
    lie on a grey band, and the ceiling stands hollow at the end. The best method or baseline of each
    column is bold; a ceiling or a control, which is real cells, never is. Metrics whose best value is not
    1 are given in numbers only.

    Parameters
    ----------
    bench
        What a function of `chreode.bench` returned.
    ax
        Where to draw (default: a new figure that fits).
    """
    methods, metrics = ranked(bench), bench.metrics
    scores = bench.table().loc[methods, metrics.index].astype(float)
    ends = bench.scores.groupby(["method", "metric"]).agg(low=("low", "min"), high=("high", "max"))
    contest = scores[bench.methods.loc[methods, "role"].isin(["method", "baseline"])]
    places = {metric: _places(contest[metric], metrics.loc[metric, "best"]) for metric in scores}
    off = (contest - metrics["best"]).abs().round(places)  # as shown
    alike = (off.count() > 1) & (off.nunique() == 1)
    off.loc[:, alike] = float("nan")  # none of those that are all the same is the best
    group = dict(zip(metrics["group"].unique(), _GROUPS, strict=False))
    left = _columns(metrics)
    notes = [_note(bench, method) for method in methods]
    names = [textwrap.fill(short(method, _LONGEST), _LETTERS) for method in methods]
    tall = 0.04 + max(
        _NAME * (name.count("\n") + 1) + _LINE * (note.count("\n") + 1)
        for name, note in zip(names, notes, strict=True)
    )
    right = left.iloc[-1] + 1
    if ax is None:
        ax = axes(None, _NAMES + _COLUMN * right, _HEAD + tall * len(methods))
    ax.set(xlim=(-_NAMES / _COLUMN, right), ylim=(len(methods), -_HEAD / tall))
    ax.axis("off")
    _header(ax, metrics, left, group, unit=1 / tall)
    for y, (method, name, note) in enumerate(zip(methods, names, notes, strict=True)):
        role = bench.methods.loc[method, "role"]
        _row_head(ax, y, name, note, role, unit=1 / tall)
        for metric, value in scores.loc[method].items():
            best = off.loc[method, metric] == off[metric].min() if method in off.index else False
            look = "bold" if best else "normal"
            middle = (left[metric] + _WIDE / 2, y + 0.5)
            shown = "–" if pd.isna(value) else _number(value, places[metric])
            _text(ax, *middle, shown, ha="center", va="center", fontsize=7.5, fontweight=look)
            if pd.notna(value) and metrics.loc[metric, "best"] == 1:
                colour = group[metrics.loc[metric, "group"]]
                low, high = ends.loc[(method, metric), ["low", "high"]]
                _bar(ax, (left[metric], y), value, (low, high), colour, hollow=role == "ceiling")
    return ax


def ranked(bench: ScoreTable) -> list[str]:
    """Return the methods by falling total, if there is one, with the ceiling at the end.

    Those without a total follow those with one.
    """
    table = bench.table()
    keys = pd.DataFrame({"ceiling": table["role"] == "ceiling", "total": -table.get("total", 0.0)})
    return list(keys.sort_values(["ceiling", "total"], kind="stable").index)


def _places(values: pd.Series, best: float) -> int:
    """Return the decimals of a column: errors may be too small to be told apart by two."""
    size = values.abs()
    return 3 if best != 1 and size.max() < 1 and size[size > 0].min() < 0.01 else 2


def _number(value: float, places: int) -> str:
    """Return a score as it has room in its cell, and no zero below zero."""
    return f"{value:z.{places}f}" if abs(value) < 1000 else f"{value:.2g}"


def _columns(metrics: pd.DataFrame) -> pd.Series:
    """Return the left edge of every metric's column."""
    groups_before = (metrics["group"] != metrics["group"].shift()).cumsum() - 1
    return pd.Series(range(len(metrics)), metrics.index) + _GAP * groups_before


def _note(bench: ScoreTable, method: str) -> str:
    row = bench.methods.loc[method]
    start = row["role"] if row["role"] != "method" else spelled(row["seeds"], "seed")
    said = any(note.startswith("one seed") for note in row["notes"])
    text = "; ".join([*([] if said else [start]), *row["notes"]])
    # a longer one would stretch all rows; the table of methods has it whole
    return textwrap.fill(text, 31, max_lines=_LINES, placeholder=" …")


def _header(
    ax: Axes, metrics: pd.DataFrame, left: pd.Series, group: dict[str, str], unit: float
) -> None:
    """Write names of metrics aslant, and of groups under them; `unit` is the rows of one inch."""
    for metric, name in metrics["name"].items():
        x, y = left[metric] + 0.25, -0.32 * unit
        _text(
            ax, x, y, name, rotation=40, ha="left", va="bottom", rotation_mode="anchor", fontsize=8
        )
    for name, members in metrics.groupby("group", sort=False):
        x, end = left[members.index[0]], left[members.index[-1]] + _WIDE
        _text(ax, x, -0.09 * unit, name, fontsize=8, fontweight="bold", va="bottom")
        ax.plot([x, end], [-0.05 * unit] * 2, color=group[name], linewidth=2, solid_capstyle="butt")


def _row_head(ax: Axes, y: int, name: str, note: str, role: str, unit: float) -> None:
    start, end = ax.get_xlim()
    if role == "baseline":
        ax.add_patch(Rectangle((start, y), end - start, 1, color=GREY, alpha=0.14, linewidth=0))
    if role == "ceiling":
        ax.plot([start, end], [y, y], color=GREY, linewidth=0.8)
    slant = "normal" if role == "method" else "italic"
    top = y + 0.07 * unit
    _text(ax, start + 0.12, top, name, va="top", fontsize=9, fontweight="bold", style=slant)
    below = top + _NAME * (name.count("\n") + 1) * unit
    _text(ax, start + 0.12, below, note, va="top", fontsize=6.5, alpha=0.8)


def _bar(
    ax: Axes,
    corner: tuple[float, float],
    value: float,
    interval: tuple[float, float],
    colour: str,
    *,
    hollow: bool,
) -> None:
    x, y = corner[0], corner[1] + (1 - _HIGH) / 2
    ax.add_patch(Rectangle((x, y), _WIDE, _HIGH, facecolor=GREY, alpha=0.14, linewidth=0))
    width = _WIDE * min(max(value, 0.0), 1.0)
    bar = Rectangle((x, y), width, _HIGH, facecolor=colour, alpha=0.45, linewidth=0, gid="bar")
    if hollow:
        bar.set(facecolor="none", edgecolor=colour, alpha=0.9, linewidth=1)
    ax.add_patch(bar)
    ends = [x + _WIDE * min(max(end, 0.0), 1.0) for end in interval]
    ax.plot(ends, [y + _HIGH + 0.06] * 2, color=colour, linewidth=1.2, solid_capstyle="butt")


def _text(ax: Axes, x: float, y: float, text: object, **look: Any) -> None:
    ax.text(x, y, visible(text, lines=True), parse_math=False, **look)
