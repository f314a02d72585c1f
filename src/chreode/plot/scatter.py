"""Cells in two dimensions, coloured by what is known of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Float32, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mudata import MuData

from ..errors import CapabilityError, DataError, SchemaError, near
from ..metrics.neighbours import exact_neighbours
from ..metrics.score import as_embedding
from ..read import Data
from .style import GREY, PALETTE, axes

Colour: TypeAlias = str | pd.Series | pd.Categorical | Shaped[np.ndarray, " b"] | None


def embedding(
    x: Data | Float[np.ndarray, "b z"],
    key: str | None = None,
    colour: Colour = None,
    *,
    ax: Axes | None = None,
    title: str = "",
    seed: int = 0,
) -> Axes:
    """Scatter cells in two dimensions: those they have, or UMAP of more.

    Cells are drawn in random order, so that no category hides another, and as pixels even in SVG.

    Parameters
    ----------
    x
        Coordinates of the cells; or AnnData or MuData, then with `key`.
    key
        Key of ``obsm``: ``"X_scvi"`` or ``"scvi"``.
    colour
        A column of ``obs``, or one value per cell. Numbers get a scale; strings, truth values and
        categories get a legend. The colours in ``uns["<column>_colors"]`` are taken where there
        are any. Above 20 categories, the 20 largest keep a colour and the others share grey.
    ax
        Where to draw (default: a new figure).
    title
        Title of the axes.
    seed
        Of the drawing order and of UMAP.

    Raises
    ------
    CapabilityError
        If UMAP is needed and umap-learn is not installed.
    SchemaError
        If there is no such key or column.
    DataError
        If coordinates are not finite, or `colour` has not one value per cell.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> ax = embedding(x, colour=np.repeat(["B", "NK", "T"], 20))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['B', 'NK', 'T']
    """
    points = as_embedding(_coordinates(x, key))
    name = "UMAP" if points.shape[1] != 2 else (key or "dimension").removeprefix("X_")
    if points.shape[1] != 2:
        points = umap_coordinates(points, seed)
    values, listed = _values(x, colour, len(points))
    ax = axes(ax, 4.6, 3.6)
    order = np.random.default_rng(seed).permutation(len(points))
    size = float(np.clip(2e4 / len(points), 1.5, 16))

    def draw(rows: Int[np.ndarray, " r"], **look: Any) -> Any:
        x, y = points[rows].T
        return ax.scatter(x, y, s=size, linewidths=0, rasterized=True, **look)

    if values is None:
        draw(order, color=PALETTE[0])
    else:
        unknown = values.isna().to_numpy()
        if unknown.any():
            draw(order[unknown[order]], color=GREY, alpha=0.5)
        known = order[~unknown[order]]
        if _is_scale(values):
            drawn = draw(known, c=values.to_numpy(float)[known], cmap="viridis")
            figure = ax.get_figure(root=True)
            assert isinstance(figure, Figure)
            figure.colorbar(drawn, ax=ax, label=_plain(values.name), shrink=0.8)
        else:
            codes, shown = _groups(values, listed)
            draw(known, c=to_rgba_array(list(shown.values()))[codes[known]])
            _legend(ax, shown | ({"no value": GREY} if unknown.any() else {}), values.name)
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2", title=_plain(title))
    ax.spines[:].set_visible(False)
    return ax


def umap_coordinates(x: Float[np.ndarray, "b z"], seed: int = 0) -> Float32[np.ndarray, "b 2"]:
    """Lay cells out in the plane by UMAP, from exact neighbours and the first principal components.

    UMAP shows who is near whom; distances between groups, and their sizes, mean little. The same
    seed gives the same picture on one machine.

    Parameters
    ----------
    x
        Embedding; Euclidean distances.
    seed
        Of the layout's negative samples.

    Raises
    ------
    CapabilityError
        If umap-learn is not installed.
    DataError
        If `x` is not finite or has collapsed.

    References
    ----------
    McInnes, Healy & Melville, UMAP, arXiv 1802.03426 (2018). Kobak & Linderman, Nature
    Biotechnology 39 (2021), for starting from principal components.
    """
    x = as_embedding(x)
    n = len(x)
    neighbours = exact_neighbours(x, min(14, n - 1))
    itself = np.arange(n)[:, None]  # which UMAP counts among the neighbours
    known = (
        np.hstack([itself, neighbours.indices]),
        np.hstack([np.zeros((n, 1), np.float32), neighbours.distances]),
    )
    # it warns that new cells cannot be added to this picture, and of libraries it would also like
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            raise CapabilityError(
                "A picture of more than two dimensions needs UMAP, and umap-learn is not installed: "
                "pip install 'chreode[bench]', or give two dimensions."
            ) from error
        layout = UMAP(
            n_neighbors=neighbours.k + 1, n_epochs=200, init=principal_plane(x), random_state=seed, n_jobs=1,
            precomputed_knn=known,
        )  # fmt: skip
        return np.asarray(layout.fit_transform(x), np.float32)


def principal_plane(x: Float[np.ndarray, "b z"]) -> Float32[np.ndarray, "b 2"]:
    """Return the first two principal components; the second is zero if there is one dimension."""
    centred = np.asarray(x, np.float64) - np.mean(x, axis=0)
    _, axes_ = np.linalg.eigh(centred.T @ centred)
    plane = np.zeros((len(centred), 2), np.float32)
    first = axes_[:, ::-1][:, :2]
    plane[:, : first.shape[1]] = centred @ (first * np.sign(first.sum(axis=0)))
    return plane


def _coordinates(x: Any, key: str | None) -> Any:
    if not isinstance(x, (AnnData, MuData)):
        return x
    wanted = key or ""
    found = next((k for k in (wanted, f"X_{wanted}") if k in x.obsm), None)
    if found is None:
        raise SchemaError(f"There is no obsm[{key!r}]: name one by key.{near(wanted, x.obsm)}")
    return x.obsm[found]


def _values(x: Any, colour: Colour, n: int) -> tuple[pd.Series | None, Mapping[str, str]]:
    """Return one value per cell, and the colours that the data object lists for them."""
    if colour is None:
        return None, {}
    listed: dict[str, str] = {}
    if isinstance(colour, str):
        columns = x.obs if isinstance(x, (AnnData, MuData)) else pd.DataFrame()
        if colour not in columns:
            raise SchemaError(f"There is no obs[{colour!r}].{near(colour, columns)}")
        values = columns[colour]
        colours = x.uns.get(f"{colour}_colors", ())
        if isinstance(values.dtype, pd.CategoricalDtype) and len(colours) >= len(
            values.cat.categories
        ):
            listed = {str(c): str(k) for c, k in zip(values.cat.categories, colours, strict=False)}
    else:
        values = pd.Series(colour)
    if len(values) != n:
        raise DataError(f"There are {len(values)} values to colour {n} cells by.")
    return values, listed


def _is_scale(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _groups(
    values: pd.Series, listed: Mapping[str, str]
) -> tuple[Int[np.ndarray, " b"], dict[str, str]]:
    """Return the group of every cell (-1: none), and the colour of every group by name."""
    groups = values.astype("category").cat.remove_unused_categories()
    codes, names = groups.cat.codes.to_numpy(np.int64), [str(c) for c in groups.cat.categories]
    if len(names) > len(PALETTE):
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        large = np.sort(np.argsort(-sizes, kind="stable")[: len(PALETTE)])
        renumbered = np.full(len(names) + 1, len(PALETTE))
        renumbered[large], renumbered[-1] = np.arange(len(large)), -1
        others = f"{len(names) - len(large)} others"
        codes, names = renumbered[codes], [names[i] for i in large]
        return codes, _named(names, listed) | {others: GREY}
    return codes, _named(names, listed)


def _named(names: list[str], listed: Mapping[str, str]) -> dict[str, str]:
    return {name: listed.get(name, colour) for name, colour in zip(names, PALETTE, strict=False)}


def _legend(ax: Axes, shown: Mapping[str, str], title: object) -> None:
    """Put the legend outside; names are taken as they are, dollar signs included."""
    dots = [Line2D([], [], linestyle="", marker="o", markersize=5, color=c) for c in shown.values()]
    legend = ax.legend(
        dots, list(shown), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False,
        fontsize="small", title=None if title is None else _plain(title), title_fontsize="small",
        alignment="left", handletextpad=0.2, ncols=1 + (len(shown) - 1) // 14,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(text: object) -> str:
    """Return text in which matplotlib sees no formula."""
    return "" if text is None else str(text).replace("$", r"\$")
