"""Pictures of dynamics: the plane in which cells move, paths over what was observed, who drives whom."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config.arguments import checked
from ..data.cells import Cells
from ..data.horizon import ForecastWarning
from ..errors import BlowUpError, ConfigError, DataError, SchemaError, near
from ..run import Run
from ..text import picture
from ..verbs.answering import open_cells, stream
from ..verbs.latent import embed
from ..verbs.paths import trajectory
from ..verbs.state import FittedState
from .style import (
    GREY,
    PALETTE,
    axes,
    bare,
    legend_columns,
    panels,
    picture_of,
    require_columns,
    short,
)

#: From blue to red by way of nothing, so that a weak edge is pale on white and on black.
_SIGNS = LinearSegmentedColormap.from_list(
    "chreode signs",
    [
        (0.0, "#1F77C9FF"), (0.4, "#1F77C960"), (0.5, "#1F77C900"),
        (0.5, "#D0312D00"), (0.6, "#D0312D60"), (1.0, "#D0312DFF"),
    ],
)  # fmt: skip
#: Corners of the grid on which streamlines are drawn, per axis.
_GRID = 24


@checked
def phase_portrait(
    fitted: FittedState, data: AnnData, *, paths: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Draw cells, streamlines of the velocity and paths, in the plane in which training paths vary most.

    Parameters
    ----------
    fitted
        A fitted neural ODE.
    data
        Cells to show, coloured by time.
    paths
        Trajectories of the fit to follow from their starts (default: the first three).

    Returns
    -------
    The axes. Streamlines are those of states in the plane: cells beside it may move otherwise.

    Raises
    ------
    DataError
        If the cells vary in fewer than two components.
    """
    ax = axes(ax, 4.6, 4.0)
    z = embed(fitted, data)[:, :2]
    time = _times(Cells.of(data, fitted.schema))
    if z.shape[1] < 2 or not np.ptp(z, axis=0).all():
        raise DataError(
            "There is no plane to draw: these cells vary in fewer than two components of the fit. Give "
            "others, or fit with n_latent=2 or more; plot.paths draws single genes."
        )
    shown = ax.scatter(z[:, 0], z[:, 1], c=time, s=8, cmap="viridis", linewidths=0, alpha=0.7)
    ax.figure.colorbar(shown, ax=ax, label="time", shrink=0.7)
    low, high = z.min(0), z.max(0)
    pad = 0.08 * (high - low)
    x, y = (np.linspace(a, b, _GRID) for a, b in zip(low - pad, high + pad, strict=True))
    corners = torch.tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), dtype=torch.float32)
    u, v = fitted.module.drift(corners).numpy().reshape(_GRID, _GRID, 2).transpose(2, 0, 1)
    ax.streamplot(x, y, u, v, color=GREY, density=1.1, linewidth=0.7, arrowsize=0.8)
    names = fitted.spec.categories.get("trajectory", ())
    for colour, name in zip(PALETTE[5:], paths or names[:3], strict=False):
        path = _path(fitted, name)
        along = fitted.module.place(torch.from_numpy(path.X))[:, :2].numpy()
        ax.plot(*along.T, color=colour, linewidth=1.6, label=picture(short(name, 18)))
        ax.plot(*along[0], "o", color=colour, markersize=5)
    if names:
        # below the picture, as cells and streamlines are everywhere in it
        ax.legend(
            frameon=False, fontsize="small", title="paths from their starts", title_fontsize="small",
            loc="upper left", bbox_to_anchor=(0.0, -0.14), alignment="left",
            ncols=legend_columns(ax.get_legend_handles_labels()[1], 3.6),
        )  # fmt: skip
    ax.set(xlabel="1st component", ylabel="2nd component", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    bare(ax)
    return ax


@checked
def paths(
    fitted: FittedState,
    data: AnnData | None,
    genes: Sequence[str],
    *,
    most: int = 4,
    knockout: str | None = None,
) -> Figure:
    """Draw paths from the starts of trajectories over what was observed, a panel per gene.

    Where the fit made refits (`n_refits`), a band reaches from the lowest to the highest of them.

    Parameters
    ----------
    data
        Cells to draw as dots; None: the paths alone.
    most
        Trajectories to show.
    knockout
        Genes that are removed (several as ``A+B``): the same paths without them are dashed.

    Raises
    ------
    ConfigError
        If there is no such gene, or none is named.
    BlowUpError
        If a path leaves the finite numbers.
    """
    known = list(fitted.spec.features[fitted.spec.either("expression", "counts")])
    if not genes:
        raise ConfigError(f"There are no genes to draw: name some, as in genes=[{known[0]!r}].")
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise ConfigError(f"There is no gene {unknown[0]!r}.{near(unknown[0], known)}")
    at = [known.index(gene) for gene in genes]
    names = list(fitted.spec.categories.get("trajectory", ("all cells",)))[:most]
    seen = None if data is None else _observed(fitted, data, at)
    width = min(4, len(genes))
    n_rows = -(-len(genes) // width)
    labels = [picture(short(name, 24)) for name in names]
    lines = [Line2D([], [], color=colour) for colour, _ in zip(PALETTE, labels, strict=False)]
    if knockout is not None:
        labels.append(picture(f"without {short(knockout, 24)}"))
        lines.append(Line2D([], [], color=GREY, linestyle="--"))
    wide = max(3.0 * width, 4.0)
    columns = legend_columns(labels, wide)
    figure = picture_of(wide, 2.3 * n_rows + 0.2 + 0.2 * -(-len(labels) // columns))
    grid = panels(figure, n_rows, width).ravel()
    for colour, name in zip(PALETTE, names, strict=False):
        if seen is not None:
            _dots(grid, seen, name, colour)
        _lines(grid, fitted, name, at, color=colour)
        _bands(grid, fitted, name, at, colour)
        if knockout is not None:
            to = {"knockout": knockout}
            _lines(grid, fitted, name, at, to, color=colour, linestyle="--")
    for ax, gene in zip(grid, genes, strict=False):
        ax.set_title(picture(short(gene, 24)), fontsize="medium")
        ax.set_xlabel("time")
        bare(ax)
    grid[0].set_ylabel("expression")
    for ax in grid[len(genes) :]:
        ax.set_visible(False)
    figure.legend(
        lines, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize="small"
    )
    return figure


def _observed(
    fitted: FittedState, data: AnnData, at: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the trajectory and the time of each cell, and its expression of some genes."""
    cells, quiet = Cells.of(data, fitted.schema), Run(progress=False)
    time = _times(cells)
    of = (
        cells.column("trajectory").astype(str).to_numpy()
        if "trajectory" in cells.places
        else np.full(len(cells), "all cells")
    )
    source, rows = open_cells(fitted, "embed", cells, quiet)
    parts = stream(source, rows, "paths", quiet, "cpu")
    seen = np.concatenate([batch.log_expression()[:, at] for _, batch in parts])
    return of[rows], time[rows], seen


def _dots(
    grid: np.ndarray, seen: tuple[np.ndarray, np.ndarray, np.ndarray], name: str, colour: str
) -> None:
    of, time, values = seen
    mine = of == name
    for ax, column in zip(grid, values.T, strict=False):
        ax.plot(time[mine], column[mine], ".", color=colour, markersize=3, alpha=0.35)


def _lines(
    grid: np.ndarray,
    fitted: FittedState,
    name: str,
    at: Sequence[int],
    to: dict[str, str] | None = None,
    **look: Any,
) -> None:
    path = _path(fitted, name, to)
    for ax, column in zip(grid, path.X[:, at].T, strict=False):
        ax.plot(path.obs[fitted.column("time")], column, linewidth=1.5, **look)


def _bands(
    grid: np.ndarray, fitted: FittedState, name: str, at: Sequence[int], colour: str
) -> None:
    found = []
    for refit in refits_of(fitted):
        # the path that is drawn through the band says what leaves its range; those that blow up have none
        with warnings.catch_warnings(), suppress(BlowUpError):
            warnings.simplefilter("ignore", ForecastWarning)
            found.append(_path(refit, name))
    if found:
        values = np.stack([path.X[:, at] for path in found])
        time = found[0].obs[fitted.column("time")]
        for ax, low, high in zip(grid, values.min(0).T, values.max(0).T, strict=False):
            ax.fill_between(time, low, high, color=colour, alpha=0.2, linewidth=0)


def refits_of(fitted: FittedState) -> list[FittedState]:
    """Return the refits of a fit on resampled trajectories, each as a fit; none if it made none."""
    module = fitted.module
    if not hasattr(module, "confidence") or bool(module.confidence.isnan().all()):
        return []
    return [replace(fitted, module=member) for member in module.members]


@checked
def edge_matrix(
    edges: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    most: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw what drives what: red activates, blue represses, and the paler the weaker.

    Parameters
    ----------
    edges
        What `rank` returned.
    genes
        Genes to show, in this order (default: those with the strongest edges).
    most
        How many of these.

    Raises
    ------
    SchemaError
        If the table holds no edges.

    Examples
    --------
    >>> table = pd.DataFrame({"source": ["a", "b"], "target": ["b", "a"], "weight": [1.0, -0.5]})
    >>> edge_matrix(table).get_xlabel()
    'driven'
    """
    require_columns(
        edges, ["source", "target", "weight"], "the edges that rank returns of a model of time"
    )
    strength = pd.concat(
        [
            edges.groupby(end)["weight"].apply(lambda w: w.abs().max())
            for end in ("source", "target")
        ]
    )
    if genes is None:
        strongest = strength.groupby(level=0).max().sort_values(ascending=False)
        genes = [*strongest.index[:most]]
    table = edges.pivot_table(index="source", columns="target", values="weight", aggfunc="first")
    table = table.reindex(index=genes, columns=genes)
    size = 1.4 + 0.17 * len(genes)
    ax = axes(ax, size + 0.8, size)
    bound = float(np.nanmax(np.abs(table.to_numpy()))) if table.notna().any(axis=None) else 1.0
    shown = ax.imshow(table, cmap=_SIGNS, vmin=-bound, vmax=bound)
    ax.figure.colorbar(shown, ax=ax, shrink=0.7, label="weight")
    labels = [picture(short(gene, 18)) for gene in genes]
    ax.set_xticks(range(len(genes)), labels, rotation=90, fontsize="x-small")
    ax.set_yticks(range(len(genes)), labels, fontsize="x-small")
    ax.set(xlabel="driven", ylabel="driver")
    return ax


@checked
def sparsity_curve(curves: pd.DataFrame) -> Figure:
    """Draw errors, and how many pairs of genes are without an effect, over the strength of the penalty.

    Parameters
    ----------
    curves
        The history of a fit along strengths, or the `curves` of a bench of dynamics: ``strength``,
        ``held_out`` and ``none``, and ``method`` where there are several.

    Raises
    ------
    ConfigError
        If the fit went along no strengths.
    SchemaError
        If the table is no history of one.
    """
    if "none" not in curves or curves["none"].count() < 2:
        raise ConfigError(
            "This fit has one strength only: leave strength at None, and give strengths."
        )
    require_columns(curves, ["strength", "held_out"], "the history of a fit along strengths")
    measured = curves.dropna(subset="none")
    named = "method" in measured
    methods = dict(list(measured.groupby("method", sort=False))) if named else {"": measured}
    figure = picture_of(7.0, 2.8)
    pair = panels(figure, 1, 2)[0]
    for colour, (method, rows) in zip(PALETTE * 2, methods.items(), strict=False):
        means = rows.groupby("strength")[["held_out", "none"]].mean()
        for ax, column in zip(pair, means, strict=True):
            ax.plot(
                means.index,
                means[column],
                "o-",
                color=colour,
                markersize=4,
                label=picture(short(method, 24)),
            )
    pair[0].set(ylabel="error of held-out series, scaled", ylim=(0, None))
    pair[1].set(ylabel="share of pairs without effect", ylim=(-0.02, 1.02))
    least = min((float(s) for s in measured["strength"] if s > 0), default=1.0)
    for ax in pair:
        ax.set_xscale("symlog", linthresh=least)
        ax.set_xlabel("strength of the penalty")
        bare(ax)
    if len(methods) > 1:
        lines, names = pair[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _path(fitted: FittedState, start: str, to: dict[str, str] | None = None) -> AnnData:
    found = trajectory(fitted, start=start, to=to)
    assert isinstance(found, AnnData)  # a file only if one was named
    return found


def _times(cells: Cells) -> np.ndarray:
    if "time" not in cells.places:
        raise SchemaError("This needs a model that was fitted with time: Schema(time='obs/…').")
    return cells.numbers("time")
