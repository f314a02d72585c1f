"""What a report says of a bench: the verdict with its doubts, then pictures, then tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from ..config.arguments import checked
from ..errors import CapabilityError, counted
from ..metrics.table import ScoreTable
from ..plot import embedding, score_table, umap_coordinates
from ..plot.scatter import principal_plane
from ..plot.scores import ranked
from ..text import spelled
from . import dynamics, generation, probe
from .findings import verdict
from .page import Section, write
from .words import ABSENT, ENDED, best_of, duration, joined, listed, yardsticks

#: Cells in a picture at the most: UMAP of more takes minutes and shows the same.
PICTURED = 10_000
#: Metrics in a picture of scores at the most: of more, its text would be too small on a page.
_WIDEST = 16
#: The metrics that answer the question of a bench; of others the first four.
_MAIN = {
    "integration": ("total", "bio", "batch"),
    "generation": ("w2", "auc", "marker_share", "membership"),
    "probe": ("total", "knn_shared_f1", "linear_shared_f1", "protein_r"),
    "augmentation": ("knn_rare", "logistic_rare", "knn_recall", "logistic_recall"),
}
#: Benches whose intervals are of resampled cells.
_RESAMPLED = ("integration", "probe")


@checked
def write_bench(path: str | Path, bench: ScoreTable) -> Path:
    """Write the report of a bench, and return its path.

    Raises
    ------
    StoreError
        If the place cannot be written.
    """
    return write(path, f"{bench.kind.capitalize()} bench", bench_sections(bench), bench.about)


@checked
def bench_sections(bench: ScoreTable) -> list[Section]:
    """Return the verdict, pictures and tables of a bench.

    Parameters
    ----------
    bench
        What a function of `chreode.bench` returned. Without `embeddings`, as after
        `Bench.load`, there are no pictures of cells.
    """
    order = ranked(bench)
    pictures = [_embeddings(bench, order)] if bench.embeddings else []
    of_kind = {"generation": generation, "dynamics": dynamics, "probe": probe}.get(bench.kind)
    pictures += of_kind.sections(bench) if of_kind else []
    return [
        Section("Verdict", verdict(bench), figures=_score_tables(_pictured(bench))),
        *pictures,
        Section(
            "Tables",
            listed(_undefined(bench)),
            tables=(
                _main(bench, order),
                *_scores(bench, order),
                *(of_kind.tables(bench) if of_kind else ()),
                *_sizes(bench),
                _methods(bench, order),
                (
                    "What the metrics mean. Each has the value that is the best there is.",
                    bench.metrics.set_index("name")[["group", "about", "best"]],
                ),
            ),
        ),
    ]


# pictures

_SCORES = (
    "Raw scores, {}. Grey rows are baselines{}; bold is the best method or baseline of a column."
)


def _pictured(bench: ScoreTable) -> ScoreTable:
    """Return the scores that are drawn: of a probe not all, as single depths have a picture of their own."""
    return probe.pictured(bench) if bench.kind == "probe" else bench


def _score_tables(bench: ScoreTable) -> tuple[tuple[str, Axes], ...]:
    """Return the picture of the scores, in as many parts as are needed to be read at the width of a page."""
    keys = bench.metrics.index
    parts = np.array_split(np.arange(len(keys)), -(-len(keys) // _WIDEST))
    ceilings = bench.methods.index[bench.methods["role"] == "ceiling"]
    last = f", and the last {'are ceilings' if len(ceilings) > 1 else 'is the ceiling'}" * bool(
        len(ceilings)
    )
    captions = [
        _SCORES.format(_scale(bench), last),
        *["Raw scores, further metrics."] * (len(parts) - 1),
    ]
    return tuple(
        (caption, score_table(replace(bench, metrics=bench.metrics.iloc[part])))
        for caption, part in zip(captions, parts, strict=True)
    )


def _scale(bench: ScoreTable) -> str:
    if not (bench.metrics["best"] == 1).any():
        return "in numbers"
    spread = bench.kind in _RESAMPLED or (bench.methods["seeds"] > 1).any()
    return "bars from 0 to 1" + ("; thin lines are intervals" if spread else "")


def _embeddings(bench: ScoreTable, order: Sequence[str]) -> Section:
    methods = [m for m in order if m in bench.embeddings]
    n = len(next(iter(bench.embeddings.values())))
    rows = np.arange(n)
    text = (
        "Each method's embedding of its first seed. Neighbourhoods are what counts: distances between "
        "groups, and their sizes, mean little."
    )
    if n > PICTURED:
        rows = np.sort(np.random.default_rng(0).choice(n, PICTURED, replace=False))
        text += f" Shown are {PICTURED:,} of {counted(n, 'cell')}, drawn at random."
    labels = {role: values.iloc[rows].rename(None) for role, values in bench.labels.items()}
    shown = {role: values for role, values in labels.items() if values.notna().any()}
    pictures = []
    for method in methods:
        plane, name = _plane(bench.embeddings[method][rows])
        for role, values in shown.items() or {"": None}.items():
            caption = f"{method} by {role}: {name}" if role else f"{method}: {name}"
            ax = embedding(plane, colour=values)
            ax.set(xlabel="", ylabel="")  # the caption says what they are
            pictures.append((caption, ax))
    return Section("Embeddings", text, figures=tuple(pictures))


def _plane(x: Float[np.ndarray, "b z"]) -> tuple[Float[np.ndarray, "b 2"], str]:
    """Return two dimensions of every cell, and what they are."""
    if x.shape[1] == 2:
        return x, "its two dimensions"
    try:
        return umap_coordinates(x), "UMAP"
    except CapabilityError:
        return principal_plane(x), "two principal components (umap-learn is not installed)"


# tables


def _main(bench: ScoreTable, order: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """Return the table that holds the answer, of six columns at the most."""
    wanted: Sequence[str] = _MAIN.get(bench.kind, ())
    if bench.kind == "dynamics":
        wanted = [*(f"denoised_r2, {level}" for level in bench.about["levels"][:3]), "signed"]
    known = [metric for metric in wanted if metric in bench.metrics.index]
    metrics = known or list(bench.metrics.index[:4])
    table = bench.table().loc[list(order), ["role", *metrics]]
    table = table.rename(columns=bench.metrics["name"])
    if len(metrics) < 4:
        table["seeds"] = _seeds(bench, order)
    caption = (
        f"The main scores. Raw means over seeds. {best_of(bench, metrics)} {yardsticks(bench)}"
    )
    return caption, table


def _scores(bench: ScoreTable, order: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return all scores and their intervals, metrics x methods."""
    # what is the best to be had stands beside the names, where a narrow page begins
    role = bench.methods.loc[list(order), "role"]
    order = list(role.eq("ceiling").sort_values(ascending=False, kind="stable").index)
    names = bench.metrics["name"]
    scores = bench.table().loc[order, list(names.index)].rename(columns=names).T
    but = " but the min-max Total" if "scaled_total" in names.index else ""
    caption = f"All scores. Raw means over seeds; nothing{but} is rescaled by the other methods."
    return [(f"{caption} {yardsticks(bench)}", scores), *_intervals(bench, order)]


