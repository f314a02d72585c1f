"""Trials in this process: in order, none lost, gone on with after a stop, a crash or a full disk."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_info

import chreode as ch
from chreode.compute.progress import bar
from chreode.data.cells import Cells
from chreode.trials.digest import digest, fingerprint
from chreode.trials.ledger import Ledger
from chreode.trials.runner import require_seeds, running
from chreode.trials.trial import Outcome, Trial, pinned

ABOUT = {"data": "abc", "threads": 1}
FLOATS = np.array([1 / 3, np.nan, -0.0, 1e-45], np.float32)


class Desk:
    """What trials share here: a list of those that were begun, and what happens in some of them."""

    def __init__(self, **happens):
        self.begun = []
        self.happens = happens


def work(name, desk):
    desk.begun.append(name)
    if name in desk.happens:
        desk.happens[name]()
    row = {"value": len(name) / 3, "undefined": np.nan, "told": ["x", 1]}
    return row, {"drawn": FLOATS, "cells": np.arange(len(name))}


def trials(*names):
    return [Trial(name, partial(work, name), {"name": name}) for name in names]


def run(desk, *names, into=None, about=ABOUT):
    with (
        bar(len(names), "test", False) as shown,
        running(desk, about, into=into) as runner,
    ):
        return runner.run(trials(*names), shown)


def same(a, b):
    """Compare all but the seconds; NaN equals NaN."""
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_equal(one.row, other.row)
        assert (one.failed, one.attempts) == (other.failed, other.attempts)
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            assert array.dtype == other.arrays[name].dtype
            assert array.tobytes() == other.arrays[name].tobytes()


def fail(error):
    raise error


# what becomes of trials


def test_results_are_in_the_order_of_the_trials():
    desk = Desk()
    done = run(desk, "ccc", "a", "bb")
    assert desk.begun == ["ccc", "a", "bb"]
    assert [outcome.row["value"] for outcome in done] == [1, 1 / 3, 2 / 3]


def test_a_failure_is_a_row_and_the_rest_go_on():
    desk = Desk(b=partial(fail, ch.DataError("too few cells")))
    a, b, c = run(desk, "a", "b", "c")
    assert (a.failed, b.failed, c.failed) == ("", "too few cells", "")
    assert (b.row, b.arrays) == ({}, {})


def test_what_nobody_foresaw_is_a_row_and_a_warning():
    desk = Desk(b=partial(fail, ZeroDivisionError("by zero")))
    with pytest.warns(UserWarning, match="b failed: ZeroDivisionError: by zero"):
        a, b, c = run(desk, "a", "b", "c")
    assert b.failed.startswith("ZeroDivisionError: by zero (test_trials.py, line ")
    assert a.failed == c.failed == ""


def test_threads_are_pinned_for_a_while():
    before = torch.get_num_threads()

    def blas():
        return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}

    with pinned(2):
        assert torch.get_num_threads() == 2
        with pinned(1):
            assert (torch.get_num_threads(), blas()) == (1, {1})
    assert torch.get_num_threads() == before


# a folder


def test_what_is_kept_is_what_was_returned_to_the_bit(tmp_path):
    first = run(Desk(), "a", "bb", into=tmp_path / "new" / "run")
    desk = Desk()
    again = run(desk, "a", "bb", into=tmp_path / "new" / "run")
    assert desk.begun == []
    same(first, again)
    same(first, run(Desk(), "a", "bb"))  # without a folder: the same
    assert [o.seconds for o in again] == [o.seconds for o in first]


def test_more_and_fewer_and_renamed_trials(tmp_path):
    run(Desk(), "a", "bb", into=tmp_path)
    desk = Desk()
    run(desk, "ccc", "bb", into=tmp_path)
    assert desk.begun == ["ccc"]
    renamed = Trial("another name", partial(work, "a"), {"name": "a"})
    with bar(1, "test", False) as shown, running(desk, ABOUT, into=tmp_path) as runner:
        assert runner.run([renamed], shown)[0].row["value"] == 1 / 3
    assert desk.begun == ["ccc"]


def test_what_failed_is_tried_again(tmp_path):
    desk = Desk(b=partial(fail, ch.FitError("diverged")))
    run(desk, "a", "b", into=tmp_path)
    desk = Desk()
    a, b = run(desk, "a", "b", into=tmp_path)
    assert desk.begun == ["b"]
    assert not b.failed
    desk = Desk()
    same([a, b], run(desk, "a", "b", into=tmp_path))
    assert desk.begun == []


def test_what_lost_its_arrays_is_made_again(tmp_path):
    """As the error of damaged ones says to do."""
    first = run(Desk(), "a", "bb", into=tmp_path / "run")
    arrays = tmp_path / "run" / f"{trials('bb')[0].key}.safetensors"
    arrays.write_bytes(b"torn")
    with pytest.raises(ch.StoreError, match="Remove it"):
        run(Desk(), "a", "bb", into=tmp_path / "run")
    arrays.unlink()
    again = Desk()
    same(run(again, "a", "bb", into=tmp_path / "run"), first)
    assert again.begun == ["bb"]


def test_ctrl_c_ends_at_once_and_the_same_call_goes_on(tmp_path):
    def interrupted():
        with contextlib.suppress(KeyboardInterrupt):  # as a fit does, which then returns early
            signal.raise_signal(signal.SIGINT)

    desk = Desk(bb=interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; .* keeps 1 result, and the"):
        run(desk, "a", "bb", "ccc", into=tmp_path)
    assert desk.begun == ["a", "bb"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    desk = Desk()
    same(run(desk, "a", "bb", "ccc", into=tmp_path), run(Desk(), "a", "bb", "ccc"))
    assert desk.begun == ["bb", "ccc"]
    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        run(Desk(bb=interrupted), "a", "bb")


def test_a_torn_last_line_is_dropped_wherever_it_tore(tmp_path):
    whole = run(Desk(), "a", "bb", into=tmp_path)
    file = tmp_path / "rows.jsonl"
    text = file.read_bytes()
    last = text[:-1].rfind(b"\n") + 1
    for length in (*range(last, len(text), 11), len(text) - 1):
        file.write_bytes(text[:length])
        desk = Desk()
        same(run(desk, "a", "bb", into=tmp_path), whole)
        assert desk.begun == ["bb"], length
    first = text.find(b"\n") + 1
    for length in (0, 1, first - 1):
        file.write_bytes(text[:length])
        desk = Desk()
        same(run(desk, "a", "bb", into=tmp_path), whole)
        assert desk.begun == ["a", "bb"]


def test_a_full_disk_stops_and_keeps_what_is_there(tmp_path, monkeypatch):
    run(Desk(), "a", into=tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        desk = Desk(bb=lambda: patch.setattr(os, "fsync", full))
        with pytest.raises(ch.StoreError, match="No space left"):
            run(desk, "a", "bb", "ccc", into=tmp_path)
    desk = Desk()
    same(run(desk, "a", "bb", "ccc", into=tmp_path), run(Desk(), "a", "bb", "ccc"))
    assert desk.begun[-1] == "ccc"
    assert "a" not in desk.begun


def test_another_run_s_folder_is_refused_with_what_differs(tmp_path):
    run(Desk(), "a", into=tmp_path)
    desk = Desk()
    with pytest.raises(ch.StoreError, match=r"another run \(threads: 1 there, 2 here\)"):
        run(desk, "a", into=tmp_path, about={**ABOUT, "threads": 2})
    with pytest.raises(ch.StoreError, match=r"metrics: None there, \['ilisi'\] here"):
        run(desk, "a", into=tmp_path, about={**ABOUT, "metrics": ("ilisi",)})
    assert desk.begun == []


def test_a_folder_of_something_else_and_a_changed_file_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ch.StoreError, match="holds no results"):
        run(Desk(), "a", into=tmp_path)
    run(Desk(), "a", "bb", into=tmp_path / "run")
    file = tmp_path / "run" / "rows.jsonl"
    head, a, b = file.read_bytes().splitlines(keepends=True)
    for wrong in (a[:-20], b"[" * 100_000 + b"\n", b'{"key": "a"}\n'):
        file.write_bytes(head + wrong + b)
        with pytest.raises(ch.StoreError, match="was changed since"):
            run(Desk(), "a", into=tmp_path / "run")


STARTS = """
import os, sys, time
from pathlib import Path
from chreode.trials.ledger import Ledger
from chreode.trials.trial import Outcome
for number in range(4):
    into, at, children = Path(sys.argv[1], str(number)), time.time() + 0.03, []
    for child in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                time.sleep(max(0, at - time.time()))
                Ledger(into, {"data": "x"}).add(f"key{child}", "t", Outcome({"value": child}))
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert len(Ledger(into, {"data": "x"}).kept) == 8
    assert os.listdir(into) == ["rows.jsonl"]
