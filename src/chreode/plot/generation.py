"""Generated cells beside real ones: where they lie, and how often their genes are silent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..config.arguments import checked
from ..errors import CapabilityError, ConfigError, DataError, counted, near
from ..metrics.score import Labels
from ..metrics.space import Space
from ..text import picture
from .counts import Counts
from .scatter import embedding, principal_plane, umap_coordinates
from .style import GREY, PALETTE, axes, bare, opaque, panels, picture_of, require_columns, short

#: Cells of each kind in a picture at the most, and markers that are named in one.
_SHOWN, _NAMED = 3000, 5
#: What is drawn of a marker.
_MARKERS = ("method", "class", "gene", "cells", "real share", "fake share", "off share")


@checked
def real_and_generated(
    real: Counts,
    generated: Counts,
    labels: tuple[Labels, Labels] | None = None,
    *,
    names: tuple[str, str] = ("real", "generated"),
    seed: int = 0,
) -> Figure:
    """Draw real and generated cells side by side in one layout, coloured by label, then both together.

    The layout is UMAP (without umap-learn: a plane) of 30 principal components of as many cells of either
    kind, at most 3,000. Components of one kind alone would make it look wider than the other.

    Parameters
    ----------
    real, generated
        Raw counts, shape (cells, genes), of the same genes.
    labels
        One value per real and per generated cell.
    names
        What the panels are called.
    seed
        Of the choice of cells and of the layout.

    Raises
    ------
    DataError
        If the genes are not as many, or labels are not as many as cells.
    """
    _require_same_genes(real, generated)
    for of, cells in zip(labels or (), (real, generated), strict=False):
        if len(of) != cells.shape[0]:
            raise DataError(
                f"Got {counted(len(of), 'label')} for {counted(cells.shape[0], 'cell')}; give one for each."
            )
    rng = np.random.default_rng(seed)
    counts = [sp.csr_matrix(c) for c in (real, generated)]
    rows = [np.sort(rng.permutation(c.shape[0])[:_SHOWN]) for c in counts]
    even = min(len(some) for some in rows)
    both = [c[rng.permutation(some)[:even]] for c, some in zip(counts, rows, strict=True)]
    space = Space.of(sp.csr_matrix(sp.vstack(both)))
    x = np.concatenate([space.place(c[some]) for c, some in zip(counts, rows, strict=True)])
    try:
        plane = umap_coordinates(x, seed)
    except CapabilityError:
        plane = principal_plane(x)
    kind = np.repeat(names, [len(some) for some in rows])
    values = kind.astype(object)
    if labels is not None:
        values = np.concatenate(
            [np.asarray(v, dtype=object)[some] for v, some in zip(labels, rows, strict=True)]
        )
    figure = picture_of(12.5, 3.6)
    row = panels(figure, 1, 3, shared=True)[0]
    known = pd.Categorical(values)  # the same colours in both panels
    for panel, name in zip(row[:2], names, strict=True):
        mine = kind == name
        embedding(plane[mine], colour=pd.Series(known[mine]), ax=panel, title=name, seed=seed)
        if panel is row[0] and panel.get_legend() is not None:
            panel.get_legend().remove()
    embedding(plane, colour=kind, ax=row[2], title="both", seed=seed)
    for panel in row:
        panel.set(xlabel="", ylabel="")
    return figure


@checked
def marker_shares(
    markers: pd.DataFrame, method: str, *, beside: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the share of generated cells that express each marker of their type over that of real ones.

    A dot is the larger the more cells its type has, from 10 to 60.

    Parameters
    ----------
    markers
        `Bench.markers` of a bench of generation.
    method
        Whose cells to draw; its markers that are furthest off are named, and it is said if none is off.
    beside
        A method that is drawn in grey behind, as real cells are.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    ConfigError
        If there are no markers of this method.
    SchemaError
        If the table holds something else.

    Examples
    --------
    >>> row = {"method": "VAE", "class": "B", "gene": "CD79A", "real share": 1.0, "fake share": 0.25}
    >>> ax = marker_shares(pd.DataFrame([{**row, "cells": 40, "off share": 0.5}]), "VAE")
    >>> [text.get_text() for text in ax.texts]
    ['CD79A, B']
    """
    if len(markers):
        require_columns(markers, _MARKERS, "the markers of a bench of generation")
    known = dict.fromkeys(markers["method"] if len(markers) else ())
    if method not in known:
        raise ConfigError(f"There are no markers of {method!r}.{near(method, known)}")
    ax = axes(ax, 3.8, 3.8)
    means = markers.groupby(["method", "class", "gene"]).mean(numeric_only=True)
    for name, colour in ((beside, GREY), (method, PALETTE[0])):
        if name in means.index:
            some = means.loc[name]
            ax.scatter(
                some["real share"], some["fake share"], s=some["cells"].clip(10, 60) / 2,
                color=colour, alpha=0.6, linewidths=0, label=picture(name),
            )  # fmt: skip
    opaque(ax.legend(loc="upper left", frameon=False, fontsize=7, handletextpad=0.2))
    worst = means.loc[method].nlargest(_NAMED, "off share")
    off = worst[worst["off share"] > 0]
    if off.empty:
        ax.text(
            0.97, 0.03, "none off beyond chance", fontsize=7, ha="right", transform=ax.transAxes
        )
    for (kind, gene), row in off.iterrows():
        right = row["real share"] > 0.5
        ax.annotate(
            f"{gene}, {short(kind, 24)}", (row["real share"], row["fake share"]), fontsize=7,
            xytext=(-5 if right else 5, 0), textcoords="offset points", va="center",
            ha="right" if right else "left", parse_math=False,
        )  # fmt: skip
    ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2)
    ax.set(xlabel="share expressing, real", ylabel=picture(f"share expressing, {method}"))
    bare(ax)
    return ax


@checked
def zero_fractions(
    real: Counts,
    generated: Counts,
    *,
    names: tuple[str, str] = ("real", "generated"),
    ax: Axes | None = None,
) -> Axes:
    """Draw, for every gene, the share of generated cells without a count over that of real ones.

    Parameters
    ----------
    real, generated
        Raw counts, shape (cells, genes), of the same genes.
    names
        What the axes are called.
    ax
        Where to draw (default: a new figure).

    Examples
    --------
    >>> counts = sp.csr_array(np.random.default_rng(0).poisson(1.0, size=(50, 20)))
    >>> zero_fractions(counts, counts).get_xlabel()
    'share of zeros, real'
    """
    _require_same_genes(real, generated)
    ax = axes(ax, 3.8, 3.8)
    shares = [1 - (sp.csr_matrix(c) > 0).mean(0).A1 for c in (real, generated)]
    ax.scatter(
        shares[0], shares[1], s=6, color=PALETTE[0], alpha=0.5, linewidths=0, rasterized=True
    )
    ax.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2)
    ax.set(
        xlabel=picture(f"share of zeros, {names[0]}"), ylabel=picture(f"share of zeros, {names[1]}")
    )
    bare(ax)
    return ax


def _require_same_genes(real: Counts, generated: Counts) -> None:
    for counts in (real, generated):
        if len(counts.shape) != 2 or counts.dtype.kind not in "biuf":
            raise DataError(f"Expected numbers, cells x genes; got {counts.dtype} {counts.shape}.")
        if not counts.shape[0]:
            raise DataError("There are no cells to draw.")
    if real.shape[1] != generated.shape[1]:
        raise DataError(
            f"Real cells have {counted(real.shape[1], 'gene')}, generated ones {generated.shape[1]:,}: "
            "expected the same."
        )
