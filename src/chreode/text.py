"""Text as it is shown: strangers' made safe for terminal, Markdown, HTML, pictures and spreadsheets.

Names of categories, genes and columns, and what a saved model says, are written by whoever made the
file. Here alone is decided how they are shown; the data keep them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

from .errors import counted, visible

if TYPE_CHECKING:
    import pandas as pd

#: What a spreadsheet takes for the start of a formula.
_FORMULA = re.compile(r"\s*[=+\-@]")
_NUMBERS = dict(enumerate((
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)))  # fmt: skip


def spelled(n: SupportsIndex, noun: str) -> str:
    """Return what `counted` does, with numbers up to twelve in words.

    Examples
    --------
    >>> spelled(1, "seed"), spelled(3, "class"), spelled(1200, "seed")
    ('one seed', 'three classes', '1,200 seeds')
    """
    number, _, nouns = counted(n, noun).partition(" ")
    return f"{_NUMBERS.get(index(n), number)} {nouns}"


def markdown(text: object) -> str:
    r"""Return text that Markdown shows as it is: no heading, table, link, formula or HTML.

    Examples
    --------
    >>> print(markdown("<b>|$x$"))
    &lt;b&gt;\|\$x\$
    """
    shown = re.sub(r"([\\`*\[\]|$~])", r"\\\1", visible(text))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def picture(text: object) -> str:
    r"""Return text that matplotlib draws as it is, and not as mathematics.

    Examples
    --------
    >>> print(picture("IFN$a$"))
    IFN\$a\$
    """
    return visible(text).replace("$", r"\$")


def spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose text no spreadsheet runs: an apostrophe stands before what looks like a formula.

    Numbers, and text that is a number, stay as they are.

    Examples
    --------
    >>> import pandas as pd
    >>> spreadsheet(pd.DataFrame({"gene": ["=cmd()", "-1", "CD8A"]}))["gene"].tolist()
    ["'=cmd()", '-1', 'CD8A']
    """
    return _mapped(table.rename(columns=_quoted), _quoted)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    r"""Return a table whose text, with the names of its rows, is visible.

    Examples
    --------
    >>> import pandas as pd
    >>> shown(pd.DataFrame({"gene": ["a\x07"]}, index=["b\n"]))
          gene
    b\n  a\x07
    """
    return _mapped(table.rename(index=_seen, columns=_seen), _seen)


def _mapped(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    for i, kind in enumerate(table.dtypes):
        if getattr(kind, "kind", "O") not in "iufcb":
            table.isetitem(i, table.iloc[:, i].astype(object).map(change))
    return table


def _seen(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _quoted(value: Any) -> Any:
    value = _seen(value)  # a carriage return would begin a row
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
