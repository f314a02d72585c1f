"""What a report says of a probe: correction, typing and a missing modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import counted
from ..metrics.table import BASELINE, ScoreTable
from ..plot import calibration_curve, confusion_matrix, depth_curve
from .page import Section
from .words import best_of, joined, yardsticks

#: Scores by which rows are ranked in each task, and how they are called in a sentence.
_RANKED = {
    "correction": ("total", "Correction", "total"),
    "typing": ("knn_shared_f1", "Typing", "macro-F1 of kNN over shared types"),
    "missing": ("protein_r", "Missing protein", "correlation per protein"),
}
#: Metrics of the first picture.
PICTURED = (
    "bio", "batch", "total", "scaled_total", "knn_f1", "knn_shared_f1", "knn_worst", "knn_ece", "linear_f1",
    "linear_shared_f1", "linear_ece", "cell_r", "protein_r", "protein_f1",
)  # fmt: skip
#: The short notes of a probe, said in full.
IN_FULL = {
    f"not better than {BASELINE} in {task}": f"is not better than {BASELINE} in {task}: over resampled "
    f"cells, its {score} does not stay above that of {BASELINE}"
    for task, score in (
        ("correction", "total"), ("typing", "macro-F1 over shared types"),
        ("missing protein", "correlation per protein"),
    )
}  # fmt: skip
_CLASSIFIERS = {"knn": "kNN", "linear": "the linear probe"}
#: Query cells below which a single one decides much.
_FEW = 50
#: Single proteins or types in a table at the most.
_ROWS = 40


def lead(bench: ScoreTable) -> Iterator[str]:
    """Say of each task what is best, what the best of the other side has, and what could be had."""
    for key, task, called in _RANKED.values():
        if key in bench.metrics.index:
            yield from _best(bench, key, task, called)
    if "cell_r" in bench.metrics.index and "mean profile" in bench.methods.index:
        value = bench.table()["cell_r"].astype(float)
        rows = bench.methods.index[bench.methods["role"] != "ceiling"].difference(["mean profile"])
        best = value[rows].dropna().sort_values(ascending=False)
        if len(best):
            yield (
                f"Per cell, the mean profile of the reference correlates with {value['mean profile']:z.3f}, "
                f"and {best.index[0]} with {best.iloc[0]:z.3f}. All cells have much the same profile, so "
                "this number says little; the one per protein says more."
            )
    yield from _unseen(bench)
    yield from _worst(bench)


def _best(bench: ScoreTable, key: str, task: str, called: str) -> Iterator[str]:
    """Say which row is best by a score, and by how much its order is settled."""
    role = bench.methods["role"]
    values = bench.table()[key].astype(float).dropna()
    ends = bench.scores[bench.scores["metric"] == key].groupby("method")
    low, high = ends["low"].min(), ends["high"].max()
    ranked = values[role[values.index] != "ceiling"].sort_values(ascending=False, kind="stable")
    if ranked.empty:
        return
    best = ranked.index[0]
    sentence = f"{best} has the highest {called}, {ranked.iloc[0]:z.3f} (95 % interval {low[best]:z.3f} to "
    sentence += f"{high[best]:z.3f})"
    other = {"method": "baseline", "baseline": "method"}.get(role[best])
    others = [name for name in ranked.index if role[name] == other]
    if role[best] == "baseline" and others:
        sentence = (
            f"no method beats the baselines: {best}, a baseline, has the highest {called}"
            + (sentence.partition(called)[2])
        )
    beside = [f"the best {other}, {others[0]}, has {ranked[others[0]]:z.3f}"] if others else []
    beside += [
        f"the ceiling, {name}, has {values[name]:z.3f}"
        for name in values.index
        if role[name] == "ceiling"
    ]
    yield "; ".join([f"{task}: {sentence}", *beside]) + "."


def _unseen(bench: ScoreTable) -> Iterator[str]:
    """Say how well cells of types are marked that the reference lacks."""
    keys = ("knn_unseen_auroc", "knn_unseen_found")
    unseen = bench.about.get("unseen", [])
    if not unseen or not {*keys} <= {*bench.metrics.index}:
        return
    n = bench.about.get("cells of unseen types", 0)
    text = f"The reference lacks {joined(unseen)} ({counted(n, 'query cell')}), which no classifier can name."
    values = bench.table()[list(keys)].astype(float).dropna()
    if len(values):
        best = values[keys[0]].idxmax()
        auroc, found = values.loc[best]
        text += (
            f" How far cells are from the reference tells them from others best in {best} (AUROC "
            f"{auroc:.2f}; 0.5 is by chance): with a limit that marks 5 % of the others as new, "
            f"{100 * found:.0f} % of them are marked."
        )
    yield text


def _worst(bench: ScoreTable) -> Iterator[str]:
    """Name the type that the best method tells worst, and the protein that it foretells worst."""
    table = bench.table()
    table = table[table["role"] == "method"]
    for key, what in (
        ("knn_shared_f1", "type {}, with an F1 of"),
        ("protein_r", "protein {}, with a correlation of"),
    ):
        values = table.get(key, pd.Series(dtype=float)).astype(float).dropna()
        if values.empty or not len(bench.by_class):
            continue
        best = values.idxmax()
        means = bench.of_classes()[best].dropna()
        means = means.get(key, pd.Series(dtype=float))
        if len(means) and means.min() < 1:
            yield f"{best} does worst at the {what.format(means.idxmin())} {means.min():z.2f}."


def held_out(about: Mapping[str, Any]) -> Iterator[str]:
    """Say which batches are the query, and whether the reference is of one batch or the query small."""
    names = about.get("held out", ())
    if not names:
        return
    chosen = " They were chosen as the smallest ones that can be: none was named."
    yield (
        f"Held out as query, and seen by no fit of a model here: {joined(names)} "
        f"({'; '.join(_sizes(about))}).{chosen if about.get('held out by default') else ''}"
    )
    if about.get("batches", 0) - len(names) == 1:
        yield (
            "The reference is a single batch, so that no model could learn what batches have in common. "
            "Hold out fewer batches (held_out), or give cells of more."
        )
    for task, key, more in (
        ("typing", "query", " with a label"),
        ("missing", "query with protein", " with protein"),
    ):
        if task in about.get("tasks", ()) and 0 < (n := about.get(key, _FEW)) < _FEW:
            yield (
                f"The query has {counted(n, 'cell')}{more}, so that a single one moves scores by {1 / n:.2f} "
                "or more. Hold out batches of more cells."
            )


def context(bench: ScoreTable) -> Iterator[str]:
    """Say what was held out, how rows may be compared, and what was not scored."""
    about = bench.about
    yield from held_out(about)
    given = [
        name
        for name, notes in bench.methods["notes"].items()
        if any(n.startswith("given") for n in notes)
    ]
    if given:
        yield (
            f"What {joined(given)} learned from is not known here. If it was the query cells too, "
            f"{'its' if len(given) == 1 else 'their'} scores in typing and of proteins are too high."
        )
    if "scaled_total" in bench.metrics.index:
        yield (
            "The min-max Total scales every metric by the worst and the best row of this table. It depends "
            "on the other rows, and cannot be compared with another table; the raw total can."
        )
    if left := about.get("proteins left out", 0):
        yield f"Left out: {counted(left, 'protein')} that some cells with proteins were not measured for."


def _sizes(about: Mapping[str, Any]) -> Iterator[str]:
    """Say how many cells of both sides the tasks read."""
    for noun, more in (("labelled cell", ""), ("cell", " with protein")):
        query, reference = (about.get(side + more, 0) for side in ("query", "reference"))
        if query:
            yield f"{counted(query, noun)}{more}, and {reference:,} in the reference"


def pictured(bench: ScoreTable) -> ScoreTable:
    """Return the scores of the first picture."""
    keys = [key for key in PICTURED if key in bench.metrics.index]
    return replace(bench, metrics=bench.metrics.loc[keys]) if keys else bench


def sections(bench: ScoreTable) -> list[Section]:
    """Return the pictures of typing: confusions, calibration and depths."""
    found = []
    if len(bench.confusion):
        found.append(
            Section(
                "Which types are told for which",
                "Query cells of every type, by what their 11 nearest cells of the reference (kNN) say. "
                "(never told) stands after types that no cell was told to be of; those that the reference "
                "lacks are among them.",
                figures=tuple(_confusions(bench)),
            )
        )
    if len(bench.calibration):
        known = [c for c in _CLASSIFIERS if c in {*bench.calibration["classifier"]}]
        text = (
            "Confidence is the largest probability of a cell, calibrated on reference cells that were left "
            "out batch by batch. A classifier that is right as often as it says lies on the diagonal; below "
            "it, it is too sure. Shown are query cells of types that the reference has. Logistic regression "
            "on log-expression is not calibrated."
        )
        figures = tuple(
            (
                f"Accuracy over confidence, by {_CLASSIFIERS[c]}.",
                calibration_curve(bench.calibration, c),
            )
            for c in known
        )
        found.append(Section("How sure classifiers may be", text, figures=figures))
    shown = [key for key in ("knn_f1", "linear_f1") if _several(bench, key)]
    if shown:
        text = (
            "The query cells, thinned to a share of their counts: each molecule is kept by chance. Reference "
            "and fits are the same. Rows that embed no other cells than those given are not shown."
        )
        figures = tuple(
            (
                f"Macro-F1 over depth, by {_CLASSIFIERS[key.partition('_')[0]]}.",
                depth_curve(bench, key),
            )
            for key in shown
        )
        found.append(Section("Fewer counts", text, figures=figures))
    return found


def _several(bench: ScoreTable, key: str) -> bool:
    """Return whether a row has a score at more than one depth."""
    names = [
        key,
        *(f"{key}_at_{depth:g}" for depth in bench.about.get("depths", ()) if 0 < depth < 1),
    ]
    finite = np.isfinite(bench.scores["value"].astype(float))
    values = bench.scores[bench.scores["metric"].isin(names) & finite]
    return bool((values.groupby("method")["metric"].nunique() > 1).any())


def _confusions(bench: ScoreTable) -> Iterator[tuple[str, Axes]]:
    """Yield the matrix of the best method, of the best baseline and of the ceiling."""
    drawn = {*bench.confusion.loc[bench.confusion["classifier"] == "knn", "method"]}
    table = bench.table()
    table = table[table.index.isin(drawn)]
    values = table.get("knn_shared_f1", pd.Series(dtype=float)).astype(float).dropna()
    for role in ("method", "baseline", "ceiling"):
        mine = values[table.loc[values.index, "role"] == role]
        if len(mine):
            best = mine.idxmax()
            said = (
                "the ceiling"
                if role == "ceiling"
                else f"the best {role} by macro-F1 over shared types"
            )
            yield f"{best}, {said}.", confusion_matrix(bench.confusion, best)


def tables(bench: ScoreTable) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the scores of single types and proteins."""
    if not len(bench.by_class):
        return
    role = bench.methods["role"].map({"ceiling": 0, "method": 1, "baseline": 2, "control": 3})
    order = list(role.sort_values(kind="stable").index)
    means = bench.of_classes()
    for key, caption in (
        ("knn_f1", "F1 of single types, by kNN."),
        ("linear_f1", "F1 of single types, by the linear probe."),
        ("knn_precision", "Precision of single types, by kNN."),
        ("knn_recall", "Recall of single types, by kNN."),
        ("protein_r", "Correlation of single proteins."),
    ):
        if key not in means.index.get_level_values("metric"):
            continue
        table = means.loc[key, order].dropna(axis=1, how="all").rename_axis(None, axis=1)
        first = table.where(np.isfinite(table)).mean(axis=1).sort_values(kind="stable").index
        best = best_of(bench, [key]) if key in bench.metrics.index else "1 is best."
        cut = [f"Shown are the {_ROWS} lowest of {len(table):,}."] if len(table) > _ROWS else []
        said = [caption, "Means over seeds, the lowest first.", best, *cut, yardsticks(bench)]
        yield " ".join(said), table.loc[first[:_ROWS]]
