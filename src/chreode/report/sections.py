"""What a report says of a bench and of a fitted model, the most doubtful first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from .. import config
from ..compute.convergence import STATES
from ..config.arguments import checked
from ..errors import CapabilityError
from ..metrics.table import BASELINE, ScoreTable
from ..plot import embedding, history, score_table, umap_coordinates
from ..plot.scatter import principal_plane
from ..plot.scores import ranked
from ..verbs.state import FittedState
from . import dynamics, generation
from .page import Section, write

#: Cells in a picture at the most: UMAP of more takes minutes and shows the same.
PICTURED = 10_000
#: Metrics in a picture of scores at the most: of more, its text would be too small on a page.
_WIDEST = 16
#: Seeds below which the spread between fits is not known.
_FEW_SEEDS = 3
#: The short notes of a bench, said in full.
_IN_FULL = {
    f"not better than {BASELINE}": f"is not better than {BASELINE}: over resampled cells, its total "
    f"(without one, its mean of the bio or batch metrics) does not stay above {BASELINE}'s",
    **STATES,
}


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
    """Return findings, pictures, scores, methods and metrics of a bench.

    Parameters
    ----------
    bench
        What a function of `chreode.bench` returned. Without `embeddings`, as after
        `Bench.load`, there are no pictures.
    """
    order = ranked(bench)
    sections = [
        Section(
            "Findings",
            _lead_and_list(findings(bench)),
            figures=_score_tables(bench),
        )
    ]
    if bench.embeddings:
        sections.append(_embeddings(bench, order))
    if bench.kind == "generation":
        sections += generation.sections(bench)
    if bench.kind == "dynamics":
        sections += dynamics.sections(bench)
    names = bench.metrics["name"]
    # what is the best to be had stands beside the names, where a narrow page begins
    ends = (
        bench.methods.loc[order, "role"].eq("ceiling").sort_values(ascending=False, kind="stable")
    )
    scores = bench.table().loc[ends.index, list(names.index)].rename(columns=names).T
    intervals = _intervals(bench, list(ends.index))
    return [
        *sections,
        Section(
            "Scores",
            "\n".join(f"- {reason}" for reason in _undefined(bench)),
            tables=(
                ("Raw scores, means over seeds. Nothing is rescaled by the other methods.", scores),
                *intervals,
            ),
        ),
        Section(
            "Methods",
            "Baselines and a ceiling stand in every bench. Seconds are for one seed.",
            tables=(("", bench.methods.loc[order].round({"seconds": 1})),),
        ),
        Section(
            "What the metrics mean",
            tables=(("", bench.metrics.set_index("name")[["group", "about", "best"]]),),
        ),
    ]


_SCORES = (
    "Raw scores, {}. Grey rows are baselines, the last is the ceiling; "
    "bold is the best method or baseline of a column."
)


def _score_tables(bench: ScoreTable) -> tuple[tuple[str, Axes], ...]:
    """Return the picture of the scores, in as many parts as are needed to be read at the width of a page."""
    keys = bench.metrics.index
    parts = np.array_split(np.arange(len(keys)), -(-len(keys) // _WIDEST))
    said = [_SCORES.format(_scale(bench)), *["Raw scores, further metrics."] * (len(parts) - 1)]
    return tuple(
        (caption, score_table(replace(bench, metrics=bench.metrics.iloc[part])))
        for caption, part in zip(said, parts, strict=True)
    )


def _intervals(bench: ScoreTable, order: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return the table of intervals: of cells, or else of seeds, where a row has several."""
    table = bench.intervals().loc[order]
    table = table.where(table != "nan to nan")
    said = "95 % intervals: bootstrap over cells, widened to hold every seed's."
    if bench.kind != "integration":
        several = bench.methods.loc[order, "seeds"] > 1
        if not several.any():
            return []
        table[~several] = table[~several].where(table[~several].isna(), "one seed")
        said = "Lowest to highest of the seeds."
    return [(said, table.rename(columns=bench.metrics["name"]).T)]


def _scale(bench: ScoreTable) -> str:
    if not (bench.metrics["best"] == 1).any():
        return "in numbers"
    spread = bench.kind == "integration" or (bench.methods["seeds"] > 1).any()
    return "bars from 0 to 1" + ("; thin lines are intervals" if spread else "")


# findings


def _lead_and_list(lines: Sequence[str]) -> str:
    return "\n\n".join([*lines[:1], "\n".join(f"- {line}" for line in lines[1:])])


@checked
def findings(bench: ScoreTable) -> list[str]:
    """Return in plain words what a reader must know before believing the table."""
    leads = {"generation": generation.lead, "augmentation": _rare, "dynamics": dynamics.lead}
    return [*leads.get(bench.kind, _winner)(bench), *_doubts(bench), *_context(bench)]


