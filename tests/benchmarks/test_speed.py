"""The harness of the speed benchmarks: statistics, turns, resuming, simulated cells, tables."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.stats import nbinom

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.speed import data, harness, metrics, ratios, run, table
from benchmarks.speed.harness import Case, Side

from chreode.version import code_hash

SIDES = (Side("theirs", "chreode"), Side("ours", "chreode"))
CASE = Case("imports", "made", SIDES, {"cells": 5}, cost=1)


def lap(name: str, seconds: float, foreign: float = 0.0, **facts) -> common.Row:
    return {
        "name": name, "seconds": seconds, "cpu_seconds": seconds, "foreign_cores": foreign,
        "peak_mib": 300.0, "resident_mib": 200.0, **facts,
    }  # fmt: skip


def row_of(case: Case, runs: dict[str, list[list[common.Row]]]) -> common.Row:
    about = {side.label: {"versions": {"chreode": "1"}} for side in case.sides}
    return {**case.identity(1), "sha256": "0", "about": about, "runs": runs}


# statistics


def test_ratio_is_of_medians():
    found = ratios.ratio([8, 2, 6], [1, 3, 2])
    assert found.value == 3.0
    assert found.low <= 3 <= found.high


def test_interval_draws_laps_that_followed_each_other_together():
    ours = np.array([1.0, 9.0, 2.0, 30.0, 4.0])
    found = ratios.ratio(3 * ours, ours)
    assert (found.low, found.value, found.high) == (3.0, 3.0, 3.0)
    apart = ratios.ratio(3 * ours, ours[::-1])
    assert apart.low < 2 < 4 < apart.high


@pytest.mark.slow
def test_interval_holds_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        theirs, ours = 3 * rng.lognormal(0, 0.2, 15), rng.lognormal(0, 0.2, 15)
        found = ratios.ratio(theirs, ours, seed)
        held += found.low <= 3 <= found.high
    assert 85 <= held <= 100


def test_laps_of_other_cases_are_refused():
    with pytest.raises(ValueError, match="3 laps against 2"):
        ratios.ratio([1, 2, 3], [1, 2])


def test_numbers_have_three_digits_that_matter():
    assert ratios.spread(np.array([1.0, 2.0, 4.0])) == "2.00 (1.00 to 4.00)"
    assert ratios.spread(np.array([12345.6])) == "12,346"
    assert ratios.spread(np.array([0.01234])) == "0.0123"
    assert str(ratios.Ratio(3.14159, 2.5, 12.3)) == "3.14 x (2.50 to 12.3)"
    assert str(ratios.Ratio(3.0, 3.0, 3.0)) == "3.00 x"


def test_a_case_is_marked_by_the_time_others_took_of_it():
    long_and_quiet, short_and_loud = lap("epoch", 99.0), lap("epoch", 1.0, 2.0)
    row = row_of(CASE, {"ours": [[lap("warm-up", 50.0, 2.0), long_and_quiet, short_and_loud]]})
    assert ratios.others(row, ["epoch"]) == pytest.approx(0.02)
    assert ratios.mark(row, "epoch") == ""
    assert ratios.mark(row, "epoch", "warm-up") == " †"
    unknown = row_of(CASE, {"ours": [[lap("epoch", 1.0, math.nan)]]})
    assert ratios.mark(unknown, "epoch") == " †"


# turns, workers and rows


class Made:
    """A worker that has its laps already."""

    def __init__(self, *laps: str) -> None:
        self.laps = [*laps, None]

    def lap(self) -> common.Row | None:
        name = self.laps.pop(0)
        return name and lap(name, 1.0)


def test_workers_take_turns_until_all_have_ended():
    a, b = Made("a0", "a1", "a2"), Made("b0", "b1")
    order = [found["name"] for _, found in harness._turns([a, b])]
    assert order == ["a0", "b0", "a1", "b1", "a2"]


@pytest.mark.slow
def test_a_row_tells_of_every_lap_of_every_process(tmp_path):
    case = replace(CASE, repeats=2)
    said = []
    row = harness.measure(case, {"sha256": "abc"}, 1, tmp_path / "log", said.append)
    assert row["sha256"] == "abc"
    assert [line.split(", ")[1] for line in said] == ["theirs", "ours"] * 2
    for label in ("theirs", "ours"):
        assert row["about"][label]["versions"]["chreode"]
        runs = row["runs"][label]
        assert [[found["name"] for found in run] for run in runs] == [["import"]] * 2
        assert all(0 < found["seconds"] < 60 for run in runs for found in run)
        assert all(5 < run[0]["resident_mib"] <= run[0]["peak_mib"] for run in runs)
    assert json.loads(json.dumps(row)) == row


def test_sides_that_do_not_alternate_run_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "Worker", lambda _, side, *__: WithSide(side, "first", "second"))
    said = []
    harness.measure(replace(CASE, alternate=False), {}, 1, tmp_path / "log", said.append)
    assert [line.split(", ")[1] for line in said] == ["theirs", "theirs", "ours", "ours"]


class WithSide(Made):
    def __init__(self, side: Side, *laps: str) -> None:
        super().__init__(*laps)
        self.side = side

    def close(self) -> None:
        pass


def test_a_side_that_fails_is_told_and_the_next_case_is_measured(tmp_path, capsys):
    broken = replace(CASE, name="broken", sides=(Side("theirs", "no_such_function"),))
    folders = harness.Folders(tmp_path, tmp_path)
    failed = run.run([broken, CASE], 1, tmp_path, folders)
    assert failed == [broken]
    assert "FAILED: theirs failed; see" in capsys.readouterr().out
    assert "no_such_function" in (tmp_path / "workers.log").read_text()
    rows = common.read(run.rows_file("imports", tmp_path))
    assert [row["case"] for row in rows] == ["made"]


def test_only_what_has_no_row_is_measured(tmp_path):
    path = tmp_path / "rows.jsonl"
    common.append(row_of(CASE, {}), path)
    rows = common.read(path)
    others = [
        replace(CASE, name="another"),
        replace(CASE, settings={"cells": 6}),
        replace(CASE, repeats=2),
        replace(CASE, sides=SIDES[:1]),
        replace(CASE, sides=(SIDES[0], replace(SIDES[1], env={"CHREODE_KERNEL": "0"}))),
    ]
    assert harness.missing([CASE, *others], rows, threads=1) == others
    assert harness.missing([CASE], rows, threads=2) == [CASE]
    assert harness.missing([CASE], [{**rows[0], "machine": "another"}], threads=1) == [CASE]
    assert harness.missing([replace(CASE, cost=9)], rows, threads=1) == []
    stale = [{**rows[0], "code": "older"}]
    assert harness.missing([CASE], stale, threads=1) == [CASE]
    assert harness.missing([CASE], stale, threads=1, any_code=True) == []


def test_a_row_gives_way_to_one_of_the_same_case_threads_and_machine(tmp_path):
    path, same = tmp_path / "rows.jsonl", ("case", "threads")
    for threads, n in ((1, 0), (2, 1), (1, 2)):
        common.append({"case": "nb", "threads": threads, "n": n}, path, same)
    assert [row["n"] for row in common.read(path)] == [1, 2]


def test_rows_are_whole_lines_or_absent(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert common.read(path) == []
    common.append({"a": 1}, path)
    path.with_suffix(".partial").write_text('{"cut sh')  # as a killed run leaves it
    common.append({"a": 2}, path)
    assert common.read(path) == [{"a": n, "code": code_hash()} for n in (1, 2)]


def test_a_section_is_written_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- it: begin -->\nold\n<!-- it: end -->\nbelow\n")
    common.write_section(page, "it", "new")
    assert page.read_text() == "above\n<!-- it: begin -->\nnew\n<!-- it: end -->\nbelow\n"
    with pytest.raises(ValueError, match="no section"):
        common.write_section(page, "another", "new")


def test_no_two_runs_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    with common.alone(), pytest.raises(SystemExit, match="Another run"), common.alone():
        pass


# simulated cells


@pytest.mark.parametrize(("mu", "theta"), [(0.2, 0.5), (5.0, 0.7), (3.0, 40.0)])
def test_counts_are_negative_binomial(mu, theta):
    n = 200_000
    drawn = data._negative_binomial(
        np.full((n, 1), mu, np.float32), np.array([theta], np.float32), np.random.default_rng(0)
    )
    found = np.bincount(drawn.toarray().astype(int).ravel(), minlength=40)[:40] / n
    wanted = nbinom.pmf(np.arange(40), theta, theta / (theta + mu))
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted / n) + 1e-5).all()


def test_simulated_cells_are_as_asked_for_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PIECE", 300)  # several pieces
    asked = {"cells": 1_000, "genes": 200, "density": 0.08, "seed": 0}
    given = data.simulated(tmp_path, **asked, by_type=True)
    cells = anndata.read_h5ad(given["file"])
    assert cells.shape == (1_000, 200)
    assert (cells.X.data > 0).all()
    assert cells.X.nnz / (1_000 * 200) == pytest.approx(0.08, rel=0.1)
    assert cells.X.has_sorted_indices
    assert (cells.X.data == cells.X.data.round()).all()
    assert cells.obs["cell_type"].cat.codes.is_monotonic_increasing
    assert cells.obs["batch"].nunique() == 5
    monkeypatch.setattr(data, "_write", None)
    assert data.simulated(tmp_path, **asked, by_type=True) == given
    monkeypatch.undo()
    again = data.simulated(tmp_path / "again", **asked, by_type=True)
    assert again["sha256"] != given["sha256"]  # pieces are drawn one by one
    assert data.simulated(tmp_path / "more", **asked, by_type=True)["sha256"] == again["sha256"]


def test_types_of_a_file_differ(tmp_path):
    given = data.simulated(tmp_path, cells=600, genes=300, density=0.08)
    cells = anndata.read_h5ad(given["file"])
    means = np.stack(
        [cells.X[(cells.obs["cell_type"] == t).to_numpy()].mean(0).A1 for t in ("type0", "type1")]
    )
    assert np.corrcoef(means)[0, 1] < 0.9


# tables


def lapping(label: str, seconds: float) -> list[common.Row]:
    """Return laps of all the names and facts that any table reads."""
    facts = {
        "validation_elbo": [-9.0, -8.0], "best_epoch": 0, "reached": True, "kernel": True,
        "elbo": {"validation": -8.0, "test": -8.5}, "entropy": 1.8, "true_entropy": 2.0,
        "steps": 10, "value": -5.0, "scores": dict.fromkeys(metrics.KEYS, 0.1 * len(label)),
    }  # fmt: skip
    once = ("import", "load", "set-up", "warm-up")
    several = ("epoch", "embed", "fit", "steps", *metrics.CALLS)
    return [lap(name, seconds, **facts) for name in (*once, *several, *several)]


def rows_of(name: str, **facts) -> list[common.Row]:
    """Return a row per case of a table, in which the first side takes four times as long."""
    found = []
    for case in run.table(name).cases(quick=True):
        pace = {side.label: 1.0 for side in case.sides} | {case.sides[0].label: 4.0}
        runs = {label: [lapping(label, seconds)] for label, seconds in pace.items()}
        for laps in runs.values():
            laps[0] = [{**one, **facts} for one in laps[0]]
        found.append(row_of(case, runs))
    return found


@pytest.mark.parametrize("name", run.TABLES)
def test_every_table_has_its_sides_and_is_told(name):
    module = run.table(name)
    for quick in (True, False):
        cases = module.cases(quick)
        identities = [json.dumps(case.identity(1)) for case in cases]
        assert len(set(identities)) == len(cases)
        for case in cases:
            assert case.table == name
            assert all(callable(getattr(module, side.function)) for side in case.sides)
            assert len({side.label for side in case.sides}) == len(case.sides)
    text = table.section(name, rows_of(name))
    assert "†" not in text
    assert "chreode 1" in text
    assert common.machine() in text
    width = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(width) == 1
    assert " †" in table.section(name, rows_of(name, foreign_cores=0.5))
    assert table.section(name, []) == "Not measured yet."


@pytest.mark.parametrize("name", ["training", "linear", "metrics", "disk", "likelihood", "imports"])
def test_tables_tell_how_many_times_faster(name):
    assert "| 4.00 x |" in table.section(name, rows_of(name))


def test_training_tells_pace_and_memory():
    text = table.section("training", rows_of("training"))
    # 1,800 cells in 4 s or 1 s, in 14 steps; set-up and first epoch together
    assert "| nb, 128 | scvi-tools | 8.00 | 450 | 286 | 1 | 1 |" in text
    assert "| nb, 128 | chreode, kernel | 2.00 | 1,800 | 71.4 | 4.00 x | 4.00 x |" in text
    assert "| memory, 128 | chreode, kernel | 300 | 100 | 1.00 x |" in text


def test_a_machine_without_the_kernel_says_so():
    assert "no kernel" not in table.section("training", rows_of("training"))
    text = table.section("training", rows_of("training", kernel=False))
    assert "| chreode, kernel (no kernel here) |" in text
    assert "| chreode, no compiler |" in text


def test_converged_tells_the_share_or_that_there_is_none():
    # set-up and one epoch are 8 s there, all three laps 3 s here
    text = table.section("converged", rows_of("converged"))
    assert "| 8 | 12 | 3 | 0.38 | 0.25 |" in text
    assert "| -8.00 / -8.50 | 1 | 2 | -8.00 / -8.50 | 2 |" in text
    text = table.section("converged", rows_of("converged", reached=False))
    assert text.count("**not reached**") == 4
    assert "0.38" not in text


def test_metrics_tell_which_scores_differ():
    text = table.section("metrics", rows_of("metrics"))
    assert "isolated_labels 0.5000" in text  # 0.1 per letter of the label


def test_disk_tells_how_mixed_and_how_large():
    text = table.section("disk", rows_of("disk"))
    assert "| page cache full | chreode | 4,000 | 4,000 | 4.00 x | 90.0% |" in text
    assert "| chreode, on disk | 4 | 4 | 300 | yes |" in text
    text = table.section("disk", rows_of("disk", peak_mib=2048.5))
    assert "**no**" in text


def test_machines_and_threads_are_told_apart():
    rows = rows_of("imports")
    text = table.section("imports", [*rows, {**rows[0], "threads": 2}])
    assert "threads: 1." in text
    assert "threads: 2." in text
    assert text.count("| import chreode |") == 4  # with and without ranges


def test_the_first_table_has_a_line_for_each_kind_of_work():
    rows = {name: rows_of(name) for name in run.TABLES}
    lines = table.in_short(rows).splitlines()[4:]
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines] == [
        "4.00 x", "4.00 x", "1.00 x", "2.67 x", "2.67 x", "4.00 x", "4.00 x", "4.00 x", "4.00 x", "4.00 x",
    ]  # fmt: skip
    assert lines[0] == (
        "| training step of scVI, NB, minibatches of 128 | 71.4 ms | scvi-tools | 286 ms | 4.00 x |"
    )
    assert "†" not in table.in_short(rows)
    disturbed = {name: rows_of(name, foreign_cores=0.5) for name in run.TABLES}
    assert table.in_short(disturbed).count(" † |") == len(lines) - 1  # but that of memory
    rows["converged"] = rows_of("converged", reached=False)
    assert "held-out ELBO" not in table.in_short(rows)
    assert table.in_short({name: [] for name in run.TABLES}) == "Not measured yet."
    found = table._compared(np.array([1.0]), np.array([2.0]), "theirs", "s")
    assert found == ("2.00 s", "theirs", "1.00 s", "**0.5 x**")


def test_the_page_has_every_table():
    page = table.PAGE.read_text()
    for name in ("summary", *run.TABLES):
        assert page.index(f"<!-- {name}: begin -->") < page.index(f"<!-- {name}: end -->")


def test_the_page_is_what_the_rows_say(tmp_path):
    page = table.PAGE
    copy = tmp_path / "speed.md"
    copy.write_text(page.read_text())
    rows = {name: common.read(run.rows_file(name)) for name in run.TABLES}
    for name, found in rows.items():
        common.write_section(copy, name, table.section(name, found))
    common.write_section(copy, "summary", table.in_short(rows))
    assert copy.read_text() == page.read_text(), "run: python benchmarks/speed/table.py"
