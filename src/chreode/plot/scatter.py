"""Cells in two dimensions, coloured by what is known of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Float32, Float64, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, is_color_like, to_rgba_array
from matplotlib.lines import Line2D
from mudata import MuData

from ..config.arguments import checked
from ..data.read import Data
from ..errors import CapabilityError, DataError, SchemaError, counted, near
from ..metrics.neighbours import exact_neighbours
from ..metrics.score import Labels, as_embedding
from ..text import picture
from .style import GREY, PALETTE, axes, short

Groups: TypeAlias = list[tuple[str, str]]


@checked
def embedding(
    x: Data | Float[np.ndarray, "b z"],
    key: str | None = None,
    colour: str | Labels | None = None,
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
        If coordinates are not finite, `colour` has not one finite value or not one value per cell, or the
        colours in ``uns`` are none.

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
    paint, groups, scale = _paint(values, listed, len(points))
    order = np.random.default_rng(seed).permutation(len(points))
    if values is not None:  # cells without a value lie under the others
        order = order[np.argsort(values.notna().to_numpy()[order], kind="stable")]
    ax = axes(ax, 3.6 + (0.8 if scale else _legend_width(groups)), 3.4)
    size = float(np.clip(2e4 / len(points), 1.5, 16))
    ax.scatter(
        points[order, 0], points[order, 1], s=size, c=paint[order], linewidths=0, rasterized=True,
        alpha=float(np.clip(4e3 / len(points), 0.4, 0.9)),
    )  # fmt: skip
    heading = None if values is None or values.name is None else _plain(values.name)
    if groups:
        _legend(ax, groups, heading)
    if scale:
        ax.figure.colorbar(scale, ax=ax, label=heading or "", shrink=0.8)
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2", title=_plain(title))
    ax.spines[:].set_visible(False)
    return ax


@checked
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
    n, start = len(x), principal_plane(x)
    # of one dimension: UMAP divides by the extent of both axes of its start
    flat = np.ptp(start, axis=0) == 0
    start[:, flat] = np.random.default_rng(seed).normal(size=(n, int(flat.sum())))
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
            n_neighbors=neighbours.k + 1, n_epochs=200, init=start, random_state=seed, n_jobs=1,
            precomputed_knn=known,
        )  # fmt: skip
        threads = torch.get_num_threads()
        try:
            return np.asarray(layout.fit_transform(x), np.float32)
        finally:
            torch.set_num_threads(threads)  # numba has set OpenMP's, which are torch's too


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


def _values(
    x: Any, colour: str | Labels | None, n: int
) -> tuple[pd.Series | None, Mapping[str, str]]:
    """Return one value per cell, and the colours that the data object lists for them."""
    if colour is None:
        return None, {}
    listed: dict[str, str] = {}
    if isinstance(colour, str):
        columns = x.obs if isinstance(x, (AnnData, MuData)) else pd.DataFrame()
        if colour not in columns:
            raise SchemaError(f"There is no obs[{colour!r}].{near(colour, columns)}")
        values = columns[colour]
        if isinstance(values.dtype, pd.CategoricalDtype):
            names = [str(c) for c in values.cat.categories]
            listed = dict(zip(names, _listed_colours(x, colour), strict=False))
            listed = listed if len(listed) == len(names) else {}
    else:
        values = pd.Series(colour)
    if len(values) != n:
        raise DataError(f"Got {counted(len(values), 'value')} to colour {counted(n, 'cell')} by.")
    if pd.api.types.is_float_dtype(values):
        values = values.replace([np.inf, -np.inf], np.nan)
    if values.isna().all():
        raise DataError("There is no value to colour by: all are missing or infinite.")
    return values, listed


def _listed_colours(x: Any, column: str) -> list[str]:
    """Return what the data object lists as the colours of a column's categories, as scanpy writes them."""
    found = x.uns.get(f"{column}_colors")
    colours = [] if found is None else [*np.atleast_1d(np.asarray(found, dtype=object))]
    wrong = [c for c in colours if not (isinstance(c, str) and is_color_like(c))]
    if wrong:
        raise DataError(f"uns['{column}_colors'] has {wrong[0]!r}, which is no colour: remove it.")
    return colours


def _paint(
    values: pd.Series | None, listed: Mapping[str, str], n: int
) -> tuple[Float64[np.ndarray, "b 4"], Groups, ScalarMappable | None]:
    """Return the colour of every cell, and the groups or the scale that explain it."""
    if values is None:
        return np.tile(to_rgba_array(PALETTE[0]), (n, 1)), [], None
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(float, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        viridis = colormaps["viridis"].with_extremes(bad=GREY)
        scale = ScalarMappable(Normalize(finite.min(), finite.max()), viridis)
        return scale.to_rgba(np.ma.masked_invalid(numbers)), [], scale
    codes, groups = _groups(values, listed)
    return to_rgba_array([colour for _, colour in groups])[codes], groups, None


def _groups(values: pd.Series, listed: Mapping[str, str]) -> tuple[Int[np.ndarray, " b"], Groups]:
    """Return the group of every cell, and names and colours of the groups.

    A cell without a value has the code -1, which is also the place of its grey at the end.
    """
    known = values.astype("category").cat.remove_unused_categories()
    codes, names = known.cat.codes.to_numpy(np.int64), [str(c) for c in known.cat.categories]
    others: Groups = []
    if len(names) > len(PALETTE):
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        large = np.sort(np.argsort(-sizes, kind="stable")[: len(PALETTE)])
        renumbered = np.full(len(names) + 1, len(PALETTE))
        renumbered[large], renumbered[-1] = np.arange(len(large)), -1
        others = [(f"{counted(len(names) - len(large), 'other')}", GREY)]
        codes, names = renumbered[codes], [names[i] for i in large]
    groups = [(n, listed.get(n, colour)) for n, colour in zip(names, PALETTE, strict=False)]
    unknown = [("no value", GREY)] if (codes < 0).any() else []
    return codes, groups + others + unknown


def _legend_width(groups: Groups) -> float:
    """Return about how many inches the legend takes."""
    longest = max((len(_short(name)) for name, _ in groups), default=0)
    return _legend_columns(groups) * (0.3 + 0.07 * longest) if groups else 0.0


def _legend_columns(groups: Groups) -> int:
    return 1 + (len(groups) - 1) // 14


def _legend(ax: Axes, groups: Groups, title: str | None) -> None:
    """Put the legend outside; names are taken as they are, dollar signs included."""
    dots = [Line2D([], [], linestyle="", marker="o", markersize=5, color=c) for _, c in groups]
    legend = ax.legend(
        dots, [_short(name) for name, _ in groups], loc="upper left", bbox_to_anchor=(1.0, 1.0),
        frameon=False, fontsize="small", title=title, title_fontsize="small", alignment="left",
        handletextpad=0.2, ncols=_legend_columns(groups),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    return short(name, 30)


def _plain(text: object) -> str:
    return "" if text is None else picture(text)
