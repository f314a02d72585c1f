"""Tables of a page: each row is measured once by the same code, on genes that no row has chosen."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from benchmarks import common, tables
from benchmarks.generation import methods, tasks

import chreode as ch
from chreode import version
from chreode.bench.generation import class_table
from chreode.bench.yardstick import split
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Measure two cases; returns the cases that were measured, and the rows kept."""
    rows = tmp_path / "toy.jsonl"

    def go(*options, code="a"):
        done = []
        table = SimpleNamespace(
            cases=lambda: [{"task": "x", "seed": s} for s in (0, 1)],
            measure=lambda case, *_: done.append(case["seed"]) or {"value": 1.0},
        )
        monkeypatch.setattr(tables, "_module", lambda *_: table)
        for place in (tables, version):
            monkeypatch.setattr(place, "code_hash", lambda: code)
        monkeypatch.setattr(sys, "argv", ["run.py", "--rows", str(tmp_path), *options])
        tables.measure("toy", ("toy",), None)
        return done, common.read(rows)

    return go


def test_a_run_goes_on_where_it_was_and_measures_again_what_other_code_made(run, monkeypatch):
    assert run("--only", "seed 1")[0] == [1]
    assert run()[0] == [0]
    assert run()[0] == []
    done, rows = run("--any-code", code="b")
    assert done == []
    assert [row["code"] for row in rows] == ["a", "a"]
    monkeypatch.setattr(tables, "same_numbers", lambda: {"a": "a message was mended"})
    assert run(code="b")[0] == []
    monkeypatch.undo()
    done, rows = run("--only", "seed 0", code="b")
    assert done == [0]
    assert [(row["case"]["seed"], row["code"]) for row in rows] == [(1, "a"), (0, "b")]


def test_rows_of_older_code_stand_in_no_table_with_todays(run, tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "toy"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def shown(code):
        (folder / "toy.jsonl").write_bytes((tmp_path / "toy.jsonl").read_bytes())
        monkeypatch.setattr(tables, "code_hash", lambda: code)
        rows, said = tables.shown("toy", "toy")
        return [row["case"]["seed"] for row in rows], said

    run()
    assert shown("a") == ([0, 1], "")
    assert shown("b")[0] == [0, 1]
    assert "older code" in shown("b")[1]
    run("--only", "seed 1", code="b")
    assert shown("b") == ([1], "**Not measured by today's code yet: 1 of 2 rows.**")
    # a case that is no longer asked for stands in none
    table = SimpleNamespace(cases=lambda: [{"task": "x", "seed": 1}])
    monkeypatch.setattr(tables, "_module", lambda *_: table)
    assert shown("b") == ([1], "")


def test_genes_are_chosen_by_the_yardstick(tmp_path, monkeypatch):
    """Whatever the cells do that are learned from or compared: they choose nothing."""
    cells = simulate_cells(300, 60, n_types=2, seed=0)
    cells.X = cells.layers["counts"].astype(np.float32)
    schema = ch.Schema(counts="X", label="obs/cell_type")
    parts = split(class_table(Cells(cells, schema))[0], 4)
    other = cells.copy()
    others = np.concatenate(parts[:3])
    values = other.X.toarray()
    values[others] = values[others][:, ::-1]
    other.X = sp.csr_matrix(values)
    for n_genes in (20, None):
        chosen = []
        for some in (cells, other):
            task = tasks.Task("", lambda _, some=some: some, schema, n_genes)
            monkeypatch.setitem(tasks.TASKS, "toy", task)
            chosen.append(list(tasks.prepare("toy", tmp_path, 4)[0].var_names))
        assert chosen[0] == chosen[1]
    assert tasks.development({"task": "kang, all genes"}) == {"development": True}
    assert tasks.development({"task": "tusi"}) == {"development": False}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([2.0], "2"),
        ([1.0, 3.0], "2 (1 to 3)"),
        ([2.0, 2.0], "2"),
        ([np.nan, 1.0, 3.0], "2 (1 to 3)"),
        ([np.nan], "–"),
    ],
)
def test_seeds_are_told_by_their_range_where_they_differ(values, told):
    assert common.spread(values) == told


