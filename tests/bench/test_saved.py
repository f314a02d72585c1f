"""The file of a bench may be a stranger's: it is a bench in every part, or no bench at all."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
from matplotlib.figure import Figure

import chreode as ch
from chreode.bench import Bench
from chreode.report import bench_sections, dynamics, sections, write

ODD = (None, "x", -1, 1.5, True, 2**70, [], [3], {"x": "y"})
KINDS = {
    "integration": ("total",),
    "augmentation": ("knn_rare",),
    "generation": ("w2", "mmd", "auc", "membership"),
    "dynamics": ("denoised, new", "denoised_r2, new", "signed"),
    "probe": (
        "total", "scaled_total", "knn_f1", "knn_f1_at_0.5", "knn_shared_f1", "cell_r", "protein_r",
        "knn_unseen_auroc", "knn_unseen_found",
    ),
}  # fmt: skip


def document(kind):
    """Return what `Bench.save` writes, with every table that there is."""
    roles = {"PCA": "baseline", "A": "method", "B": "method", "real": "ceiling"}
    of_kind = {"dynamics": ("mse", "denoised"), "probe": ("knn_f1", "knn_shared_f1", "protein_r")}
    by_class = of_kind.get(kind, ("w2", "mmd", "auc"))
    return {
        "kind": kind,
        "about": {
            "cells": 20, "unlabelled": 2, "untested": ["rare"], "levels": ["new"], "data": "1f",
            "too small": {"rare": 2}, "no markers": {"rare": 2}, "not scored": {"protein": "few"},
            "schema": {"counts": "X"}, "held out": ["p1"], "held out by default": True, "unseen": ["NK"],
            "query": 9, "reference": 11, "cells of unseen types": 3, "depths": [1.0, 0.5],
            "proteins left out": 1, "query with protein": 5, "reference with protein": 6,
        },
        "scores": [
            {"index": 0, "method": m, "seed": 0, "metric": k, "value": 0.5, "low": 0.4, "high": 0.6,
             "reason": ""}
            for m in roles for k in KINDS[kind]
        ],
        "methods": [
            {"method": m, "role": role, "seeds": 1, "state": "rested", "seconds": 1.0,
             "notes": ["slow"]}
            for m, role in roles.items()
        ],
        "metrics": [
            {"metric": k, "name": k, "group": "all", "best": 1.0, "about": "good"}
            for k in KINDS[kind]
        ],
        "by_class": [
            {"method": m, "seed": 0, "class": "new: s0", "metric": k, "value": 0.5}
            for m in roles for k in by_class
        ],
        "curves": [
            {"method": "A", "seed": 0, "strength": s, "held_out": 1.0, "none": 0.5} for s in (0.1, 1.0)
        ],
        "markers": [
            {"method": "A", "seed": 0, "class": "B", "gene": "CD19", "cells": 30, "real share": 1.0,
             "fake share": 0.5, "off share": 0.4}
        ],
        "confusion": [
            {"method": m, "seed": 0, "classifier": "knn", "type": t, "told": "B", "cells": 5}
            for m in roles for t in ("B", "NK")
        ],
        "calibration": [
            {"method": m, "seed": 0, "classifier": "knn", "confidence": 0.8, "accuracy": 0.7, "cells": 5}
            for m in roles
        ],
        "sizes": [{"label": "B", "batch": "p1", "cells": 30}],
    }  # fmt: skip


def places(value, path=()):
    """Yield the path to everything in a document, of lists to their first."""
    yield path
    inner = dict(enumerate(value[:1])) if isinstance(value, list) else value
    for key, below in inner.items() if isinstance(inner, dict) else ():
        yield from places(below, (*path, key))


def with_(found, path, value):
    made = copy.deepcopy(found)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures of scores, which take most of the time."""
    ax = Figure().add_subplot()
    monkeypatch.setattr(sections, "score_table", lambda _: ax)
    monkeypatch.setattr(dynamics, "sparsity_curve", lambda _: ax.figure)


def read(tmp_path, found):
    (tmp_path / "b.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return Bench.load(tmp_path / "b.json")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_bench_with_anything_in_place_of_anything_is_refused_or_reported(tmp_path, kind):
    found, refused = document(kind), 0
    assert bench_sections(read(tmp_path, found))
    # tables are the same in all kinds, and looked at once; free text may be any
    of_kind = {"integration": ("scores", "methods", "metrics", "markers", "sizes", "kind", "about")}
    of_kind["probe"] = ("by_class", "confusion", "calibration", "about")
    parts = of_kind.get(kind, ("by_class", "curves"))
    text = {
        "classifier",
        "type",
        "told",
        "reason",
        "name",
        "group",
        "gene",
        "class",
        "label",
        "batch",
        "data",
        "counts",
        "index",
    }
    paths = [p for p in places(found) if p and p[0] in parts and p[-1] not in text]
    for path in paths:
        for odd in ODD:
            try:
                bench = read(tmp_path, with_(found, path, odd))
            except ch.StoreError:
                refused += 1
                continue
            bench_sections(bench)
            assert "<p>" in bench._repr_html_()
    assert refused > 5 * len(paths)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_size_are_drawn(tmp_path, kind):
    found = document(kind)
    rows = [*found["scores"], *found["metrics"], *found["curves"], *found["by_class"]]
    rows += [*found["confusion"], *found["calibration"]]
    nothing = [float("nan")]
    for odd in (nothing, [float("inf"), -float("inf"), 1e300, -5, 0]):
        for row, value in zip(rows, itertools.cycle(odd), strict=False):
            keys = ("value", "low", "high", "best", "held_out")
            row |= {key: value for key in keys if key in row}
        write(tmp_path / "b.html", "Odd", bench_sections(read(tmp_path, found)))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_bench_that_lacks_a_part_or_has_one_twice_is_refused_or_reported(tmp_path, kind):
    found = document(kind)
    tables = ("scores", "methods", "metrics", "by_class", "curves", "markers", "sizes")
    for table in (*tables, "confusion", "calibration"):
        without = {k: v for k, v in found.items() if k != table}
        for made in (without, {**found, table: []}, {**found, table: 2 * found[table]}):
            try:
                bench_sections(read(tmp_path, made))
            except (ch.StoreError, ch.ConfigError):
                assert made is not found
        for column in found[table][0]:
            made = copy.deepcopy(found)
            made[table][0].pop(column)
            if column not in ("index", "label", "batch"):
                with pytest.raises(ch.StoreError, match=table):
                    read(tmp_path, made)


def test_files_that_hold_no_bench_are_refused(tmp_path):
    for text in ("", "[", "[" * 200_000, "[]", "5", '{"kind": "dynamics"}', "\x00"):
        with pytest.raises(ch.StoreError, match="no saved bench"):
            read(tmp_path, text)
    (tmp_path / "b.json").write_bytes(b'{"kind": "\xff"}')
    with pytest.raises(ch.StoreError, match="no saved bench"):
        Bench.load(tmp_path / "b.json")


def test_notes_that_were_one_text_are_read_as_several(tmp_path):
    found = document("integration")
    row = found["methods"][1]
    row["note"] = "not better than PCA; still improving"
    row.pop("notes")
    notes = read(tmp_path, found).methods["notes"]
    assert notes["A"] == ["not better than PCA", "still improving"]
    assert notes["PCA"] == ["slow"]