def _winner(bench: ScoreTable) -> Iterator[str]:
    """Say which method wins on the total, or the mean there is, and from which it is not told apart."""
    rows = bench.methods.index[bench.methods["role"] != "ceiling"]
    known = bench.table().loc[rows].dropna(axis=1, how="all")
    key = next((name for name in ("total", "bio", "batch") if name in known), "")
    if key != "total":
        lacking = {n: why for n, why in bench.lacking().items() if n in ("total", "bio", "batch")}
        yield from (f"There is no {name!r}: {why}" for name, why in lacking.items())
    if not key:
        return
    totals = known[key].dropna().sort_values(ascending=False, kind="stable")
    ends = bench.scores[bench.scores["metric"] == key].groupby("method")
    low, high = ends["low"].min(), ends["high"].max()
    best = totals.index[0]
    said = f"{totals[best]:.3f} (95 % interval {low[best]:.3f} to {high[best]:.3f})"
    if bench.methods.loc[best, "role"] == "baseline" and "method" in set(bench.methods["role"]):
        yield f"No method beats the baselines: {best}, a baseline, has the highest {key}, {said}."
    else:
        yield f"{best} has the highest {key}, {said}."
    # against PCA there is a paired comparison, which is sharper: its outcome is in the notes
    top = bench.methods.loc[best]
    settled = top["role"] == "method" and f"not better than {BASELINE}" not in top["note"]
    near = [m for m in totals.index[1:] if high[m] >= low[best] and not (settled and m == BASELINE)]
    if near:
        yield f"The intervals of {_and(near)} overlap with that of {best}: their order is not settled."


def _rare(bench: ScoreTable) -> Iterator[str]:
    """Say what finds the rare classes best, by each classifier."""
    table = bench.table()
    for metric, name in bench.metrics["name"].items():
        if not str(metric).endswith("_rare") or table[metric].dropna().empty:
            continue
        known = table[metric].astype(float).dropna().sort_values(ascending=False, kind="stable")
        best, *others = (f"{n} {v:.3f}" for n, v in known.items())
        beside = f"; {_and(others)}" if others else ""
        yield f"{name}: best is {best}{beside}."
    if alone := bench.about.get("untested"):
        yield f"Of one cell, which leaves none to be tested on: {_and(alone)}."


def _doubts(bench: ScoreTable) -> Iterator[str]:
    """Put what is noted of every method in a sentence; methods come before baselines."""
    for method, row in bench.methods.sort_values("role", ascending=False, kind="stable").iterrows():
        notes = [n for n in row["note"].split("; ") if n and not n.startswith("one seed")]
        said = [_IN_FULL[note] for note in notes if note in _IN_FULL]
        if row["role"] == "method" and 0 < row["seeds"] < _FEW_SEEDS:
            seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
            said.append(f"was judged under {seeds}, so how much fits differ is not known")
        if said:
            yield f"{method} {'; it '.join(said)}."
        yield from (f"{method}: {note}." for note in notes if note not in _IN_FULL)


def _context(bench: ScoreTable) -> Iterator[str]:
    """Say what the ceiling is, which totals cannot be compared, and which cells did not count."""
    values = bench.table()[list(bench.metrics.index)]
    ceilings = bench.methods.index[bench.methods["role"] == "ceiling"]
    if "total" in values:
        for method in values.loc[ceilings, "total"].dropna().index:
            yield (
                f"The ceiling, {method}, stands at {values.loc[method, 'total']:.3f}: "
                "what its labels alone would score. A total above it mixes batches better."
            )
        partial = values.drop(index=ceilings).dropna(how="all").isna()
        if len(partial.drop_duplicates()) > 1:
            fewer = partial.index[partial.sum(axis=1) > partial.sum(axis=1).min()]
            yield (
                f"Totals of {_and(fewer)} average fewer metrics than the others': do not compare them."
            )
    cells, unlabelled = bench.about.get("cells", 0), bench.about.get("unlabelled", 0)
    if unlabelled:
        yield f"{unlabelled:,} of {cells:,} cells have no label; scores that read labels leave them out."


def _undefined(bench: ScoreTable) -> list[str]:
    """Say why scores are not there, once per metric and reason."""
    lacking = bench.scores[bench.scores["value"].isna()]
    if "reason" not in lacking:
        return []
    found = lacking[lacking["metric"].map(bench.metrics["group"]) != "total"]
    return [
        f"{bench.metrics.loc[metric, 'name']} of {_and(rows['method'].unique())}: {reason}"
        for (metric, reason), rows in found.groupby(["metric", "reason"], sort=False)
    ]


def _and(names: Iterable[object]) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


# pictures


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
        text += f" {PICTURED:,} of {n:,} cells are shown, drawn at random."
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


# a fitted model


@checked
def fit_sections(fitted: FittedState) -> list[Section]:
    """Return what a fitted model was learned from, its training curves and its configuration."""
    said, spec = fitted.provenance, fitted.spec
    sizes = [f"{len(names):,} features of {role}" for role, names in spec.features.items()]
    sizes += [f"{len(names):,} categories of {role}" for role, names in spec.categories.items()]
    card = [
        f"It {STATES[said['state']]}.",
        *(f"{note[:1].upper()}{note[1:]}." for note in said["notes"]),
        f"Learned from {said['cells']:,} cells ({', '.join(sizes)}), seed {said['seed']}, "
        f"by chreode {said['version']}.",
        f"It can {', '.join(fitted.verbs)}.",
    ]
    values = config.as_dict(fitted.model)
    options = pd.DataFrame(
        [
            (o["name"], str(values[o["name"]]), str(o["default"]), o["doc"])
            for o in config.describe(type(fitted.model))
        ],
        columns=["option", "value", "default", "meaning"],
    ).set_index("option")
    return [
        Section(type(fitted.model).__name__, _lead_and_list(card)),
        _training(fitted),
        *(dynamics.fit_sections(fitted) if "rank" in fitted.verbs else []),
        Section("Configuration", tables=(("", options),)),
    ]


def _training(fitted: FittedState) -> Section:
    if not any(c.startswith("train_") for c in fitted.history):
        return Section("Training", "Solved in closed form: there is no training curve.")
    caption = (
        "Per epoch, over the cells learned from and the cells held out; the dot is the lowest."
    )
    return Section("Training", figures=((caption, history(fitted)),))
