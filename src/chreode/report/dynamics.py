"""What a report says of forecasts, and of what drives them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.arguments import checked
from ..data.horizon import ForecastWarning
from ..errors import BlowUpError, ConfigError, counted
from ..metrics.table import ScoreTable
from ..plot import edge_matrix, paths, sparsity_curve
from ..plot.dynamics import refits_of
from ..verbs.paths import rank, trajectory
from ..verbs.state import FittedState
from .page import Section
from .words import listed, yardsticks

#: Genes and trajectories in a picture of paths, and edges in a table.
_GENES, _PATHS, _EDGES = 4, 2, 15
_NO_YARDSTICK = (
    "A fit alone has no baseline and no ceiling: a bench of dynamics compares edges with known ones, and "
    "forecasts with those of simple models."
)
_HELD = (
    "Some values would leave the range that their gene has in the cells of the fit. They are held at the end "
    "of it, where lines are flat."
)

# of a bench


def lead(bench: ScoreTable) -> Iterator[str]:
    """Say level by level what forecasts best, and what finds the most edges."""
    table = bench.table()
    of_ceilings = table["role"] == "ceiling"
    ceilings, table = table[of_ceilings], table[~of_ceilings]
    for level in bench.about["levels"]:
        rows = table.dropna(subset=f"denoised, {level}").sort_values(f"denoised, {level}")
        if rows.empty or np.isinf(rows[f"denoised, {level}"].iloc[0]):
            yield f"{level}: {'all paths blow up' if len(rows) else 'nothing was scored'}."
            continue
        explained, role, best = rows[f"denoised_r2, {level}"], rows["role"], rows.index[0]
        sentence = f"R² {_r2(explained[best])} of smoothed paths"
        other = {"method": "baseline", "baseline": "method"}.get(role[best])
        for name, value in explained[role == other].iloc[:1].items():
            too = " too" if _r2(value) == _r2(explained[best]) else ""
            sentence += f"; the best {other}, {name}, has {_r2(value)}{too}"
        for name, value in ceilings[f"denoised_r2, {level}"].dropna().items():
            sentence += f"; the ceiling, {name}, has {_r2(value)}"
        if role[best] == "baseline" and (role == "method").any():
            yield f"{level}: no method beats the baselines; {best}, a baseline, is best, {sentence}."
        else:
            yield f"{level}: {best} is best, {sentence}."
    if "signed" in table and table["signed"].notna().any():
        found = table["signed"].dropna().sort_values(ascending=False)
        others = ", ".join(f"{name} {value:z.2f}" for name, value in found.iloc[1:].items())
        yield (
            f"Edges with their signs: {found.index[0]} finds most, area under precision and recall "
            f"{found.iloc[0]:z.2f} ({others})."
        )


def _r2(value: float) -> str:
    """Return an R², which has no lower end."""
    if np.isinf(value):
        return "none, as its paths blow up"
    return f"{value:z.2f}" if abs(value) < 1000 else f"{value:.2g}"


def sections(bench: ScoreTable) -> list[Section]:
    """Return what became of errors and edges along strengths."""
    caption = (
        "Held-out series decide which strength is kept: the largest that is as good as the best."
    )
    return _along_strengths(bench.curves, caption)


def _along_strengths(curves: pd.DataFrame, caption: str) -> list[Section]:
    try:
        return [Section("Along the strengths", figures=((caption, sparsity_curve(curves)),))]
    except ConfigError:  # there are none, or a single one
        return []


def tables(bench: ScoreTable) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the errors of single series."""
    if not len(bench.by_class):
        return
    means = bench.of_classes()
    for key, text in (
        ("mse", "Errors of single series"),
        ("denoised", "Errors of smoothed single series"),
    ):
        caption = f"{text}. Mean squared errors, means over seeds. 0 is best. {yardsticks(bench)}"
        yield caption, means.loc[key].rename_axis(None, axis=1)


# of a fitted model


@checked
def dynamics_sections(fitted: FittedState, data: AnnData | None = None) -> list[Section]:
    """Return where cells go, what drives them, and what would happen without the strongest driver.

    Parameters
    ----------
    fitted
        A fitted model of time.
    data
        Cells to draw beside the paths.

    Raises
    ------
    CapabilityError
        If the model knows of no paths.
    """
    for verb in ("trajectory", "rank"):
        fitted.require(verb)
    edges = rank(fitted)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", ForecastWarning)
        sentences, figures = _course(fitted, data, edges)
    for caught in heard:
        if not issubclass(caught.category, ForecastWarning):
            warnings.warn_explicit(caught.message, caught.category, caught.filename, caught.lineno)
    if any(issubclass(caught.category, ForecastWarning) for caught in heard):
        sentences.append(_HELD)
    if len(edges):
        caption = "The strongest edges: the row drives the column. Red activates, blue represses."
        figures.append((caption, edge_matrix(edges)))
    found = [
        Section(
            "Dynamics",
            f"{sentences[0]}\n\n{listed(sentences[1:])}",
            _edges(edges),
            tuple(figures),
        )
    ]
    caption = "Errors of held-out series, and the share of pairs without an effect, by strength."
    return [*found, *_along_strengths(fitted.history, caption)]


