"""How much of each factor the positives of every augmentation reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chreode as ch

from ..common import Row, Stopwatch, folded
from ..speed.ratios import markdown
from .cells import VIEWS, opened
from .wells import BATCH, DATA, GROUPS

#: What is kept of the table of a factor.
KEPT = ("coverage", "low", "high", "blur", "readable", "baseline", "note")


def cases() -> list[Row]:
    return [{"data": data, "seed": 0} for data in DATA]


def measure(case: Row, data: Path, _kept: Path) -> Row:
    (wells, of_data), of = opened(case["data"], data), DATA[case["data"]]
    # which file a well is of is no number: as a class it is read by another regressor
    names = {of.batch if factor == BATCH else factor: factor for factor in of.factors}
    models = {name: ch.SimCLR(**options) for name, options in VIEWS.items()}
    with Stopwatch() as watch:
        found = ch.identify.coverage(
            models, wells, list(names), schema=of.schema, groups=GROUPS, seed=case["seed"],
            progress=False,
        )  # fmt: skip
    table: Any = found.table().rename(index=names, level="factor")[list(KEPT)].astype(object)
    table = table.where(table.notna(), None)  # JSON has no NaN
    views = {name: table.loc[name].to_dict("index") for name in models}
    return {
        "views": views, "data": of_data, "cells": found.about["cells"],
        "n_views": found.about["views"], **watch.times(),
    }  # fmt: skip


def by_views(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each augmentation of each data set."""
    return [
        {"case": {"data": row["case"]["data"], "views": name}, "factors": factors}
        for row in rows
        for name, factors in row["views"].items()
    ]


def render(rows: list[Row]) -> list[str]:
    """Return coverage by augmentation and factor, of each data set; intervals are folded."""
    lines: list[str] = []
    rows = by_views(rows)
    for data, of in DATA.items():
        mine = [row for row in rows if row["case"]["data"] == data]
        table = [(row["case"]["views"], *(_plain(row, f) for f in of.factors)) for row in mine]
        full = [(row["case"]["views"], *(_told(row, f) for f in of.factors)) for row in mine]
        header = ("views", *of.factors)
        lines += [
            f"**{data[:1].upper()}{data[1:]}: coverage of each factor.**", "", *markdown(header, table), "",
            *folded("The same with 95 % intervals and blur", markdown(header, full)), "",
        ]  # fmt: skip
    return lines


def _plain(row: Row, factor: str) -> str:
    value = row["factors"][factor]["coverage"]
    return "–" if value is None else f"{value:.2f}"


def _told(row: Row, factor: str) -> str:
    of = row["factors"][factor]
    if of["coverage"] is None:
        return "–"
    blur = "" if of["blur"] is None else f", blur {of['blur']:.2f}"
    return f"{of['coverage']:.2f} ({of['low']:.2f} to {of['high']:.2f}){blur}"
