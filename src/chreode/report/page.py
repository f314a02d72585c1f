"""Sections of text, tables and figures, as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import store
from ..config.arguments import checked
from ..errors import visible
from ..version import __version__
from .words import ABSENT

#: Pixels per inch of the parts of a figure that are drawn as pixels.
_DPI = 150
#: Letters up to which a cell of a table is kept on one line.
_SHORT = 24
#: From here on not all digits of a number are known.
_HUGE = 1e15
#: Columns and rows up to which the first table of a section is open. All others are folded.
_WIDE, _LONG = 6, 15


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a report. Everything in it is escaped: it is text, never HTML.

    Attributes
    ----------
    heading
        Its title, also in the table of contents.
    text
        Paragraphs, with an empty line between them; one whose lines begin with ``- `` is a list.
    tables
        Pairs of caption and table. The index is shown, unless it only counts the rows. The first table
        is open if it has at most six columns and fifteen rows; of every other one the first sentence of its
        caption is shown, which unfolds it.
    figures
        Pairs of caption and figure, or the axes of one; the caption is also what screen readers say.
    """

    heading: str
    text: str = ""
    tables: tuple[tuple[str, pd.DataFrame], ...] = ()
    figures: tuple[tuple[str, Figure | Axes], ...] = ()


@checked
def write(
    path: str | Path,
    title: str,
    sections: Iterable[Section],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file with everything inline, and return its path.

    The page has no script, and forbids itself any and all of the network by its content policy.
    The same sections give the same bytes.

    Parameters
    ----------
    path
        Where to write; an old file is replaced once the new one is whole.
    title
        Of the page.
    sections
        What it says, in this order.
    about
        How it came about (data, versions, options), for the end of the page.

    Raises
    ------
    StoreError
        If the place cannot be written; what was there is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> table = pd.DataFrame({"score": [0.5]}, index=["PCA"])
    >>> page = write(f"{tempfile.mkdtemp()}/a.html", "Scores", [Section("All", tables=(("", table),))])
    >>> "<h1>Scores</h1>" in page.read_text(encoding="utf-8")
    True
    """
    environment = Environment(
        loader=PackageLoader("chreode", "report"), autoescape=True, undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    assert environment.loader is not None
    style = environment.loader.get_source(environment, "page.css")[0]
    html = environment.get_template("page.html").render(
        title=title,
        sections=[_shown(section, f"s{i}") for i, section in enumerate(sections)],
        about=_flat(about or {}),
        version=__version__,
        style=Markup(style.strip()),  # ours, and no user's
    )
    with store.aside(path) as made:
        made.write_text(html, encoding="utf-8", newline="\n")
    return Path(path)


def _visible(value: Any) -> Any:
    """Spell out control characters wherever the page shows something; a figure stays a figure."""
    return type(value)(visible(value, lines=True)) if isinstance(value, str) else value


def _shown(section: Section, name: str) -> dict[str, Any]:
    """Return what the template reads of a section."""
    return {
        "id": name,
        "heading": section.heading,
        "blocks": [_block(text) for text in re.split(r"\n\s*\n", section.text.strip()) if text],
        "tables": [
            {
                **_caption(caption or section.heading),
                **_cells(table),
                "open": not i and _small(table),
            }
            for i, (caption, table) in enumerate(section.tables)
        ],
        "figures": [
            {
                "caption": caption,
                "svg": svg(figure, caption, f"{name}f{i}"),
                "width": round(float(figure.get_figwidth()) * 96),  # pixels of CSS
            }
            for i, (caption, shown) in enumerate(section.figures)
            for figure in [_whole(shown)]
        ],
    }


def _whole(shown: Figure | Axes) -> Figure:
    figure = shown.figure if isinstance(shown, Axes) else shown
    assert isinstance(figure, Figure)
    return figure


def _block(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    is_list = all(line.startswith("- ") for line in lines)
    return {"items": [line[2:] for line in lines]} if is_list else {"items": [], "text": text}


# tables


def _caption(text: str) -> dict[str, str]:
    """Return the first sentence of a caption, and what follows it."""
    first, _, rest = text.partition(". ")
    return {"caption": text, "title": first.removesuffix("."), "rest": rest}


def _small(table: pd.DataFrame) -> bool:
    return table.shape[1] + _heads(table) <= _WIDE and len(table) <= _LONG


def _heads(table: pd.DataFrame) -> int:
    """Return the number of columns of an index, none where it only counts the rows."""
    index = table.index
    return 0 if isinstance(index, pd.RangeIndex) and index.name is None else index.nlevels


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """Return heads and rows as text; a column of numbers shares its decimals."""
    heads = _heads(table)
    columns = [pd.Series(table.index.get_level_values(i)) for i in range(heads)]
    columns += [table.iloc[:, i] for i in range(table.shape[1])]
    texts = [as_text(column) for column in columns]
    return {
        "heads": heads,
        "columns": [
            {"name": _head(column.name), "kind": _kind(column, text)}
            for column, text in zip(columns, texts, strict=True)
        ],
        "rows": list(zip(*texts, strict=True)),
    }


def _kind(values: pd.Series, text: list[str]) -> str:
    """Return how a column is laid out."""
    if pd.api.types.is_numeric_dtype(values) and values.dtype != bool:
        return "number"
    return "short" if max(map(len, text), default=0) <= _SHORT else "long"


def _head(name: object) -> str:
    if isinstance(name, tuple):
        return " / ".join(map(str, name))
    return "" if name is None else str(name)


def as_text(values: pd.Series) -> list[str]:
    """Return a column as people read it: as many decimals as it needs, three at the most.

    A value that three decimals would hide (below 0.001), or that is longer than numbers are precise, has
    two significant digits.

    Examples
    --------
    >>> as_text(pd.Series([0.12345, float("nan")])), as_text(pd.Series([1234567])), as_text(pd.Series([2e-5]))
    (['0.123', '–'], ['1,234,567'], ['2e-05'])
    """
    if values.dtype == bool:
        return ["yes" if v else "no" for v in values]
    form = "{}"
    if pd.api.types.is_numeric_dtype(values):
        known = values.dropna().to_numpy(float)
        known = known[np.isfinite(known)]
        decimals = next((d for d in range(3) if np.allclose(known, known.round(d), atol=1e-9)), 3)
        if (((np.abs(known) < 1e-3) & (known != 0)) | (np.abs(known) >= _HUGE)).any():
            return [ABSENT if pd.isna(v) else _digits(float(v)) for v in values]
        form = f"{{:z,.{decimals}f}}"  # z: no zero below zero
    return [ABSENT if pd.isna(v) else form.format(v) for v in values]


def _digits(value: float) -> str:
    return f"{value:z.2g}" if abs(value) < 1e-3 or abs(value) >= _HUGE else f"{value:,.3f}"


def _flat(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a report, one line each."""

    def shown_value(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{k} = {v}" for k, v in value.items())
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return f"{value:,}" if isinstance(value, int) else str(value)

    return [(key, shown_value(value)) for key, value in about.items()]


# figures


def svg(figure: Figure, caption: str, salt: str) -> Markup:
    """Return a figure as inline SVG whose black follows the colour of the page's text.

    Text stays text, in the page's font, and the background is left out. `salt` keeps identifiers of
    several figures on one page apart.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The backend reads these from the global settings alone; they are back before this returns.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "font.sans-serif": ["DejaVu Sans"]}
    ):
        figure.savefig(out, format="svg", dpi=_DPI, transparent=True, metadata=nothing)
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    head = f'<svg role="img" aria-label="{Markup.escape(caption)}" '
    drawn = head + drawn.removeprefix("<svg ")
    # its only style sheet would speak to the whole page; ids of groups repeat from figure to figure
    drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    return Markup(re.sub(r"\s*\n\s*", "\n", drawn))
