"""What chreode says when something is wrong: what happened, what was expected, what to do."""

from __future__ import annotations

import difflib
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable
from itertools import takewhile
from operator import index
from typing import Any, SupportsIndex

#: Letters of a message; what is longer is a file's content, not a sentence.
LONGEST = 4000


def visible(text: object, *, lines: bool = False) -> str:
    r"""Return text in which all that steers a terminal, reorders or hides letters is spelt out.

    Parameters
    ----------
    text
        Any object; its text is taken.
    lines
        Keep line feeds and tabs, for text that has lines of its own. Without it a name cannot begin a
        line.

    Examples
    --------
    >>> print(visible("\x1b[31mred\u202e\n"))
    \x1b[31mred\u202e\n
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        c if c.isprintable() or c in kept or unicodedata.category(c) == "Zs" else _spelt(c)
        for c in text
    )


def _spelt(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def message(text: object) -> str:
    """Return a message of several lines, visible, and cut where it is too long to be read."""
    text = visible(text, lines=True)
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({counted(len(text), 'letter')} in all)"


class ChreodeError(Exception):
    """Anything that a user can mend; its text says how.

    What it quotes of a file is made visible, and cut where it is longer than a message.
    """

    def __str__(self) -> str:
        return message(super().__str__())


class SchemaError(ChreodeError, ValueError):
    """A role or place is misspelt, absent, or of the wrong kind."""


class DataError(ChreodeError, ValueError):
    """The values of a role are not what the role promises (negative counts, one-cell batches, …)."""


class ConfigError(ChreodeError, ValueError):
    """A hyper-parameter has an unknown name or a value out of range."""


class ArgumentError(ConfigError, TypeError):
    """An argument is of another type than the function's signature says."""


class CapabilityError(ChreodeError, NotImplementedError):
    """The model cannot answer this question; the text lists what it can answer."""


class FitError(ChreodeError, RuntimeError):
    """Learning had to stop (non-finite loss, likelihood going down, …)."""


class BlowUpError(FitError):
    """A differential equation whose state leaves the finite numbers, or that no step is short enough for.

    Attributes
    ----------
    row
        Which series.
    time
        The last time at which its state was good.
    state
        That state.
    """

    def __init__(self, row: int, time: float, state: Any, name: str = "") -> None:
        self.row, self.time, self.state, self.name = row, time, state, name
        super().__init__(
            f"{name or f'series {row}'} leaves the finite numbers after t = {time:.4g}: its slopes are too "
            "steep for this solver. Allow larger errors (rtol, atol), or learn slower or sparser dynamics."
        )

    def __reduce__(self) -> Any:
        """Return what pickle makes another of: a pool of processes waits for ever for what it cannot read."""
        return type(self), (self.row, self.time, self.state, self.name)


class StoreError(ChreodeError, OSError):
    """A file or model folder is cut short, tampered with, newer than this version, or unwritable."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package, however deep below it the cause was met."""
    names = [f.f_globals.get("__name__", "") for f, _ in traceback.walk_stack(sys._getframe())]
    first = max(i for i, name in enumerate(names) if name.partition(".")[0] == __package__)
    wrappers = takewhile("contextlib".__eq__, names[first + 1 :])  # of our own functions
    warnings.warn(text, category, stacklevel=first + 2 + len(list(wrappers)))


def near(word: str, known: Iterable[str], described: Iterable[str] | None = None) -> str:
    """Return `" Did you mean 'x'?"`, or, with nothing near, what is known, or `described` in its place.

    Case does not count.

    Examples
    --------
    >>> near("batchs", ["batch", "label"])
    " Did you mean 'batch'?"
    >>> near("nk cells", ["T cells", "NK cells"])
    " Did you mean 'NK cells'?"
    """
    known = [visible(k)[:60] for k in known]
    folded = {k.casefold(): k for k in reversed(known)}  # of two that differ in case, the first
    match = difflib.get_close_matches(str(word).casefold(), folded, n=1, cutoff=0.6)
    if match:
        return f" Did you mean {folded[match[0]]!r}?"
    known = known if described is None else [visible(t)[:60] for t in described]
    shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
    return f" Available: {shown}." if known else " None is available."


def listed(names: Iterable[object]) -> str:
    """Return the first five names, and how many more there are.

    Examples
    --------
    >>> listed("abc"), listed("abcdefgh")
    ('a, b, c', 'a, b, c, d, e and 3 more')
    """
    known = [str(name) for name in names]
    more = f" and {len(known) - 5:,} more" if len(known) > 5 else ""
    return f"{', '.join(known[:5])}{more}"


def counted(n: SupportsIndex, noun: str) -> str:
    """Return a number with its noun, as a sentence has it.

    Examples
    --------
    >>> counted(1, "cell"), counted(2_700, "cell"), counted(2, "category")
    ('1 cell', '2,700 cells', '2 categories')
    """
    number = f"{index(n):,}"
    if number == "1" or noun == "series":
        return f"{number} {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{number} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}s"
