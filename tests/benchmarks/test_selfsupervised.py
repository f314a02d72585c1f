"""The benchmark of self-supervision: what chooses genes, what the reference lacks, and what tables say."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from benchmarks.selfsupervised import ablation, fits, methods, table, tasks, tuning

import chreode as ch
from chreode.data.simulate import simulate_cells

SCHEMA = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type")


@pytest.fixture
def cells():
    made = simulate_cells(200, 60, n_types=3, n_batches=3, seed=0)
    made.X = made.layers["counts"].astype(np.float32)
    return made


def prepared(cells, tmp_path, monkeypatch, **options):
    task = tasks.Task(lambda _: cells.copy(), SCHEMA, ("typing",), **options)
    monkeypatch.setitem(tasks.TASKS, "toy", task)
    monkeypatch.setattr(tasks, "GENES", 20)
    return tasks.prepare("toy", tmp_path)[0]


def test_the_query_chooses_no_gene(cells, tmp_path, monkeypatch):
    query = (cells.obs["batch"] == cells.obs["batch"].unique()[0]).to_numpy()
    held_out = (str(cells.obs["batch"].unique()[0]),)
    other = cells.copy()
    values = other.X.toarray()
    values[query] = values[query][:, ::-1]
    other.X = sp.csr_matrix(values)
    one, two = (prepared(c, tmp_path, monkeypatch, held_out=held_out) for c in (cells, other))
    assert list(one.var_names) == list(two.var_names)
    assert one.n_vars == 20
    assert list(prepared(other, tmp_path, monkeypatch).var_names) != list(one.var_names)


def test_only_the_query_has_the_types_that_are_to_be_unseen(cells, tmp_path, monkeypatch):
    held_out, kind = str(cells.obs["batch"].unique()[0]), str(cells.obs["cell_type"].unique()[0])
    found = prepared(cells, tmp_path, monkeypatch, held_out=(held_out,), unseen=(kind,))
    having = found.obs["batch"][found.obs["cell_type"] == kind]
    assert set(having.astype(str)) == {held_out}
    query = cells.obs["batch"].astype(str) == held_out
    assert found.n_obs == cells.n_obs - ((cells.obs["cell_type"] == kind) & ~query).sum()


def test_nothing_is_reported_on_the_cells_that_options_were_chosen_on(monkeypatch):
    monkeypatch.setattr(
        tuning, "best", lambda _: {name: of[-1] for name, of in tuning.GRID.items()}
    )
    reported = {case["task"] for table in (methods, ablation) for case in table.cases()}
    assert not reported & set(tasks.DEVELOPMENT)
    assert len({len(tried) for tried in tuning.GRID.values()}) == 1
    assert set(tuning.GRID) == set(methods.CLASSES) - {methods.PAIRED}


def test_as_many_epochs_as_go_into_the_time_are_remembered(cells, tmp_path, monkeypatch):
    rows = np.arange(cells.n_obs)
    monkeypatch.setattr(fits, "SECONDS", 1e9)
    model, told = fits.budgeted(ch.SimCLR(augment=()), cells, SCHEMA, rows, tmp_path)
    assert model.max_epochs == told["epochs"] == fits.MOST
    monkeypatch.setattr(fits, "SECONDS", 2.5 * told["epoch_seconds"])
    again, same = fits.budgeted(ch.SimCLR(augment=()), cells, SCHEMA, rows, tmp_path)
    assert (again.max_epochs, same["epoch_seconds"]) == (2, told["epoch_seconds"])


def row(method, seed, role="method", **scores):
    told = {name: [value, value, value] for name, value in scores.items()}
    return {
        "case": {"task": "lines", "method": method, "seed": seed}, "epochs": 7,
        "methods": {method: {"role": role, "scores": told, "state": "rested", "note": "", "seconds": 1}},
    }  # fmt: skip


def test_tables_tell_means_the_best_method_and_totals_of_all_rows():
    """A ceiling is no method: it is never the best, and the min-max Totals are without it."""
    rows = [
        row("A", 0, total=0.5, clisi=0.9, ilisi=0.4), row("A", 1, total=0.7, clisi=0.9, ilisi=0.4),
        row("B", 0, total=0.4, clisi=1.0, ilisi=0.1), row("B", 1, total=0.4, clisi=1.0, ilisi=0.1),
        row("C", 0, role="ceiling", total=1.0, clisi=1.0, ilisi=1.0),
    ]  # fmt: skip
    lines = methods.render(rows)
    assert "| A | – | **0.600** | – | – | – |" in lines
    assert "| B | – | 0.400 | – | – | – |" in lines
    assert "| C (ceiling) | – | 1.000 | – | – | – |" in lines
    assert "| A | – | – | 0.6 (0.5 to 0.7) | 0.4 | 7 |  |" in lines
    assert "| B | – | – | 0.4 | 0.6 | 7 |  |" in lines


def test_the_ablation_names_every_view_once():
    told = [
        {**row("mask", s, bio=0.5 + s / 10, total=0.5, batch=0.2), "case": {"task": "lines", "seed": s}}
        for s in (0, 1)
    ]  # fmt: skip
    lines = ablation.render(told)
    assert "| mask | 0.55 | 0.2 | 0.5 | – | – |" in lines
    assert "| mask | 0.55 (0.5 to 0.6) | 0.2 | 0.5 | – | – |" in lines
    assert sum(line.startswith("| none |") for line in lines) == 2


def test_cells_of_one_batch_are_not_mixed_and_two_modalities_are_for_scclip(monkeypatch):
    chosen = {name: of[-1] for name, of in tuning.GRID.items()}
    monkeypatch.setattr(tuning, "best", lambda _: chosen)
    assert chosen["SimSiam"]["augment"] == ["mask", "bbknn"]
    alone = methods.options("cite")
    assert set(alone) == set(chosen) - {"CLAIRE"} | {"ScCLIP"}
    assert alone["SimSiam"] == {**chosen["SimSiam"], "augment": ["mask"]}
    assert methods.options("midas") == {**chosen, "ScCLIP": {}}
    assert methods.options("lines") == chosen
    for case in methods.cases():  # as a model takes them
        if case["method"] != methods.CONTROLS:
            methods.CLASSES[case["method"]](**tuning.of(case["options"]))


def test_the_options_with_the_best_mean_of_both_tasks_are_chosen(monkeypatch):
    """Those that no grid has are out; where one was not tried, or has no score, none is chosen."""
    monkeypatch.setattr(tuning, "GRID", {"A": [{"x": 0}, {"x": 1}, {"x": 2}]})
    rows = [
        {
            "case": {"method": "A", "options": {"x": k}}, "chosen by": value,
            "scores": {"total": value, "knn_shared_f1": value},
        } for k, value in enumerate((0.5, 0.9, 0.7, 0.99))
    ]  # fmt: skip
    assert tuning.best(rows) == {"A": {"x": 1}}
    assert sum("**" in line for line in tuning.render(rows[:3])) == 1
    with pytest.raises(ValueError, match="Measure these first: .*'x': 2"):
        tuning.best(rows[:2])
    with pytest.raises(ValueError, match="'x': 1"):
        tuning.best([rows[0], {**rows[1], "chosen by": float("nan")}, rows[2]])


def test_every_model_has_a_page_with_room_for_its_row():
    for name, page in table.pages().items():
        assert page.read_text(encoding="utf-8").count("<!-- bench: begin -->") == 1, name
    assert len(table.pages()) == 12


@pytest.mark.slow
def test_a_method_learns_for_its_time_from_the_reference_alone(cells, tmp_path, monkeypatch):
    held_out = str(cells.obs["batch"].unique()[0])
    prepared(cells, tmp_path, monkeypatch, held_out=(held_out,))
    monkeypatch.setattr(fits, "SECONDS", 1e-9)
    told = []
    plain = methods.budgeted

    def seen(model, data, schema, rows, folder):
        told.append(set(data.obs["batch"].astype(str).iloc[rows]))
        return plain(model, data, schema, rows, folder)

    monkeypatch.setattr(methods, "budgeted", seen)
    case = {"task": "toy", "method": "SimCLR", "seed": 0, "options": {"augment": ["mask"]}}
    row = methods.measure(case, tmp_path, tmp_path)
    assert told == [set(cells.obs["batch"].astype(str)) - {held_out}]
    assert row["epochs"] == 1
    assert row["config"]["max_epochs"] == 1
    assert set(row["methods"]) == {"SimCLR"}
    assert {"knn_shared_f1", "linear_shared_f1", "knn_worst"} <= set(
        row["methods"]["SimCLR"]["scores"]
    )
    beside = methods.measure(
        {**case, "method": methods.CONTROLS, "options": {}}, tmp_path, tmp_path
    )
    assert "PCA" in beside["methods"]
    assert "SimCLR" not in beside["methods"]
    assert beside["config"] == {}


def test_others_on_the_machine_cost_a_method_no_epoch(cells, tmp_path, monkeypatch):
    """Its own share of a core is what its epochs are reckoned by."""
    rows = np.arange(cells.n_obs)
    monkeypatch.setattr(fits.Stopwatch, "own", lambda _: 0.25)
    _, told = fits.budgeted(ch.SimCLR(augment=()), cells, SCHEMA, rows, tmp_path / "a")
    monkeypatch.setattr(fits.Stopwatch, "own", lambda _: 1.0)
    _, whole = fits.budgeted(ch.SimCLR(augment=()), cells, SCHEMA, rows, tmp_path / "b")
    assert told["epoch_seconds"] < 0.8 * whole["epoch_seconds"]
