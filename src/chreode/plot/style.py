"""What all pictures share: colours, and axes that pyplot knows nothing of."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from ..errors import SchemaError, near, visible

#: Six colours of Okabe & Ito (2008), then colours chosen one by one to be as far as possible from
#: the ones before, as normal, protanope and deuteranope eyes see them (Oklab, simulation by Machado
#: et al. 2009), of a lightness that shows on white and on black. Yellow and black are not among them.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#960F4B", "#5AF0B4",
    "#8778F0", "#B4D2FF", "#964B00", "#C3E13C", "#B4B496", "#4B4B87", "#4B7869", "#3C4BC3",
    "#C33C4B", "#D2C369", "#00D2C3", "#3C69E1",
)  # fmt: skip
#: Whatever is absent, grouped or beside the point.
GREY = "#8C9198"


class Picture(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=120)
        return drawn.getvalue()


class Panel(Axes):
    """Axes of a `Picture`, which a notebook shows as the picture that they are in."""

    name = "chreode panel"

    def _repr_png_(self) -> bytes | None:
        figure: Any = self.figure
        return figure._repr_png_() if isinstance(figure, Picture) else None


def picture_of(width: float, height: float) -> Picture:
    """Return an empty picture of this size in inches."""
    return Picture(figsize=(width, height), layout="constrained")


def panels(figure: Picture, n_rows: int, n_columns: int, *, shared: bool = False) -> Any:
    """Return the axes of a grid as an array, with `shared` limits or their own."""
    return figure.subplots(
        n_rows, n_columns, squeeze=False, sharex=shared, sharey=shared,
        subplot_kw={"axes_class": Panel},
    )  # fmt: skip


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or new axes on a picture of this size in inches."""
    if ax is not None:
        return ax
    return picture_of(width, height).add_subplot(axes_class=Panel)


def bare(ax: Axes) -> None:
    """Drop the upper and the right spine, which say nothing."""
    ax.spines[["top", "right"]].set_visible(False)


def require_columns(table: pd.DataFrame, columns: Iterable[str], of: str) -> None:
    """Refuse a table of something else than what is drawn; `of` says what returns the right one."""
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise SchemaError(
            f"There is no column {lacking[0]!r}. This draws {of}.{near(lacking[0], map(str, table.columns))}"
        )


def opaque(legend: Any) -> None:
    """Draw the dots of a legend without the transparency of those that it explains, and as large as text."""
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set(alpha=1.0, sizes=[20.0])


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Return in how many columns the small text of a legend fits into so many inches."""
    letters = max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / (0.6 + 0.075 * letters))))


def short(text: object, letters: int) -> str:
    """Cut text that would take the room of the picture."""
    text = visible(text)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
