"""Which types express which genes: a dot for each pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config.arguments import checked
from ..data.cells import Cells
from ..data.read import Data
from ..errors import ConfigError, DataError, SchemaError, near
from ..metrics.markers import MARKERS, choose_markers
from ..metrics.space import log_cp10k
from ..schema import Schema
from ..text import picture
from .style import GREY, PALETTE, bare, panels, picture_of, short

#: Types in a picture, and genes that are chosen for it, at the most.
TYPES, GENES = 20, 40
#: Area of a dot that stands for all cells, in points.
AREA = 110.0
#: Inches from dot to dot, for names of types, and for names of genes.
_STEP, _NAMES, _HEAD = 0.2, 1.9, 1.7
#: Visible on white and on black, from end to end.
_SCALE = LinearSegmentedColormap.from_list("chreode dots", [GREY, PALETTE[1], PALETTE[5]])


class _Dots(NamedTuple):
    """Of every type and gene, the share of cells with a count, and the mean log-expression."""

    share: Float[np.ndarray, "t g"]
    mean: Float[np.ndarray, "t g"]


@checked
def dot_plot(
    data: Data,
    schema: Schema,
    genes: Sequence[str] | None = None,
    *,
    beside: Data | None = None,
    names: tuple[str, str] = ("real", "generated"),
) -> Figure:
    """Draw cell types x genes: the size of a dot is the share of cells with the gene, its colour the mean.

    The mean is of log1p of counts per 10,000, over all cells of the type. Of more than 20 types the 20
    largest are shown. Sparse counts stay sparse.

    Parameters
    ----------
    data
        Cells with raw counts and a label.
    schema
        Names `counts` and `label`.
    genes
        What to draw, in this order (default: marker genes of the types, 40 at the most).
    beside
        Other cells with the same places, such as generated ones: a second panel with the same types, genes
        and scales.
    names
        What the two panels are called.

    Raises
    ------
    SchemaError
        If the schema names no counts or no label.
    ConfigError
        If there is no such gene.
    DataError
        If no cell has a label, or there are no genes to draw.

    Examples
    --------
    >>> from anndata import AnnData
    >>> counts = sp.csr_array(np.array([[5, 0], [4, 1], [0, 3], [0, 2]]))
    >>> cells = AnnData(counts, obs=pd.DataFrame({"type": list("BBTT")}, index=list("abcd")))
    >>> cells.var_names = ["CD19", "CD3E"]
    >>> figure = dot_plot(cells, Schema(counts="X", label="obs/type"))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['B', 'T']
    """
    counts, known, label = _places(data, schema)
    sizes = label.value_counts()
    if not len(sizes):
        raise DataError("No cell has a label, so there are no types to draw.")
    types = sorted(sizes.index[:TYPES])
    codes = pd.Index(types).get_indexer(pd.Index(label))
    if genes is None:
        genes = _markers(counts, codes, known)
    if not len(genes):
        raise DataError(
            "There are no genes to draw: name some, or give cells of two types or more."
        )
    dots = [_dots(counts, codes, known, genes, len(types))]
    if beside is not None:
        counts, known, label = _places(beside, schema)
        codes = pd.Index(types).get_indexer(pd.Index(label))
        dots.append(_dots(counts, codes, known, genes, len(types)))
    return _drawn(dots, types, genes, names if beside is not None else ())


def _places(data: Data, schema: Schema) -> tuple[sp.csr_matrix, pd.Index, pd.Series]:
    """Return raw counts, names of genes, and the label of each cell (None where it has none)."""
    cells = Cells.of(data, schema)
    for role in ("counts", "label"):
        if role not in cells.places:
            raise SchemaError(f"A dot plot needs {role}: name its place in the schema.")
    matrix, known = cells.matrix("counts")
    at = cells.rows("counts")
    label = cells.categories("label")
    counts = sp.csr_matrix(matrix[np.arange(matrix.shape[0])])
    if at is not None:  # of a MuData; cells without counts are of no type here
        label = label.where(at >= 0)
        counts = counts[np.maximum(at, 0)]
    return counts, known, label


def _markers(counts: sp.csr_matrix, codes: Int[np.ndarray, " n"], known: pd.Index) -> Sequence[str]:
    n_types = len(np.unique(codes[codes >= 0]))
    chosen = choose_markers(counts, codes, min(MARKERS, max(1, GENES // n_types)))
    return list(dict.fromkeys(str(known[i]) for of_type in chosen.values() for i in of_type))


def _dots(
    counts: sp.csr_matrix,
    codes: Int[np.ndarray, " n"],
    known: pd.Index,
    genes: Sequence[str],
    n_types: int,
) -> _Dots:
    """Return what is drawn; NaN where a type has no cells."""
    at = known.get_indexer(pd.Index(genes))
    if (at < 0).any():
        lacking = genes[int(np.argmin(at))]
        raise ConfigError(f"There is no gene {lacking!r}.{near(lacking, known)}")
    x = log_cp10k(counts)[:, at]
    member = sp.csr_matrix(codes == np.arange(n_types)[:, None], dtype=np.float64)
    n = np.asarray(member.sum(1)).reshape(-1, 1)
    with np.errstate(invalid="ignore"):
        return _Dots((member @ (x > 0)).toarray() / n, (member @ x).toarray() / n)


def _drawn(
    dots: Sequence[_Dots], types: Sequence[str], genes: Sequence[str], names: Sequence[str]
) -> Figure:
    rows, columns = len(types), len(genes)
    height = (0.35 + _STEP * rows) * len(dots) + _HEAD
    figure = picture_of(max(_NAMES + _STEP * columns + 0.9, 4.8), height)
    grid = panels(figure, len(dots), 1, shared=True)[:, 0]
    top = max(float(np.nan_to_num(found.mean).max()) for found in dots) or 1.0
    scale = ScalarMappable(Normalize(0, top), _SCALE)
    y, x = np.mgrid[:rows, :columns]
    for ax, found, name in zip(grid, dots, names or ("",), strict=True):
        ax.scatter(
            x.ravel(), y.ravel(), s=AREA * np.nan_to_num(found.share).ravel(), linewidths=0,
            c=scale.to_rgba(np.nan_to_num(found.mean).ravel()),
        )  # fmt: skip
        ax.set_title(picture(name), loc="left", fontsize="medium")
        ax.set_yticks(range(rows), [picture(short(t, 24)) for t in types], fontsize="small")
        ax.tick_params(length=0)
        bare(ax)
    grid[-1].set_xticks(
        range(columns), [picture(short(g, 18)) for g in genes], rotation=90, fontsize="small"
    )
    grid[-1].set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.4, -0.6))
    figure.colorbar(scale, ax=[*grid], label="mean log-expression", shrink=0.8, aspect=30)
    _sizes(figure)
    return figure


def _sizes(figure: Figure) -> None:
    """Say above the panels what the sizes of dots mean."""
    shares = (0.25, 0.5, 0.75, 1.0)
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "color": GREY, "markeredgewidth": 0}
    figure.legend(
        [Line2D([], [], markersize=float(np.sqrt(AREA * share)), **look) for share in shares],
        [f"{100 * share:.0f} %" for share in shares], loc="outside upper left", ncols=len(shares),
        frameon=False, fontsize="small", handletextpad=0.1, columnspacing=0.8,
        title="cells of the type that express the gene", title_fontsize="small",
    )  # fmt: skip