def _intervals(bench: ScoreTable, order: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return the table of intervals: of cells, or else of seeds, where a row has several."""
    table = bench.intervals().loc[list(order)]
    table = table.where(table != "nan to nan")
    caption = "95 % intervals. From a bootstrap over cells, widened to hold every seed's."
    if bench.kind not in _RESAMPLED:
        several = bench.methods.loc[list(order), "seeds"] > 1
        if not several.any():
            return []
        table[~several] = table[~several].where(table[~several].isna(), "one seed")
        caption = "Lowest to highest of the seeds."
    return [(f"{caption} {yardsticks(bench)}", table.rename(columns=bench.metrics["name"]).T)]


def _sizes(bench: ScoreTable) -> list[tuple[str, pd.DataFrame]]:
    """Return the number of cells per type, and per batch and type."""
    sizes = bench.sizes
    if "label" not in sizes:
        return []
    of_types = sizes.groupby("label")["cells"].agg(["sum", "count"])
    of_types = of_types.sort_values("sum", ascending=False, kind="stable").rename_axis("type")
    types = of_types.rename(columns={"sum": "cells", "count": "batches"})
    if "batch" not in sizes:
        return [("Cells per type.", types[["cells"]])]
    both = sizes.pivot_table(
        index="label", columns="batch", values="cells", aggfunc="sum", fill_value=0
    ).loc[types.index]
    both = both.rename_axis(index="type", columns=None)
    both = both if both.shape[1] <= both.shape[0] else both.T.rename_axis("batch")
    caption = "Cells per batch and type. 0: the batch has none of this type."
    return [("Cells per type. And the number of batches that have it.", types), (caption, both)]


def _methods(bench: ScoreTable, order: Sequence[str]) -> tuple[str, pd.DataFrame]:
    rows = bench.methods.loc[list(order)]
    table = pd.DataFrame({"role": rows["role"], "seeds": _seeds(bench, order)})
    if "state" in rows:
        table["fit"] = rows["state"].map(ENDED).where(rows["role"] == "method", ABSENT)
    if "seconds" in rows:
        table["time for one seed"] = rows["seconds"].map(duration)
    # how the fit ended has a column of its own
    table["note"] = ["; ".join(n for n in of if n not in ENDED) for of in rows["notes"]]
    return f"Methods. {yardsticks(bench)}", table


def _seeds(bench: ScoreTable, order: Sequence[str]) -> pd.Series:
    return bench.methods.loc[list(order), "seeds"].map(lambda n: spelled(n, "seed"))


def _undefined(bench: ScoreTable) -> list[str]:
    """Say why scores are not there, once per metric and reason."""
    lacking = bench.scores[bench.scores["value"].isna()]
    if "reason" not in lacking:
        return []
    found = lacking[lacking["metric"].map(bench.metrics["group"]) != "total"]
    return [
        f"{bench.metrics.loc[metric, 'name']} of {joined(rows['method'].unique())}: {reason}"
        for (metric, reason), rows in found.groupby(["metric", "reason"], sort=False)
    ]
