"""The search finds what there is to find, says when there is nothing, and never looks at the test cells."""

from __future__ import annotations

import dataclasses
import signal

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode import models
from chreode.bench import candidate
from chreode.bench.tuned import REFITS
from chreode.bench.tuning import default_space, nats_per_cell
from chreode.data.simulate import simulate_citeseq

pytest.importorskip("optuna")
SPACE = {"n_latent": (2, 40)}


@pytest.fixture
def search(cells, schema):
    """Tune the number of PPCA's latent dimensions, which takes milliseconds, by any objective."""

    def run(objective, trials=12, model=None, space=SPACE, **options):
        return ch.tune(
            model or ch.PPCA(), cells[:200, :60], schema, trials=trials, space=space,
            objective=objective, **options,
        )  # fmt: skip

    return run


def distance(fitted, _):
    """Planted optimum: 21 dimensions, whatever the data."""
    return abs(fitted.model.n_latent - 21)


def but_seconds(tuned):
    return tuned.trials.drop(columns="seconds")


# what is searched


@pytest.mark.parametrize("key", models.keys())
def test_every_model_has_a_space_about_its_own_values(key):
    model = models.find(key)()
    space = default_space(model)
    fields = {field.name: field for field in dataclasses.fields(model)}
    for name, (low, high) in space.items():
        told, own = fields[name].metadata, getattr(model, name)
        assert low <= own <= high
        assert low < high
        assert type(low) is type(high) is type(own)
        dataclasses.replace(model, **{name: low})  # within the option's own bounds
        dataclasses.replace(model, **{name: high})
        assert told["doc"]
    assert not set(space) & {"likelihood", "dispersion", "noise", "latent_library", "max_epochs"}


def test_options_that_were_chosen_are_not_searched():
    assert set(default_space(ch.SCVI())) - set(default_space(ch.SCVI(lr=0.01, n_layers=2))) == {
        "lr",
        "n_layers",
    }


@pytest.mark.slow
def test_any_option_can_be_searched_in_a_range_or_a_list(search):
    space = {"n_latent": [5, 10], "tol": (1e-7, 1e-3), "max_epochs": (100, 500)}
    table = search(distance, 6, space=space).trials
    assert table.columns[:3].tolist() == ["n_latent", "tol", "max_epochs"]
    assert set(table["n_latent"]) == {5, 10}
    assert table["tol"].between(1e-7, 1e-3).all()
    assert table["tol"].nunique() == 6
    assert table["max_epochs"].dtype.kind == "i"
    assert table.loc[0, ["n_latent", "tol", "max_epochs"]].tolist() == [10, 1e-5, 500]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"n_latnt": (2, 40)}, "no option 'n_latnt'. Did you mean 'n_latent'?"),
        ({"n_latent": (20, 40)}, "leaves out PPCA's own value, 10"),
        ({"n_latent": [20, 40]}, "leaves out PPCA's own value, 10"),
        ({"n_latent": (40, 2)}, "expected the lowest and the highest value"),
        ({"n_latent": (2, np.nan)}, "expected the lowest and the highest value"),
        ({"n_latent": ("a", "b")}, "expected the lowest and the highest value, or a list"),
        ({}, "no option to search"),
    ],
)
def test_a_wrong_space_is_refused(search, space, said):
    with pytest.raises(ch.ConfigError, match=said):
        search(distance, space=space)


def test_wrong_shares_and_numbers_are_refused(search):
    for wrong in ({"trials": 0}, {"test": 1.0}, {"validation": 0}):
        with pytest.raises(ch.ConfigError, match=next(iter(wrong))):
            search(distance, **wrong)


# what is found


@pytest.mark.slow
def test_the_search_finds_an_optimum_and_beats_what_was_given(search):
    tuned = search(distance, 20)
    assert len(tuned.trials) == 20
    assert tuned.trials.loc[0, "n_latent"] == 10
    assert tuned.best == ch.PPCA(n_latent=21)
    assert tuned.improved
    assert "beats PPCA as given: 0 (0 to 0) against 11 (11 to 11)" in tuned.verdict()
    # after the ten trials by chance come those that TPE suggests
    assert tuned.trials["objective"][11:].median() < tuned.trials["objective"][1:11].median()


