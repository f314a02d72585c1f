"""Baselines are what they say, levels are judged apart, and what blows up is infinitely wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.dynamics import haematopoiesis, networks
from scipy.linalg import expm

import chreode as ch
from chreode.bench.forecasters import BASELINES, CEILING, halves
from chreode.data.series import SeriesBatch
from chreode.errors import ConfigError, DataError, SchemaError, StoreError
from chreode.report import bench_sections, findings

TURN = np.array([[-0.2, 1.5, 0.0], [-1.5, -0.2, 0.0], [0.8, 0.0, -1.0]])
SCHEMA = ch.Schema(expression="X", time="obs/time", trajectory="obs/path")
QUICK = {"match_steps": 10, "piece_steps": 5, "path_steps": 5}


def series(n, seed, times=60):
    rng, t = np.random.default_rng(seed), np.linspace(0, 3, times)
    x = np.stack([[expm(TURN * at) @ start for at in t] for start in rng.normal(size=(n, 3))])
    x = torch.tensor(x, dtype=torch.float32)
    grid = torch.tensor(t, dtype=torch.float32).expand(n, -1)
    names = tuple(f"s{i}" for i in range(n))
    return SeriesBatch(names, grid, x, torch.ones_like(x), grid[:, 0], x[:, 0])


@pytest.fixture(scope="module")
def train():
    return series(12, 0)


def test_persistence_and_the_mean(train):
    new = series(3, 1)
    stays = BASELINES["persistence"](train, 0.1).forecast(new, ())
    assert (stays == new.start[:, None]).all()
    mean = BASELINES["training mean"](train, 0.1).forecast(new, ())
    torch.testing.assert_close(mean[1, 7], train.values.mean((0, 1)))


def test_the_ceiling_tells_each_time_by_the_others_of_its_series(train):
    new = series(2, 1)
    found = halves(train, 0.1).forecast(new, ())
    torch.testing.assert_close(found[:, 5:-5], new.values[:, 5:-5], atol=0.05, rtol=0)
    changed = replace(new, values=new.values.clone())
    changed.values[:, 30] += 100.0
    moved = (halves(train, 0.1).forecast(changed, ()) - found).abs().amax((0, 2))
    assert float(moved[30]) == 0.0
    assert float(moved[31]) > 1.0


def test_of_few_times_what_is_called_a_ceiling_says_that_it_is_none(train):
    assert halves(train, 0.1).note == ""
    assert halves(series(3, 0, times=3), 0.1).note.startswith("no ceiling here: of 3 times")


@pytest.mark.parametrize("times", [2, 3, 4, 6])
@pytest.mark.parametrize("name", ["ridge linear ODE", "lasso on slopes"])
def test_one_series_of_few_times_has_its_linear_rows(name, times):
    """The commonest design, cells of a few days: five folds ended in an error of scikit-learn."""
    one = series(1, 0, times=times)
    found = BASELINES[name](one, 0.05).forecast(one, ())
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, 0], one.start, atol=1e-4, rtol=0)


def test_the_smoother_is_a_weighted_mean_of_the_cells(train):
    new = series(2, 1)
    found = BASELINES["kernel smoother"](train, 0.1).forecast(new, ())
    kernel = np.exp(-0.5 * ((train.times.numpy() - float(new.times[1, 20])) / 0.3) ** 2)
    expected = (kernel[..., None] * train.values.numpy()).sum((0, 1)) / kernel.sum()
    np.testing.assert_allclose(found[1, 20], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ridge linear ODE", "lasso on slopes"])
def test_linear_dynamics_are_found(train, name):
    found, new = BASELINES[name](train, 0.05), series(4, 2)
    assert found.edges is not None
    np.testing.assert_allclose(found.edges, TURN.T, atol=0.15)
    error = (found.forecast(new, ()) - new.values).square().mean()
    assert float(error) < 0.05 * float(new.values.var())
    without = found.forecast(new, (0,))
    assert not without[:, :, 0].any()
    # the second variable then decays by itself
    expected = new.start[:, 1, None] * torch.exp(-0.2 * new.times)
    assert float((without[:, :, 1] - expected).abs().mean()) < 0.1


def test_lasso_leaves_out_what_drives_nothing(train):
    edges = BASELINES["lasso on slopes"](train, 0.05).edges
    assert abs(edges[2, 0]) < 0.05  # the third drives neither
    assert abs(edges[2, 1]) < 0.05


@pytest.fixture(scope="module")
def cells():
    parts = {"train": series(8, 0, 20), "new": series(3, 1, 20), "far": series(3, 2, 20)}
    made = []
    for part, batch in parts.items():
        x = batch.values * (3.0 if part == "far" else 1.0)
        path = np.repeat([f"{part} {name}" for name in batch.names], 20)
        obs = pd.DataFrame({"time": batch.times.flatten().numpy(), "part": part, "path": path})
        obs.index = [f"{part} {i}" for i in range(len(obs))]
        made.append(anndata.AnnData(x.flatten(0, 1).numpy(), obs=obs))
    data = anndata.concat(made)
    data.var_names = ["a", "b", "c"]
    return data


@pytest.fixture(scope="module")
def bench(cells, few_settings):
    part = cells.obs["part"]
    edges = pd.DataFrame({"source": ["a", "b", "a"], "target": ["b", "a", "c"], "sign": [-1, 1, 1]})
    return ch.bench.dynamics(
        cells, SCHEMA, [ch.NeuralODE(**QUICK), ch.PathReg(**QUICK)],
        tests={"new start": part.eq("new").to_numpy(), "far start": part.eq("far").to_numpy()},
        edges=edges, seeds=(0, 1), progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_every_row_is_judged_at_every_level(bench):
    table = bench.table()
    assert list(table.index) == [*BASELINES, "NeuralODE", "PathReg", CEILING]
    assert table["role"].value_counts().to_dict() == {"baseline": 7, "method": 2, "ceiling": 1}
    assert (table.loc["training mean", ["r2, new start", "r2, far start"]] == 0).all()
    forecasts = table.drop(CEILING)
    assert (forecasts["mse, far start"] > forecasts["mse, new start"]).all()
    assert table.loc["ridge linear ODE", "signed"] == 1.0
    assert table["signed"].notna().sum() == 4  # of rows that have edges
    assert set(bench.by_class["class"]) == {
        f"{level} start: {part} s{i}" for level, part in (("new", "new"), ("far", "far")) for i in range(3)
    }  # fmt: skip
    assert (bench.curves.groupby("seed").size() >= 5).all()  # a grid may grow
    assert set(bench.curves["method"]) == {"PathReg"}


@pytest.mark.slow
def test_scores_are_called_as_the_docs_call_them(cells):
    part = cells.obs["part"].eq("new").to_numpy()
    edges = pd.DataFrame({"source": ["a"], "target": ["b"], "sign": [1]})
    found = ch.bench.dynamics(
        cells, SCHEMA, tests={"new start": part}, edges=edges, seeds=(0,), progress=False
    )
    names = found.metrics["name"]
    for shown in (networks.SHOWN, haematopoiesis.SHOWN):
        same = {key: name for key, name in shown.items() if key in names and ", " not in key}
        assert len(same) > 2
        assert names[list(same)].to_dict() == same
    assert names["scaling, new start"] == "scaling, new start"


@pytest.mark.slow
def test_the_report_says_where_baselines_win(bench, tmp_path):
    # who is best of so short fits is not what is tested here: all methods are made worse than all baselines
    scores = bench.scores.copy()
    methods = scores["method"].isin(["NeuralODE", "PathReg"]) & scores["metric"].str.startswith(
        "denoised, "
    )
    scores.loc[methods, ["value", "low", "high"]] += 10.0
    said = findings(replace(bench, scores=scores))
    assert said[0].startswith("new start: no method beats the baselines; ")
    assert any("Edges with their signs" in line for line in said)
    assert "Along the strengths" in [s.heading for s in bench_sections(bench)]
    assert bench.report(tmp_path / "report.html").stat().st_size > 20_000
    loaded = ch.bench.Bench.load(bench.save(tmp_path / "bench.json"))
    pd.testing.assert_frame_equal(loaded.curves, bench.curves, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.by_class, bench.by_class, check_dtype=False)


@pytest.mark.slow
def test_knock_outs_are_judged_by_the_other_genes(cells):
    part = cells.obs["part"]
    gone = cells[part == "new"].copy()
    gone.obs_names = [f"gone {i}" for i in range(gone.n_obs)]
    gone.obs["path"] = "gone " + gone.obs["path"].astype(str)
    gone.obs["part"] = "gone"
    gone.X[:, 0] = 1e6  # of a gene that is absent nobody asks
    data = anndata.concat([cells, gone])
    part = data.obs["part"]
    found = ch.bench.dynamics(
        data, SCHEMA, tests={"far start": part.eq("far").to_numpy()},
        knockouts={"a": part.eq("gone").to_numpy()}, seeds=(0,), progress=False,
    ).table()  # fmt: skip
    assert (found["mse, knock-out"] < 1e3).all()
    with pytest.raises(SchemaError, match="'z' is not among"):
        ch.bench.dynamics(
            data, SCHEMA, tests={}, knockouts={"z": part.eq("gone").to_numpy()}, progress=False
        )


@pytest.mark.slow
def test_what_blows_up_is_infinitely_wrong_and_alone(cells, bench):
    far, part = cells.copy(), cells.obs["part"]
    tests = {f"{name} start": part.eq(name).to_numpy() for name in ("new", "far")}
    far.X[cells.obs["path"].eq("new s1").to_numpy()] *= np.float32(1e38)
    found = ch.bench.dynamics(
        far, SCHEMA, [ch.NeuralODE(**QUICK)], tests=tests, seeds=(0,), progress=False
    )
    assert np.isinf(found.table().loc["NeuralODE", "mse, new start"])
    was, now = (
        b.by_class.query("metric == 'mse' and method == 'NeuralODE' and seed == 0")
        .set_index("class")["value"]
        .reindex(["new start: new s0", "new start: new s2"])
        for b in (bench, found)
    )
    np.testing.assert_allclose(now, was, rtol=1e-5)


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        ({"source": ["z"], "target": ["b"], "sign": [1]}, "'z'"),
        ({"source": ["a"], "target": ["z"], "sign": [1]}, "'z'"),
        ({"source": ["a", "b"], "target": ["b", 7], "sign": [1, 1]}, "'7'"),
        ({"source": ["a"], "target": ["b"], "sign": ["+"]}, "'sign' must be"),
        ({"source": ["a"], "target": ["b"]}, "no column 'sign'"),
    ],
)
def test_true_edges_of_unknown_genes_are_refused(cells, edge, said):
    tests = {"new start": cells.obs["part"].eq("new").to_numpy()}
    with pytest.raises(SchemaError, match=said):
        ch.bench.dynamics(cells, SCHEMA, tests=tests, edges=pd.DataFrame(edge), progress=False)


@pytest.mark.parametrize(("role", "column"), [("trajectory", "path"), ("time", "time")])
def test_cells_without_a_place_in_time_are_refused(cells, role, column):
    lacking = cells.copy()
    lacking.obs.loc["new 0", column] = np.nan
    tests = {"new start": cells.obs["part"].eq("new").to_numpy()}
    with pytest.raises(DataError, match=role):
        ch.bench.dynamics(lacking, SCHEMA, tests=tests, progress=False)


def test_what_cannot_be_compared_is_refused(cells):
    with pytest.raises(ConfigError, match="forecasts no paths"):
        ch.bench.dynamics(cells, SCHEMA, [ch.PCA()], tests={})
    with pytest.raises(SchemaError, match="needs time"):
        ch.bench.dynamics(cells, ch.Schema(expression="X"), tests={})
    for tests, said in (({"a": []}, "no cells of 'a'"), ({"a": cells.obs_names}, "to learn from")):
        with pytest.raises(DataError, match=said):
            ch.bench.dynamics(cells, SCHEMA, tests=tests)
    for given in ("tests", "knockouts", "validation"):
        cells_of = [1, 1] if given == "validation" else {"a": [1, 1]}
        with pytest.raises(SchemaError, match=rf"^{given}.*named twice"):
            ch.bench.dynamics(cells, SCHEMA, **{"tests": {"b": [2]}, given: cells_of})


@pytest.mark.slow
def test_forecasts_are_not_shown_what_they_forecast(cells, monkeypatch):
    from chreode.bench import forecasters
    from chreode.models.neuralode import Dynamics

    seen, forecast = [], Dynamics.forecast

    def watched(self, batch, absent=()):
        seen.append(batch.values)
        return forecast(self, batch, absent)

    monkeypatch.setattr(Dynamics, "forecast", watched)
    cheat = forecasters.Forecaster(lambda batch, _: batch.values)
    monkeypatch.setitem(BASELINES, "cheat", lambda *_: cheat)
    part = cells.obs["part"]
    found = ch.bench.dynamics(
        cells, SCHEMA, [ch.NeuralODE(**QUICK)], tests={"new start": part.eq("new").to_numpy()},
        seeds=(0,), progress=False,
    ).table()  # fmt: skip
    assert seen
    assert all(torch.isnan(values).all() for values in seen)
    assert not np.isfinite(found.loc["cheat", "mse, new start"])
    assert np.isfinite(found.drop("cheat")["mse, new start"]).all()


@pytest.mark.slow
def test_edges_are_judged_among_those_that_could_be(cells, tmp_path):
    part = cells.obs["part"]
    edges = pd.DataFrame({"source": ["a", "b"], "target": ["b", "a"], "sign": [-1, 1]})
    judge = partial(
        ch.bench.dynamics, cells, SCHEMA, tests={"new start": part.eq("new").to_numpy()}, edges=edges,
        seeds=(0,), progress=False, into=tmp_path / "kept",
    )  # fmt: skip
    found = judge(regulators=["a"], targets=["b", "c"]).table()
    # one of two pairs is an edge: chance has half, and lift says so
    assert set(found["auprc"].dropna()) <= {0.5, 1.0}
    assert (found["lift"].dropna() == found["auprc"].dropna() / 0.5).all()
    with pytest.raises(SchemaError, match="regulators: there is no gene 'q' in"):
        judge(regulators=["a", "q"])
    # what was kept under other pairs is no result under these
    with pytest.raises(StoreError):
        judge(targets=["a", "b"])
