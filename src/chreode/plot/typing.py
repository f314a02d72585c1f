"""How types are told: which for which, how sure, and from how few counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba

from ..config.arguments import checked
from ..errors import ConfigError, near
from ..metrics.table import ScoreTable
from ..text import picture
from .style import GREY, PALETTE, axes, bare, require_columns, short

#: Types in a confusion matrix at the most.
_MOST = 30
#: Share from which the colour of its field is dark.
_DARK = 0.6
_MARKERS = "osD^vP*X<>"
#: From nothing to a colour, on any background.
_SHARES = LinearSegmentedColormap.from_list(
    "chreode shares", [to_rgba(PALETTE[0], 0.0), to_rgba(PALETTE[0], 1.0)]
)


@checked
def confusion_matrix(
    confusion: pd.DataFrame, method: str, classifier: str = "knn", *, ax: Axes | None = None
) -> Axes:
    """Draw which share of the cells of each type is told to be of which; rows add up to 1.

    Types are in the order of their names, those that the reference lacks at the end: none is told to be of
    them. Of more than 30 types the largest are shown.

    Parameters
    ----------
    confusion
        `Bench.confusion` of a probe.
    method
        Whose row of the bench; its seeds are added up.
    classifier
        ``"knn"`` or ``"linear"``.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    ConfigError
        If there is no such method or classifier.
    SchemaError
        If the table holds something else.

    Examples
    --------
    >>> row = {"method": "PCA", "classifier": "knn", "type": "B", "told": "B", "cells": 9}
    >>> ax = confusion_matrix(pd.DataFrame([row, {**row, "told": "T", "cells": 1}]), "PCA")
    >>> [text.get_text() for text in ax.texts]
    ['0.90', '0.10']
    """
    columns = ["method", "classifier", "type", "told", "cells"]
    require_columns(confusion, columns, "the confusion of a probe")
    for column, value in (("method", method), ("classifier", classifier)):
        if value not in {*confusion[column]}:
            raise ConfigError(f"There is no {column} {value!r}.{near(value, {*confusion[column]})}")
    mine = confusion[(confusion["method"] == method) & (confusion["classifier"] == classifier)]
    table = mine.pivot_table(
        index="type", columns="told", values="cells", aggfunc="sum", fill_value=0
    )
    largest = {*table.sum(axis=1).nlargest(_MOST).index}
    told = [
        name for name in sorted({*table.columns}) if name in largest or name not in table.index
    ][:_MOST]
    known = {*mine["told"]}
    types = sorted(largest, key=lambda name: (name not in known, name))
    shares = table.div(table.sum(axis=1), axis=0).reindex(index=types, columns=told, fill_value=0.0)
    size = 0.34
    ax = axes(ax, 2.2 + size * len(told) + 0.9, 1.6 + size * len(types))
    ax.pcolormesh(shares, cmap=_SHARES, vmin=0, vmax=1, edgecolors=GREY, linewidth=0.2)
    for (y, x), share in zip(
        ((y, x) for y in range(len(types)) for x in range(len(told))), shares.to_numpy().ravel(), strict=True
    ):  # fmt: skip
        if share >= 0.05:
            ax.text(
                x + 0.5, y + 0.5, f"{share:.2f}", ha="center", va="center", fontsize=6,
                color="white" if share > _DARK else None,
            )  # fmt: skip
    ax.set_xticks(
        [x + 0.5 for x in range(len(told))], [picture(short(t, 18)) for t in told], rotation=90
    )
    ax.set_yticks([y + 0.5 for y in range(len(types))], [_named(t, known) for t in types])
    ax.tick_params(length=0, labelsize="small")
    ax.set(xlabel="told to be", ylabel="type", ylim=(len(types), 0))
    ax.set_title(picture(short(method, 40)), fontsize="medium")
    ax.figure.colorbar(
        ScalarMappable(Normalize(0, 1), _SHARES),
        ax=ax,
        label="share of the type's cells",
        shrink=0.8,
    )
    return ax


def _named(name: str, known: set[str]) -> str:
    return picture(short(name, 24) if name in known else f"{short(name, 24)} (never told)")


@checked
def calibration_curve(
    calibration: pd.DataFrame, classifier: str = "knn", *, ax: Axes | None = None
) -> Axes:
    """Draw how often types are told right over how sure the classifier is, a line for each method.

    On the dashed diagonal it is right as often as it says; below, it is too sure. A dot is a bin of
    confidence, the larger the more cells it has.

    Parameters
    ----------
    calibration
        `Bench.calibration` of a probe; seeds are added up.
    classifier
        ``"knn"`` or ``"linear"``.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    ConfigError
        If there is no such classifier.
    SchemaError
        If the table holds something else.

    Examples
    --------
    >>> row = {"method": "PCA", "seed": 0, "classifier": "knn", "cells": 9}
    >>> ax = calibration_curve(pd.DataFrame([{**row, "confidence": 0.8, "accuracy": 0.7}]))
    >>> ax.get_ylabel()
    'accuracy'
    """
    columns = ["method", "classifier", "confidence", "accuracy", "cells"]
    require_columns(calibration, columns, "the calibration of a probe")
    mine = calibration[calibration["classifier"] == classifier]
    if mine.empty:
        raise ConfigError(
            f"There is no classifier {classifier!r}.{near(classifier, {*calibration['classifier']})}"
        )
    ax = axes(ax, 5.4, 3.8)
    for number, (method, rows) in enumerate(mine.groupby("method", sort=False)):
        bins = (rows["confidence"] * 10).clip(upper=9).astype(int)
        sums = rows[["confidence", "accuracy"]].mul(rows["cells"], axis=0).groupby(bins).sum()
        cells = rows["cells"].groupby(bins).sum()
        points, colour = sums.div(cells, axis=0), PALETTE[number % len(PALETTE)]
        label = picture(short(method, 24))
        marker = _MARKERS[number // len(PALETTE) % len(_MARKERS)]
        ax.plot(points["confidence"], points["accuracy"], color=colour, linewidth=1.2, label=label)
        size = 4 + 60 * cells / cells.sum()
        ax.scatter(
            points["confidence"],
            points["accuracy"],
            s=size,
            color=colour,
            marker=marker,
            linewidths=0,
        )
    ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    _beside(ax)
    return ax


@checked
def depth_curve(bench: ScoreTable, metric: str = "knn_f1", *, ax: Axes | None = None) -> Axes:
    """Draw a score of typing over the share of the query's counts that is left, a line for each method.

    Bars reach from the lowest to the highest seed.

    Parameters
    ----------
    bench
        What `chreode.bench.probe` returned.
    metric
        ``"knn_f1"``, ``"knn_accuracy"``, ``"linear_f1"`` or ``"linear_accuracy"``.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    ConfigError
        If the bench has no such score at several depths.
    """
    depths = [depth for depth in bench.about.get("depths", ()) if 0 < depth < 1]
    at = {metric: 1.0, **{f"{metric}_at_{depth:g}": float(depth) for depth in depths}}
    drawn = bench.scores["metric"].isin(at) & np.isfinite(bench.scores["value"].astype(float))
    scores = bench.scores[drawn]
    depth = scores["metric"].map(at)
    several = depth.groupby(scores["method"]).nunique() > 1
    if not several.any():
        raise ConfigError(f"This bench has no {metric} at several depths.")
    ax = axes(ax, 5.4, 3.4)
    shown = [method for method in bench.methods.index if several.get(method, default=False)]
    for number, method in enumerate(shown):
        rows = scores[scores["method"] == method]
        values = rows["value"].groupby(depth[rows.index]).agg(["mean", "min", "max"])
        spread = (values["mean"] - values["min"], values["max"] - values["mean"])
        ax.errorbar(
            values.index, values["mean"], yerr=spread, color=PALETTE[number % len(PALETTE)], linewidth=1.4,
            marker=_MARKERS[number // len(PALETTE) % len(_MARKERS)], markersize=4, capsize=2,
            label=picture(short(method, 24)),
        )  # fmt: skip
    shares = sorted({*at.values()})
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="counts of the query that are left", ylim=(0, 1.02))
    ax.set_ylabel(picture(bench.metrics.loc[metric, "name"]))
    _beside(ax)
    return ax


def _beside(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    bare(ax)
