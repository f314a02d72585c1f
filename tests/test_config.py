"""Configurations: names, types, ranges, suggestions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest

import chreode as ch
from chreode import config as c

ENDLESS: list = []
ENDLESS.append(ENDLESS)


@c.config
class Options:
    """An example."""

    size: int = c.param(3, "How many.", low=1, high=10)
    rate: float = c.param(0.1, "How fast.", low=0)
    kind: Literal["near", "far"] = c.param("near", "Which.")
    patience: int | None = c.param(None, "How long.", low=1)
    deep: bool = c.param(False, "Whether.")
    widths: tuple[int, ...] = c.param((1, 2), "Several.", low=1)


def test_values_are_kept_and_frozen():
    options = Options(size=np.int64(4), rate=1, patience=2)
    assert options.size == 4
    assert type(options.size) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.size = 5
    assert Options() == Options(size=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sise": 3}, "no option 'sise'. Did you mean 'size'"),
        ({"size": 0}, "from 1 to 10"),
        ({"size": 11}, "from 1 to 10"),
        ({"size": 2.5}, "expected a whole number, got a number.*How many"),
        ({"size": True}, "expected a whole number, got True or False"),
        ({"size": "3"}, r"size='3'\): expected a whole number, got text\. How many"),
        ({"rate": -1}, "a number of at least 0"),
        ({"rate": float("nan")}, "expected a number"),
        ({"kind": "nearr"}, "expected 'near' or 'far'. Did you mean 'near'"),
        ({"patience": 0}, "of at least 1"),
        ({"deep": 1}, "expected True or False, got a whole number"),
        ({"widths": (1, 0)}, "of at least 1"),
        ({"widths": [1]}, "expected a tuple of whole numbers, got a list of whole numbers"),
        ({"widths": ("a",)}, "expected a tuple of whole numbers, got a tuple of text"),
        ({"widths": ENDLESS}, "got a list of lists of lists"),
        ({"widths": ((1, 2), (3,))}, "got a tuple of tuples of whole numbers"),
    ],
)
def test_wrong_names_and_values_fail_at_once(values, said):
    with pytest.raises(ch.ConfigError, match=said.replace("|", r"\|")):
        Options(**values)


def test_it_survives_json():
    options = Options(widths=(4, 5), kind="far")
    assert c.from_dict(Options, c.as_dict(options)) == options
    assert c.as_dict(options)["widths"] == [4, 5]


def test_it_describes_itself():
    rows = {row["name"]: row for row in c.describe(Options)}
    assert rows["size"] == {"name": "size", "type": "int", "default": 3, "doc": "How many."}
    assert rows["kind"]["type"] == "'near' | 'far'"
    assert rows["patience"]["type"] == "int | None"
