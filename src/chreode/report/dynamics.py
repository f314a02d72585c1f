"""What a report says of forecasts, and of what drives them."""

from __future__ import annotations

from collections.abc import Iterator

from ..config.arguments import checked
from ..errors import ConfigError
from ..metrics.table import ScoreTable
from ..plot import edge_matrix, sparsity_curve
from ..verbs.paths import rank
from ..verbs.state import FittedState
from .page import Section


def lead(bench: ScoreTable) -> Iterator[str]:
    """Say level by level what forecasts best, and what finds the most edges."""
    table = bench.table()
    table = table[table["role"] != "ceiling"]
    for level in bench.about["levels"]:
        rows = table.dropna(subset=f"denoised, {level}").sort_values(f"denoised, {level}")
        best = rows.index[0]
        said = f"R² {rows.loc[best, f'denoised_r2, {level}']:.2f} of smoothed paths"
        if rows.loc[best, "role"] == "baseline" and (rows["role"] == "method").any():
            yield f"{level}: no method beats the baselines; {best}, a baseline, is best, {said}."
        else:
            yield f"{level}: {best} is best, {said}."
    if "signed" in table:
        found = table["signed"].dropna().sort_values(ascending=False)
        others = ", ".join(f"{name} {value:.2f}" for name, value in found.iloc[1:].items())
        yield (
            f"Edges with their signs: {found.index[0]} finds most, area under precision and recall "
            f"{found.iloc[0]:.2f} ({others})."
        )


def sections(bench: ScoreTable) -> list[Section]:
    """Return what became of errors and edges along strengths, and the errors of single series."""
    found = []
    if len(bench.curves):
        caption = "Held-out series decide which strength is kept: the largest that is as good as the best."
        figures = ((caption, sparsity_curve(bench.curves)),)
        found.append(Section("Along the strengths", figures=figures))
    means = bench.by_class.pivot_table(
        index=["metric", "class"], columns="method", values="value", sort=False
    ).reindex(columns=bench.methods.index)
    told = {"mse": "Mean squared error of cells", "denoised": "The same of smoothed paths"}
    tables = tuple((text, means.loc[key].rename_axis(None, axis=1)) for key, text in told.items())
    return [*found, Section("Single series", "Means over seeds.", tables=tables)]


@checked
def fit_sections(fitted: FittedState) -> list[Section]:
    """Return what drives what, and how the strength was chosen."""
    edges = rank(fitted)
    if "source" not in edges:
        return []
    found = []
    if len(edges):
        caption = "The strongest edges: row, the driver; red activates, blue represses."
        table = edges.head(15).set_index("source")
        found.append(
            Section(
                "What drives what", tables=(("", table),), figures=((caption, edge_matrix(edges)),)
            )
        )
    try:
        curve = sparsity_curve(fitted.history)
    except ConfigError:  # it went along no strengths
        return found
    return [*found, Section("Along the strengths", figures=(("", curve),))]