@pytest.mark.slow
def test_it_says_when_nothing_was_better(search):
    tuned = search(lambda fitted, _: abs(fitted.model.n_latent - 10))
    assert tuned.best == ch.PPCA()
    assert not tuned.improved
    assert "No trial was better than PPCA as given" in tuned.verdict()
    assert tuned.refits["options"].tolist() == ["given"] * REFITS


@pytest.mark.slow
def test_it_says_when_refits_differ_by_more_than_options(search):
    tuned = search(lambda fitted, _: 0.01 * distance(fitted, _) + fitted.provenance["seed"])
    assert tuned.best != ch.PPCA()
    assert not tuned.improved
    assert "does not beat PPCA as given" in tuned.verdict()
    intervals = tuned.intervals()
    assert intervals.loc["given"].tolist() == pytest.approx([2.11, 1.11, 3.11])
    assert intervals.loc["best", "min"] < intervals.loc["given", "max"]


@pytest.mark.slow
def test_one_seed_is_one_search(search):
    a, b = search(distance), search(distance)
    pd.testing.assert_frame_equal(but_seconds(a), but_seconds(b))
    other = search(distance, seed=1)
    assert other.trials["n_latent"].tolist() != a.trials["n_latent"].tolist()
    assert other.refits["seed"].tolist()[:REFITS] == [2, 3, 4]


# what it looks at


@pytest.mark.slow
@pytest.mark.parametrize("model", [ch.PPCA(), ch.VAE(max_epochs=2)])
def test_nothing_sees_the_test_cells_and_no_fit_what_it_is_judged_on(search, cells, model):
    judged, learned = [], []

    def record(fitted, data):
        judged.append(set(data.obs_names))
        said = fitted.provenance
        learned.append((said["cells"], said["validation_cells"]))
        return distance(fitted, data)

    search(record, 4, model=model, space={"n_latent": (5, 20)}, rows=np.arange(150))
    validation, test = judged[0], judged[-1]
    assert judged == [validation] * 4 + [test] * 2 * REFITS
    assert (len(test), len(validation)) == (15, 14)  # of 150, then of the 135 that are left
    assert not test & validation
    assert test | validation <= set(cells.obs_names[:150])
    assert learned == [(121, 14 if isinstance(model, ch.VAE) else 0)] * len(learned)


def test_rows_can_be_named(search, cells):
    judged = []

    def record(fitted, data):
        judged.append(data.obs_names.tolist())
        return distance(fitted, data)

    search(record, 1, test=np.arange(190, 200), validation=cells.obs_names[:5])
    assert judged[0] == cells.obs_names[:5].tolist()
    assert judged[-1] == cells.obs_names[190:200].tolist()


@pytest.mark.slow
def test_the_default_objective_is_what_held_out_cells_cost(cells, schema):
    small = cells[:200, :60].copy()
    rows = {"test": np.arange(180, 200), "validation": np.arange(160, 180)}
    model = ch.VAE(max_epochs=3)
    tuned = ch.tune(model, small, schema, trials=1, seed=4, **rows)
    for judged, seed, value in (
        ("validation", 4, tuned.trials.loc[0, "objective"]),
        ("test", 5, tuned.refits.loc[0, "objective"]),
    ):
        fitted = model.fit(
            small, schema, seed=seed, rows=np.arange(180), validation=rows["validation"]
        )
        assert value == -fitted.score(small[rows[judged]].copy()).mean()
        assert value == nats_per_cell(fitted, small[rows[judged]])


