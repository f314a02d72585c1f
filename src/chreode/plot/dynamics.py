"""Pictures of dynamics: the plane in which cells move, paths over what was observed, who drives whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.arguments import checked
from ..data.cells import Cells
from ..errors import ConfigError, DataError, SchemaError, near
from ..run import Run
from ..text import picture
from ..verbs.answering import open_cells, stream
from ..verbs.latent import embed
from ..verbs.paths import trajectory
from ..verbs.state import FittedState
from .style import GREY, PALETTE, axes, bare, panels, picture_of

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
        ax.plot(*along.T, color=colour, linewidth=1.6, label=picture(name))
        ax.plot(*along[0], "o", color=colour, markersize=5)
    if names:
        # on a ground of its own: streamlines are everywhere
        ax.legend(
            framealpha=0.85, edgecolor="none", fontsize="small", title="paths from their starts",
            title_fontsize="small",
        )  # fmt: skip
    ax.set(xlabel="1st component", ylabel="2nd component", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    bare(ax)
    return ax


@checked
def paths(fitted: FittedState, data: AnnData, genes: Sequence[str], *, most: int = 4) -> Figure:
    """Draw paths from the starts of trajectories over what was observed, a panel per gene.

    Parameters
    ----------
    most
        Trajectories to show.

    Raises
    ------
    ConfigError
        If there is no such gene, or none is named.
    """
    role = fitted.spec.either("expression", "counts")
    known = list(fitted.spec.features[role])
    if not genes:
        raise ConfigError(f"There are no genes to draw: name some, as in genes=[{known[0]!r}].")
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise ConfigError(f"There is no gene {unknown[0]!r}.{near(unknown[0], known)}")
    cells, quiet = Cells.of(data, fitted.schema), Run(progress=False)
    time = _times(cells)
    of = (
        cells.column("trajectory").astype(str).to_numpy()
        if "trajectory" in cells.places
        else np.full(len(cells), "all cells")
    )
    source, rows = open_cells(fitted, "embed", cells, quiet)
    seen = np.concatenate(
        [batch.log_expression() for _, batch in stream(source, rows, "paths", quiet, "cpu")]
    )
    names = list(fitted.spec.categories.get("trajectory", ("all cells",)))[:most]
    width = min(4, len(genes))
    n_rows = -(-len(genes) // width)
    figure = picture_of(3.0 * width, 2.3 * n_rows)
    grid = panels(figure, n_rows, width).ravel()
    for ax, gene in zip(grid, genes, strict=False):
        column = known.index(gene)
        for colour, name in zip(PALETTE, names, strict=False):
            mine = of == name
            ax.plot(time[mine], seen[mine, column], ".", color=colour, markersize=3, alpha=0.5)
            path = _path(fitted, name)
            ax.plot(
                path.obs[fitted.column("time")],
                path.X[:, column],
                color=colour,
                linewidth=1.5,
                label=picture(name),
            )
        ax.set_title(picture(gene), fontsize="medium")
        ax.set_xlabel("time")
        bare(ax)
    for ax in grid[len(genes) :]:
        ax.set_visible(False)
    grid[0].legend(frameon=False, fontsize="small")
    return figure


@checked
def edge_matrix(edges: pd.DataFrame, *, most: int = 30, ax: Axes | None = None) -> Axes:
    """Draw what drives what: red activates, blue represses.

    Parameters
    ----------
    edges
        What `rank` returned.
    most
        Genes to show: those with the strongest edges.

    Examples
    --------
    >>> table = pd.DataFrame({"source": ["a", "b"], "target": ["b", "a"], "weight": [1.0, -0.5]})
    >>> edge_matrix(table).get_xlabel()
    'driven'
    """
    strength = pd.concat(
        [
            edges.groupby(end)["weight"].apply(lambda w: w.abs().max())
            for end in ("source", "target")
        ]
    )
    genes = strength.groupby(level=0).max().sort_values(ascending=False).index[:most]
    table = edges.pivot_table(index="source", columns="target", values="weight", aggfunc="first")
    table = table.reindex(index=genes, columns=genes)
    size = 1.4 + 0.17 * len(genes)
    ax = axes(ax, size + 0.8, size)
    bound = float(np.nanmax(np.abs(table.to_numpy()))) if table.notna().any(axis=None) else 1.0
    shown = ax.imshow(table, cmap="RdBu_r", vmin=-bound, vmax=bound)
    ax.figure.colorbar(shown, ax=ax, shrink=0.7, label="weight")
    ax.set_xticks(range(len(genes)), [*map(picture, genes)], rotation=90, fontsize="x-small")
    ax.set_yticks(range(len(genes)), [*map(picture, genes)], fontsize="x-small")
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
    """
    if "none" not in curves or curves["none"].count() < 2:
        raise ConfigError(
            "This fit has one strength only: leave strength at None, and give strengths."
        )
    told = curves.dropna(subset="none")
    methods = dict(list(told.groupby("method", sort=False))) if "method" in told else {"": told}
    figure = picture_of(7.0, 2.8)
    pair = panels(figure, 1, 2)[0]
    for colour, (method, rows) in zip(PALETTE * 2, methods.items(), strict=False):
        means = rows.groupby("strength")[["held_out", "none"]].mean()
        for ax, column in zip(pair, means, strict=True):
            ax.plot(
                means.index, means[column], "o-", color=colour, markersize=4, label=picture(method)
            )
    pair[0].set(ylabel="error of held-out series, scaled", ylim=(0, None))
    pair[1].set(ylabel="share of pairs without a path", ylim=(-0.02, 1.02))
    for ax in pair:
        ax.set_xscale("symlog", linthresh=float(min(s for s in told["strength"] if s > 0)))
        ax.set_xlabel("strength of the penalty")
        bare(ax)
    if len(methods) > 1:
        lines, names = pair[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _path(fitted: FittedState, start: str) -> AnnData:
    found = trajectory(fitted, start=start)
    assert isinstance(found, AnnData)  # a file only if one was named
    return found


def _times(cells: Cells) -> np.ndarray:
    if "time" not in cells.places:
        raise SchemaError("This needs a model that was fitted with time: Schema(time='obs/…').")
    return cells.numbers("time")