"""


@pytest.mark.slow
def test_eight_processes_that_begin_at_the_same_moment_all_go_on(tmp_path):
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_of_two_runs_that_begin_at_once_the_second_is_refused(tmp_path, monkeypatch):
    """The other's first line comes between the look and the writing of ours."""
    plain, told = Ledger._begin, []

    def begin(self, **how):
        if not told:
            told.append(1)
            Ledger(tmp_path, {"data": "another"})
        plain(self, **how)

    monkeypatch.setattr(Ledger, "_begin", begin)
    with pytest.raises(ch.StoreError, match="data: another there, x here"):
        Ledger(tmp_path, {"data": "x"})
    assert Ledger(tmp_path, {"data": "another"}).kept == {}


def test_a_row_behind_a_torn_one_and_a_folder_that_was_removed_meanwhile(tmp_path):
    mine, theirs = (Ledger(tmp_path / "run", {"data": "x"}) for _ in range(2))
    mine.add("a", "a", Outcome({"value": 1}))
    with theirs.file.open("ab") as file:
        file.write(b'{"key": "torn", "tr')  # as a process leaves it that is killed
    mine.add("b", "b", Outcome({"value": 2}))
    assert set(Ledger(tmp_path / "run", {"data": "x"}).kept) == {"a", "b"}
    shutil.rmtree(tmp_path / "run")
    mine.add("c", "c", Outcome({"value": 3}))
    assert set(Ledger(tmp_path / "run", {"data": "x"}).kept) == {"c"}


