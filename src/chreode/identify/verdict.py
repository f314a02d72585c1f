"""What coverage says: tables, a page, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import listed
from ..plot import coverage_bars, coverage_matrix
from ..report.page import Section, write
from ..report.words import ABSENT
from ..text import shown

#: Coverage below which a factor is said to be kept, and above which to be removed.
_KEPT, _REMOVED = 0.1, 0.9
#: A factor is said to be kept only if the interval ends below this.
_SMALL = 0.25
_MEANING = """\
Coverage is how much of the spread of a factor over all positives those of one cell reach: 0 where they have \
the value of their cell, 1 where they are spread as those of all cells are. A contrastive loss gains by \
forgetting what positives change. Coverage of a single class is one minus the correlation between whether a \
cell and whether its positive is of the class.

Readable is R² of a number, or balanced accuracy of classes, of cells that readers have not seen; the \
baseline is the mean, or the largest class. Blur is the share of the variance of readings within a cell that \
is error of reading, which coverage does not count."""
COLUMNS = ("kind", "coverage", "low", "high", "readable", "baseline", "blur", "cells", "note")
OF_CLASS = ("coverage", "low", "high", "cells")
#: What is printed, beside the class that positives change most.
_PRINTED = ("coverage", "low", "high", "readable")


@dataclass(frozen=True, eq=False)
class Coverage:
    """How much of each factor positives reach.

    Attributes
    ----------
    factors
        A row per factor, or per positives and factor where several are compared: its kind; coverage with a
        95 % interval; how well readers tell it of cells that they
        have not seen (R², or balanced accuracy) and what a baseline has (the mean, or the largest class);
        the share of the variance of readings within a cell that is error; the cells; and a note.
    classes
        A row per class of each factor that has classes: its coverage with a 95 % interval, which is NaN
        where readers cannot tell the class, and its cells.
    about
        Data, positives, seed and versions.
    """

    factors: pd.DataFrame
    classes: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return a copy of the table, with a row per factor."""
        return self.factors.copy()

    def summary(self) -> pd.DataFrame:
        """Return what matters most of each factor, in six columns at the most."""
        found = self.factors[[*_PRINTED]].copy()
        if len(self.classes):
            found["most changed class"] = [_most(self._classes_of(name)) for name in found.index]
        if self.factors["note"].any():
            found["note"] = self.factors["note"]
        return found

    def report(self, path: str | Path) -> Path:
        """Write a page of HTML, and return its path."""
        several = self.factors.index.nlevels > 1
        drawn = coverage_matrix(self.factors) if several else coverage_bars(self.factors)
        caption = "Coverage of each factor" + ("." if several else ", with 95 % intervals.")
        tables = [
            ("What positives reach of each factor.", self.summary()),
            ("All numbers of each factor.", self.factors),
            ("Coverage of each class.", self.classes),
        ]
        section = Section(
            "Coverage", f"{self.verdict()}\n\n{_MEANING}",
            tables=tuple((title, table.reset_index()) for title, table in tables if len(table)),
            figures=((caption, drawn),),
        )  # fmt: skip
        return write(path, "What positives change of cells", [section], about=self.about)

    def verdict(self) -> str:
        """Say in a sentence each what is kept, changed in part, removed, and not known.

        Each of several positives has a line of its own, in a list.
        """
        if self.factors.index.nlevels == 1:
            return _verdict(self.factors, self.classes)
        by_positives = self.factors.groupby(level=0, sort=False)
        lines = []
        for name, of in by_positives:
            mine = self.classes[self.classes.index.get_level_values(0) == name]
            lines.append(f"- {name}: {_verdict(of.droplevel(0), mine.droplevel(0))}")
        return "\n".join(lines)

    def _classes_of(self, name: Any) -> pd.DataFrame:
        """Return the rows of a factor, or of a factor by some positives, by class."""
        mine = self.classes.index.droplevel(-1) == name
        found = self.classes[mine]
        return found.set_axis(found.index.get_level_values(-1), axis=0)

    def __repr__(self) -> str:
        text = shown(self.summary()).to_string(float_format="{:z.2f}".format, na_rep=ABSENT)
        return f"{text}\n{self.verdict()}"


def _most(classes: pd.DataFrame) -> str:
    """Return the class with the highest coverage, and its number; none if all are kept."""
    value = classes["coverage"].dropna()
    return f"{value.idxmax()} {value.max():.2f}" if (value >= _KEPT).any() else ABSENT


def _verdict(of: pd.DataFrame, classes: pd.DataFrame) -> str:
    value, low, high = (of[name].astype(float) for name in ("coverage", "low", "high"))
    near = (value < _KEPT) | (low <= 0)
    kept, unknown = near & (high < _SMALL), (near & (high >= _SMALL)) | value.isna()
    removed = (value > _REMOVED) & ~unknown
    groups = {
        f"Kept by these positives (coverage near 0, and below {_SMALL} in all of its interval)": kept,
        "Changed in part": ~(kept | removed | unknown),
        f"Changed to nearly any value (above {_REMOVED}): a contrastive loss gains by forgetting it": removed,
        "Not known, for the interval is wide or there is none": unknown,
    }
    said = [
        f"{what}: {', '.join(map(str, of.index[which]))}."
        for what, which in groups.items()
        if which.any()
    ]
    mine = classes[classes.index.get_level_values(0).isin(of.index[kept])]
    changed = mine[(mine["coverage"] >= _KEPT) & (mine["low"] > 0)]
    if len(changed):
        worst = changed["coverage"].sort_values(ascending=False)
        named = [f"{each} of {name} ({v:.2f})" for (name, each), v in worst.items()]
        said.append(f"Classes that change although their factor is kept: {listed(named)}.")
    return " ".join(said)