def test_markers_of_older_rows_are_judged_by_todays_rule():
    """Of six cells none against five is chance, as is a median of 0 where half express; five are too few."""
    columns = {
        "role": ["counts"] * 4, "class": ["A", "A", "B", "C"], "gene": ["f", "g", "h", "i"],
        "cells": [6, 6, 100, 5], "real share": [0.8333, 1, 1, 1], "fake share": [0, 1, 0.6, 0],
        "real median": [4.1, 4, 4, 4], "fake median": [0, 2, 0.7, 0], "real high": [5] * 4,
        "fake high": [0, 5, 5, 0], "off share": [0.0473, 0, 0.2, 0.2],
        "off median": [1.6, 0.5, 2, 3], "off high": [np.nan] * 4,
    }  # fmt: skip
    told = methods._of_markers({"markers": columns})
    assert told["marker_share"] == pytest.approx(0.235, abs=0.01)
    assert told["marker_median"] == 2
    assert methods._of_markers({}) == {}


def test_in_short_says_who_is_nearest_beyond_real_cells():
    def row(method, seed, **w2):
        role = {"real cells": "ceiling", "shuffled labels": "control"}
        told = {
            name: {"role": role.get(name, "method"), "scores": {"w2": value}}
            for name, value in w2.items()
        }
        return {"case": {"task": "x", "seed": seed, "method": method}, "methods": told}

    rows = [
        row("controls", 0, **{"real cells": 7.0, "shuffled labels": 7.1}),
        row("controls", 1, **{"real cells": 8.0, "shuffled labels": 8.1}),
        row("CFGen", 0, CFGen=7.5),
        row("CFGen", 1, CFGen=8.3),
        row("scVI", 1, scVI=8.9),
        row("CFGen: no dropout", 0, CFGen=7.2),
    ]
    assert methods._in_short(rows, ["x"])[2:] == [
        "| shuffled labels | 0.10 |",
        "| CFGen | **0.40** |",
        "| scVI | 0.90 |",
    ]


def of_cfgen(w2, role="method"):
    by_class = {
        name: dict.fromkeys(("w2", "mmd", "auc"), w2 + k) for name, k in (("a", 0), ("b", 1e-3))
    }
    scores = {"w2": w2, "mmd": w2, "auc": 0.6, "marker_share": 0.01}
    return {"role": role, "scores": scores, "by_class": by_class, "seconds": 1, "state": "rested"}


def test_options_are_shown_beside_the_default_and_what_is_certainly_worse_in_bold():
    made = {"real cells": of_cfgen(7.0, "ceiling")}, {"CFGen": of_cfgen(7.1)}
    names = "controls", "CFGen", "CFGen: optimal coupling", "CFGen: no average of weights"
    made += {"CFGen": of_cfgen(8.1)}, {"CFGen": of_cfgen(7.1)}
    rows = [
        {"case": {"task": "kang", "seed": 0, "method": name}, "methods": told}
        for name, told in zip(names, made, strict=True)
    ]
    lines = methods.options(rows)
    assert lines[3] == "| CFGen, default |  | 7.1 | 7.1 | 0.6 | 0.01 |"
    assert lines[4].startswith("| optimal coupling | `coupling='ot'` | **8.1** | **8.1** |")
    assert lines[5].startswith("| no average of weights | `ema=None` | 7.1 |")
    assert methods.options(rows[:2]) == []
    short = methods._by_forest(rows, ["kang"])[2:]
    assert short == ["| real cells | 0.60 |", "| CFGen | **0.60** |"]


@pytest.mark.parametrize("page", ["generation", "dynamics", "speed"])
def test_wide_tables_are_folded_and_stand_apart(page):
    """Markdown renders no table within HTML but after a blank line."""
    text = (common.ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    shown = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert max(line.count(" | ") for line in shown.splitlines() if line.startswith("|")) < 6
    assert text.count("<details>") == text.count("</details>") > 3
    assert len(re.findall(r"</summary>\n\n", text)) == text.count("<details>")
    assert len(re.findall(r"\n\n</details>\n", text)) == text.count("<details>")