def test_a_line_that_another_process_is_writing_is_not_cut_off(tmp_path):
    mine, theirs = (Ledger(tmp_path, {"data": "x"}) for _ in range(2))
    theirs.add("a", "a", Outcome({"value": 1}))
    *_, line = mine.file.read_bytes().splitlines(keepends=True)
    mine.file.write_bytes(mine.file.read_bytes().removesuffix(line[20:]))

    def go_on():
        with theirs.file.open("ab") as file:
            file.write(line[20:])

    later = threading.Timer(0.05, go_on)
    later.start()
    mine.add("b", "b", Outcome({"value": 2}))
    later.join()
    assert set(Ledger(tmp_path, {"data": "x"}).kept) == {"a", "b"}


@pytest.mark.parametrize("text", ["[]\n", '{"data": "x"}\n{"data": "x"}\n', '{"data": "x"}\n3\n'])
def test_lines_that_are_no_results_are_refused(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ch.StoreError):
        Ledger(tmp_path, {"data": "x"})


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "thesis").write_text("chapter 1")
    with pytest.raises(ch.StoreError, match="holds no results"):
        Ledger(tmp_path / "thesis", {"data": "x"})


# fingerprints


def test_a_fingerprint_sees_every_value(cells, schema):
    before = fingerprint(Cells(cells, schema))
    assert fingerprint(Cells(cells.copy(), schema)) == before

    def changed(change):
        other = cells.copy()
        change(other)
        return fingerprint(Cells(other, schema))

    def count(a):
        a.layers["counts"].data[0] += 1

    def gene(a):
        a.layers["counts"].indices[:2] = a.layers["counts"].indices[:2][::-1]

    def batch(a):
        a.obs["batch"] = a.obs["batch"].to_numpy()[::-1]

    def age(a):
        a.obs.loc[a.obs_names[0], "age"] = 99.0

    def name(a):
        a.obs_names = ["x", *a.obs_names[1:]]

    seen = {before, *map(changed, (count, gene, batch, age, name))}
    assert len(seen) == 6
    assert fingerprint(Cells(cells, schema.with_(continuous=()))) != before


def test_a_digest_tells_apart_what_is_not_the_same():
    x = sp.random(5, 4, 0.5, format="csr", random_state=0)
    different = [
        {"a": 1}, {"a": 2}, ["a", 1], np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(6),
        np.zeros(6, np.float32), x, x * 2, x.T.tocsr(), pd.Series(["a", "b"]), pd.Series(["b", "a"]),
        pd.Series([1.0, np.nan]), np.zeros((0, 3)),
    ]  # fmt: skip
    assert len({digest(part) for part in different}) == len(different)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(pd.Series(["a", "b"])) == digest(pd.Series(["a", "b"], dtype="category"))
    assert digest(1, 2) != digest(12)


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Index, lambda s: pd.Series(s, index=s)])
def test_seeds_may_stand_in_any_list(kind):
    """NumPy's are neither true nor false, and a column has other ways to its first one."""
    assert require_seeds(kind([0])) == (0,)
    assert require_seeds(kind([3, 5])) == (3, 5)
    assert all(type(seed) is int for seed in require_seeds(kind([3, 5])))
    for seeds, said in (([], "no seeds"), ([2**32], "seeds: 4294967296: expected")):
        with pytest.raises(ch.ConfigError, match=said):
            require_seeds(kind(seeds))


@pytest.mark.parametrize("kind", ["integration", "generation", "augmentation", "dynamics", "tune"])
def test_fits_of_a_bench_share_no_checkpoint(cells, schema, tmp_path, monkeypatch, kind):
    """All of them in one folder would refuse each other's states."""
    seen = []

    def begun(given, *_, **__):
        seen.append(given.run)
        raise KeyboardInterrupt

    where = "tuning" if kind == "tune" else "integration" if kind == "integration" else "contest"
    monkeypatch.setattr(importlib.import_module(f"chreode.bench.{where}"), "running", begun)
    run = ch.Run(checkpoint=tmp_path / "state", progress=False)
    calls = {
        "tune": lambda: ch.tune(ch.PPCA(), cells, schema, run=run),
        "integration": lambda: ch.bench.integration(cells, schema, [], run=run),
        "generation": lambda: ch.bench.generation(
            cells, ch.Schema(counts="layers/counts", batch="obs/batch"), run=run
        ),
        "augmentation": lambda: ch.bench.augmentation(cells, schema, run=run),
        "dynamics": lambda: ch.bench.dynamics(
            cells, ch.Schema(counts="layers/counts", time="obs/true_depth"),
            tests={"new": np.arange(50)}, run=run,
        ),
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        calls[kind]()
    assert seen == [ch.Run(progress=False)]