@pytest.mark.slow
@pytest.mark.parametrize("learner", [ch.PPCA(), ch.VAE(max_epochs=1, n_hidden=4)])
@pytest.mark.parametrize("how", ["mask", "positions", "names"])
@pytest.mark.parametrize("which", ["validation", "test", "both"])
def test_named_cells_have_one_task(cells, schema, learner, how, which):
    """Whatever is named, and however: no cell is in two parts, and none is outside of `rows`."""
    small, rows = cells[:100, :30].copy(), np.arange(20, 100)
    named = {"validation": np.arange(20, 50), "test": np.arange(50, 60)}
    told = {}
    for name in named if which == "both" else [which]:
        mask = np.zeros(100, bool)
        mask[named[name]] = True
        told[name] = {"mask": mask, "positions": named[name], "names": small.obs_names[mask]}[how]
    judged, learned = [], []

    def objective(fitted, data):
        judged.append(set(data.obs_names))
        learned.append(fitted.provenance["cells"])
        return 0.0

    ch.tune(learner, small, schema, trials=1, space=SPACE, objective=objective, rows=rows, **told)
    parts = {"validation": judged[0], "test": judged[-1]}
    assert not parts["validation"] & parts["test"]
    assert set.union(*parts.values()) <= set(small.obs_names[rows])
    for name in told:
        assert parts[name] == set(small.obs_names[named[name]])
    assert set(learned) == {80 - len(parts["validation"]) - len(parts["test"])}


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize(
    "what",
    [None, 0, 0.001, 1, 1.5, -0.1, np.nan, np.float32(1), True, "c", ["nobody"], [], np.arange(20, 100),
     np.arange(10), {"a": 1}, {3}, object(), [[1], [2, 3]], np.zeros(7, bool)],
)  # fmt: skip
def test_odd_shares_are_refused_by_name(cells, schema, name, what):
    with pytest.raises(ch.ChreodeError, match=f"^{name}"):
        ch.tune(
            ch.PPCA(), cells[:100, :30].copy(), schema, trials=1, rows=np.arange(20, 100),
            **{name: what},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "option"), [(ch.SCVI(), "latent_library"), (ch.CFGen(), "peaks")]
)
def test_scores_of_different_things_are_not_compared(cells, schema, model, option):
    own = getattr(model, option)
    with pytest.raises(ch.ConfigError, match=f"another {option} scores something else"):
        ch.tune(model, cells, schema, trials=1, space={option: [own, "bernoulli"]})
    assert option not in default_space(model)


def test_a_model_without_a_score_needs_an_objective(cells, schema, monkeypatch):
    monkeypatch.setattr("chreode.model.run_phases", lambda *_: pytest.fail("a fit began"))
    with pytest.raises(ch.CapabilityError, match="simclr has no score.*Give an objective"):
        ch.tune(ch.SimCLR(), cells, schema, trials=1, progress=False)


def test_a_cell_named_for_both_is_refused(search):
    with pytest.raises(ch.ConfigError, match="share 5 cells"):
        search(distance, 1, validation=np.arange(20), test=np.arange(15, 40))


@pytest.mark.slow
def test_a_mudata(quick):
    with mudata.set_options(pull_on_update=False):
        data = simulate_citeseq(120, 40, 8, seed=0)
    tuned = ch.tune(ch.PPCA(), data, ch.Schema(counts="rna:X"), trials=3)
    assert np.isfinite(tuned.trials["objective"]).all()


# failures, and going on


@pytest.mark.parametrize("best", [True, False])
def test_refits_that_failed_leave_the_verdict_open(search, best):
    calls = []

    def fails_in_the_end(fitted, _):
        calls.append(fitted)
        if len(calls) > 3:
            raise ch.FitError("diverged.")
        return abs(fitted.model.n_latent - (21 if best else 10))

    tuned = search(fails_in_the_end, 2, space={"n_latent": [10, 21]}, seed=1)
    assert "nan" not in tuned.verdict()
    assert tuned.verdict().endswith("failed, the first by diverged.")
    assert "is not known" in tuned.verdict()
    assert not tuned.improved


@pytest.mark.slow
def test_a_trial_that_fails_is_a_row(search):
    def fails_above(fitted, _):
        if fitted.model.n_latent > 15:
            raise ch.FitError("diverged")
        return -fitted.model.n_latent

    tuned = search(fails_above, 20)
    failed = tuned.trials["n_latent"] > 15
    assert failed.any()
    assert (tuned.trials["note"][failed] == "failed: diverged").all()
    assert tuned.trials["objective"].isna().tolist() == failed.tolist()
    assert tuned.best.n_latent == tuned.trials["n_latent"][~failed].max()