def _edges(edges: pd.DataFrame) -> tuple[tuple[str, pd.DataFrame], ...]:
    if not len(edges):
        return ()
    table = edges.head(_EDGES).set_index("source").dropna(axis=1, how="all")
    return ((f"The strongest edges. Above 0 the source activates. {_NO_YARDSTICK}", table),)


def _course(
    fitted: FittedState, data: AnnData | None, edges: pd.DataFrame
) -> tuple[list[str], list[tuple[str, Figure | Axes]]]:
    """Return what is said of paths and of the strongest driver, and their pictures."""
    refits = refits_of(fitted)
    sentences = _of_edges(edges, len(refits))
    figures: list[tuple[str, Figure | Axes]] = []
    band = (
        f"Bands reach from the lowest to the highest of {counted(len(refits), 'refit')} on resampled paths."
        if refits
        else "There are no bands, as this fit made no refits: n_refits=5 or more shows how sure paths are."
    )
    known = list(fitted.spec.features[fitted.spec.either("expression", "counts")])
    ends = edges[["source", "target"]].head(_EDGES).to_numpy().ravel()
    genes = list(dict.fromkeys([*ends, *known]))[:_GENES]
    dots = "Dots are cells. " if data is not None else ""
    try:
        drawn = paths(fitted, data, genes, most=_PATHS)
        caption = f"Paths from the starts of trajectories. {dots}{band if refits else ''}"
        figures.append((caption.strip(), drawn))
        sentences.append(band)
        if len(edges):
            driver = _strongest(edges)
            moved, text = _without(fitted, driver)
            caption = f"A knock-out of {driver}: paths with it, and dashed without it. {dots}"
            removed = paths(fitted, data, moved, most=_PATHS, knockout=driver)
            figures.append((caption.strip(), removed))
            sentences.append(text)
    except BlowUpError as error:
        sentences.append(f"Not all paths can be drawn: {error}")
    return sentences, figures


def _of_edges(edges: pd.DataFrame, n_refits: int) -> list[str]:
    if not len(edges):
        return ["No gene drives another one in this fit."]
    source, target, weight, confidence = edges.iloc[0][["source", "target", "weight", "confidence"]]
    acts = "activates" if weight > 0 else "represses"
    sure = (
        f" It is found beyond chance in {confidence * n_refits:.0f} of {counted(n_refits, 'refit')}."
        if n_refits
        else ""
    )
    return [
        f"{source} {acts} {target}: this is the strongest of {counted(len(edges), 'edge')}.{sure}",
        f"{_strongest(edges)} is the strongest driver: its edges weigh most together.",
    ]


def _strongest(edges: pd.DataFrame) -> str:
    weights = edges["weight"].abs().groupby(edges["source"]).sum()
    return str(weights.idxmax())


def _without(fitted: FittedState, driver: str) -> tuple[Sequence[str], str]:
    """Return the genes that a knock-out moves most by the end of the first path, and how far the first."""
    start = fitted.spec.categories.get("trajectory", ("all cells",))[0]
    end = f"end of {start}" if "trajectory" in fitted.spec.categories else "end of the path"
    kept, gone = (_states(fitted, start, to) for to in (None, {"knockout": driver}))
    names = fitted.spec.features[fitted.spec.either("expression", "counts")]
    moved = np.abs(kept - gone)[-1]
    moved[list(names).index(driver)] = -1  # it is removed, and not moved
    order = np.argsort(-moved, kind="stable")[:_GENES]
    most = order[0]
    text = (
        f"Without {driver}, {names[most]} changes most: at the {end} it is {gone[-1, most]:z.2f} "
        f"and not {kept[-1, most]:z.2f}. This is a prediction, and nothing measured stands beside it."
    )
    return [names[i] for i in order if moved[i] >= 0], text


def _states(fitted: FittedState, start: str, to: Any) -> np.ndarray:
    """Return a path, times x genes."""
    found = trajectory(fitted, start=start, to=to)
    assert isinstance(found, AnnData)  # a file only if one was named
    return np.asarray(found.X)
