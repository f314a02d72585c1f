"""What the file of a bench must hold: it may be a stranger's, and all that reads a bench relies on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from ..compute.convergence import read_state

Rule: TypeAlias = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53  # True is an int too


def _number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _list_of(rule: Rule) -> Rule:
    return lambda value: isinstance(value, list) and all(map(rule, value))


def _table_of(rule: Rule) -> Rule:
    return lambda value: isinstance(value, dict) and all(map(rule, value.values()))


#: Tables that every bench has, and tables that some have; what a row of each holds.
_OF_ALL: dict[str, dict[str, Rule]] = {
    "scores": {
        "method": _text, "seed": _whole, "metric": _text, "value": _number, "low": _number,
        "high": _number, "reason": _text,
    },
    "methods": {
        "method": _text, "role": _text, "seeds": _whole, "state": _text, "seconds": _number,
        "notes": _list_of(_text),
    },
    "metrics": {"metric": _text, "name": _text, "group": _text, "best": _number, "about": _text},
}  # fmt: skip
_OF_SOME: dict[str, dict[str, Rule]] = {
    "by_class": {
        "method": _text, "seed": _whole, "class": _text, "metric": _text, "value": _number,
    },
    "curves": {
        "method": _text, "seed": _whole, "strength": _number, "held_out": _number, "none": _number,
    },
    "markers": {
        "method": _text, "seed": _whole, "class": _text, "gene": _text, "cells": _number,
        "real share": _number, "fake share": _number, "off share": _number,
    },
    "confusion": {
        "method": _text, "seed": _whole, "classifier": _text, "type": _text, "told": _text, "cells": _whole,
    },
    "calibration": {
        "method": _text, "seed": _whole, "classifier": _text, "confidence": _share, "accuracy": _share,
        "cells": _whole,
    },
    "sizes": {"cells": _whole},  # of a label, a batch, or both: see `_refuse_what_disagrees`
}  # fmt: skip
#: What is read of the provenance, where it is there.
_ABOUT: dict[str, Rule] = {
    "cells": _whole, "batches": _whole, "unlabelled": _whole,
    "untested": _list_of(_text), "levels": _list_of(_text),
    "too small": _table_of(_whole), "no markers": _table_of(_whole), "not scored": _table_of(_text),
    "not placed": _table_of(_whole), "held out": _list_of(_text), "unseen": _list_of(_text),
    "depths": _list_of(_share), "reference": _whole, "query": _whole, "cells of unseen types": _whole,
    "reference with protein": _whole, "query with protein": _whole,
    "held out by default": lambda value: isinstance(value, bool), "proteins left out": _whole,
    "schema": _table_of(lambda _: True),
}  # fmt: skip
_ROLES = ("baseline", "ceiling", "control", "method")
#: Metrics that a bench of a kind always has, and those that it has of single classes.
_OF_KIND: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "integration": ((), ()),
    "augmentation": ((), ()),
    "generation": (("w2", "mmd", "auc"), ("w2", "mmd", "auc")),
    "dynamics": ((), ("mse", "denoised")),
    "probe": ((), ()),
}


def read(path: Path) -> tuple[str, dict[str, pd.DataFrame], Mapping[str, Any]]:
    """Return the kind of a saved bench, its tables and its provenance.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError, RecursionError
        If it holds something else; nothing of it is then of use.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(about := found.get("about"), dict):
        raise ValueError("it has no provenance")
    if not _text(kind := found.get("kind")) or kind not in _OF_KIND:
        raise ValueError(f"kind is none of {', '.join(_OF_KIND)}")
    for name, rule in _ABOUT.items():
        if name in about and not rule(about[name]):
            raise ValueError(f"about has something else as {name!r}")
    tables = {name: _rows(found.get(name), name) for name in _OF_ALL}
    further = {name: _rows(found.get(name, []), name) for name in _OF_SOME}
    tables["methods"] = [_of_today(row) for row in tables["methods"]]
    for name, columns in _OF_ALL.items():
        if not tables[name]:
            raise ValueError(f"{name} has no rows")
        _require(tables[name], columns, name)
    for name, columns in _OF_SOME.items():
        _require(further[name], columns, name)
    _refuse_what_disagrees(kind, about, {**tables, **further})
    made = {}
    for name, columns in {**_OF_ALL, **_OF_SOME}.items():
        table = pd.DataFrame({**tables, **further}[name]).drop(columns="index", errors="ignore")
        numbers = [c for c, rule in columns.items() if rule in (_number, _share) and c in table]
        made[name] = table.astype(dict.fromkeys(numbers, float))
    return kind, made, about


def _rows(value: Any, name: str) -> list[dict[str, Any]]:
    if not _list_of(lambda row: isinstance(row, dict))(value):
        raise ValueError(f"{name} is no list of rows")
    rows: list[dict[str, Any]] = value
    return rows


def _of_today(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a method as it is written today: notes were one text once, and states two."""
    if not _text(row.get("state", "" if "converged" in row else None)):
        raise ValueError("methods lacks 'state', or has something else there")
    if "notes" not in row and _text(row.get("note")):
        row = {**row, "notes": row["note"].split("; ") if row["note"] else []}
    return {**row, "state": read_state(row)}


def _require(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Rule], name: str) -> None:
    """Refuse rows that lack a column, or hold something else in it."""
    for column, rule in columns.items():
        if not all(column in row and rule(row[column]) for row in rows):
            raise ValueError(f"{name} lacks {column!r}, or has something else there")


def _refuse_what_disagrees(
    kind: str, about: Mapping[str, Any], tables: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Refuse tables that do not fit each other or the kind of the bench."""
    methods, metrics = (
        [row[key] for row in tables[name]]
        for name, key in (("methods", "method"), ("metrics", "metric"))
    )
    if len({*methods}) < len(methods) or len({*metrics}) < len(metrics):
        raise ValueError("a method or a metric is there twice")
    if not all(row["role"] in _ROLES for row in tables["methods"]):
        raise ValueError(f"a role is none of {', '.join(_ROLES)}")
    if not all(r["method"] in methods and r["metric"] in metrics for r in tables["scores"]):
        raise ValueError("scores has methods or metrics that are not listed")
    if not all(r["method"] in methods for t in ("confusion", "calibration") for r in tables[t]):
        raise ValueError("what classifiers said has methods that are not listed")
    needed, of_classes = _OF_KIND[kind]
    if kind == "dynamics":
        if "levels" not in about:
            raise ValueError("about lacks 'levels'")
        needed = tuple(f"{m}, {at}" for at in about["levels"] for m in ("denoised", "denoised_r2"))
    if not {*needed} <= {*metrics}:
        raise ValueError(f"a bench of {kind} has more metrics")
    if tables["by_class"] and not {*of_classes} <= {row["metric"] for row in tables["by_class"]}:
        raise ValueError(f"by_class of a bench of {kind} has more metrics")
    named = {"label", "batch"} & {key for row in tables["sizes"] for key in row}
    if tables["sizes"] and not named:
        raise ValueError("sizes are of no label and no batch")
    _require(tables["sizes"], dict.fromkeys(named, _text), "sizes")