def test_a_model_that_cannot_be_judged_as_given_ends_it(search):
    with pytest.raises(
        ch.FitError, match="pca, as given, failed: PCA cannot score; it offers embed"
    ):
        search(
            lambda fitted, cells: -fitted.score(cells).mean(), model=ch.PCA(n_latent=5),
            space={"n_latent": (2, 10)},
        )  # fmt: skip
    with pytest.raises(ch.FitError, match="the objective is nan"):
        search(lambda *_: np.nan)


def test_bad_data_is_refused_before_any_fit(search, cells, schema):
    cells.layers["counts"].data[:] = 0.5
    with pytest.raises(ch.DataError, match="with decimals"):
        ch.tune(ch.PPCA(), cells, schema)
    with pytest.raises(ch.SchemaError, match="there is no 'count'"):
        ch.tune(ch.PPCA(), cells, ch.Schema(counts="layers/count"))


@pytest.mark.slow
def test_it_goes_on_where_ctrl_c_cut_it_off(search, tmp_path, monkeypatch):
    plain, begun, stop_at = candidate._fit_and_judge, [], 5

    def counted(model, *rest):
        begun.append(model.n_latent)
        if len(begun) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return plain(model, *rest)

    whole = search(distance, 8)
    monkeypatch.setattr(candidate, "_fit_and_judge", counted)
    with pytest.raises(KeyboardInterrupt, match="keeps 4 results"):
        search(distance, 8, into=tmp_path)
    stop_at = 0
    again = search(distance, 8, into=tmp_path)
    pd.testing.assert_frame_equal(but_seconds(again), but_seconds(whole))
    assert again.best == whole.best
    n_different = (
        whole.trials["n_latent"].nunique() + 2 * REFITS
    )  # the same options are fitted once
    assert len(begun) == 1 + n_different
    more = search(distance, 12, into=tmp_path)
    pd.testing.assert_frame_equal(but_seconds(more)[:8], but_seconds(whole))
    with pytest.raises(ch.StoreError, match="another run"):
        search(distance, 8, into=tmp_path, seed=1)
    with pytest.raises(ch.StoreError, match="another run .*objective"):
        search(lambda fitted, cells: -distance(fitted, cells), 8, into=tmp_path)


def test_an_objective_that_cannot_be_told_from_others_is_refused_where_results_are_kept(
    search, tmp_path
):
    with (tmp_path / "log").open("w") as file:

        def logged(fitted, cells):
            file.write("judged")
            return distance(fitted, cells)

        with pytest.raises(
            ch.ConfigError, match=r"logged refers to a .*partial.*or leave out into"
        ):
            search(logged, 2, into=tmp_path / "kept")
        assert not (tmp_path / "kept").exists()
        search(logged, 1)


# data on disk


@pytest.mark.slow
def test_data_on_disk_is_the_same_data(cells, schema, tmp_path):
    cells[:200, :60].copy().write_h5ad(tmp_path / "cells.h5ad")
    kinds = [
        ad.read_h5ad(tmp_path / "cells.h5ad"),
        ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
        ch.open(tmp_path / "cells.h5ad"),
    ]
    tuned = [ch.tune(ch.PPCA(), data, schema, trials=2) for data in kinds]
    for other in tuned[1:]:
        assert other.about == tuned[0].about
        pd.testing.assert_frame_equal(but_seconds(other), but_seconds(tuned[0]))
        pd.testing.assert_frame_equal(
            other.refits.drop(columns="seconds"), tuned[0].refits.drop(columns="seconds")
        )


@pytest.mark.slow
def test_a_mudata_on_disk(tmp_path):
    with mudata.set_options(pull_on_update=False):
        data = simulate_citeseq(120, 40, 8, seed=0)
        data.mod["adt"] = data.mod["adt"][:90].copy()
        data.update()
        data.write(tmp_path / "cells.h5mu")
    here, there = (
        ch.tune(ch.PPCA(), d, ch.Schema(counts="rna:X", protein="adt:X"), trials=2)
        for d in (data, ch.open(tmp_path / "cells.h5mu"))
    )
    assert there.about == here.about
    pd.testing.assert_frame_equal(but_seconds(there), but_seconds(here))
