"""How much of each factor the positives of every augmentation reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chreode as ch
from chreode import config

from ..common import Row, Stopwatch, folded
from ..speed.ratios import markdown
from .cells import VIEWS, opened
from .wells import BATCH, DATA

#: What is kept of the table of a factor.
KEPT = ("coverage", "low", "high", "blur", "readable", "baseline", "note")


def cases() -> list[Row]:
    return [{"data": data, "views": name, "seed": 0} for name in VIEWS for data in DATA]


def measure(case: Row, data: Path, kept: Path) -> Row:  # noqa: ARG001 (the contract of a table)
    (wells, of_data), of = opened(case["data"], data), DATA[case["data"]]
    model = ch.SimCLR(**VIEWS[case["views"]])
    # which file a well is of is no number: as a class it is read by another regressor
    names = {of.batch if factor == BATCH else factor: factor for factor in of.factors}
    with Stopwatch() as watch:
        found = ch.identify.coverage(
            model, wells, list(names), schema=of.schema, seed=case["seed"], progress=False
        )
    table: Any = found.table().rename(index=names)[list(KEPT)].astype(object)
    factors = table.where(table.notna(), None).to_dict("index")  # JSON has no NaN
    return {
        "factors": factors, "data": of_data, "cells": found.about["cells"],
        "n_views": found.about["n_views"], "config": config.as_dict(model), **watch.times(),
    }  # fmt: skip


def render(rows: list[Row]) -> list[str]:
    """Return coverage by augmentation and factor, of each data set; intervals are folded."""
    lines: list[str] = []
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
