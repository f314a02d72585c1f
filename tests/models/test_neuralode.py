"""Neural ODEs: they find known dynamics, forecast, forget what is knocked out, and name what drives."""

from __future__ import annotations

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data import read
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.check import findings
from chreode.data.horizon import ForecastWarning
from chreode.data.series_source import SeriesSource
from chreode.data.systems import GeneNetwork, Sampling, simulate_system
from chreode.errors import ArgumentError, BlowUpError, ConfigError, DataError, SchemaError
from chreode.metrics.dynamics import edge_precision
from chreode.schema import Spec

SCHEMA = ch.Schema(expression="X", time="obs/time", trajectory="obs/trajectory")
FEW = {"match_steps": 40, "piece_steps": 20, "path_steps": 20}
#: Fits of a few steps wander; how far is no part of what is tested.
WANDERS = pytest.mark.filterwarnings("ignore:.*are held at its end")
SPARSE = ("CNODE", "L1", "L0", "GroupLasso", "LassoNet", "MagnitudePruning", "PathReg")


@pytest.fixture(scope="module")
def network():
    return GeneNetwork.random(12)


@pytest.fixture(scope="module")
def paths(network):
    return network.simulate(Sampling(n_trajectories=12, n_times=20), seed=1)


@pytest.fixture(scope="module")
def oscillator():
    """dx/dt = 2y − 0.1x, dy/dt = −2x − 0.1y from random starts."""
    rng, times = np.random.default_rng(0), np.linspace(0, 3, 40)
    turn = np.array([[-0.1, 2.0], [-2.0, -0.1]])
    rows = []
    for k in range(12):
        start = rng.normal(size=2)
        states = [torch.matrix_exp(torch.from_numpy(turn * t)).numpy() @ start for t in times]
        rows.append((np.array(states), k))
    obs = pd.DataFrame(
        {"time": np.tile(times, 12), "trajectory": np.repeat([f"c{k}" for _, k in rows], 40)}
    )
    obs.index = obs.index.astype(str)
    x = np.concatenate([s for s, _ in rows])
    return anndata.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=["x", "y"]))


@pytest.mark.slow
def test_a_known_velocity_is_found(oscillator):
    model = ch.NeuralODE(hidden=(32,), match_steps=400, piece_steps=100, path_steps=40, jitter=0.0)
    fitted = model.fit(oscillator, SCHEMA, seed=0, progress=False)
    cells = oscillator[oscillator.obs["time"] == 0].copy()
    found = fitted.trajectory(cells, [0.0, 1.0, 2.0]).X.reshape(12, 3, 2)
    turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    for t in range(3):
        expected = cells.X @ torch.matrix_exp(turn * t).numpy().T
        assert np.abs(found[:, t] - expected).mean() < 0.12
    back = fitted.trajectory(oscillator[oscillator.obs["time"] == 3].copy(), [0.0]).X
    assert np.abs(back - cells.X).mean() < 0.25  # noise would grow on the way back
    edges = fitted.rank().set_index(["source", "target"])["weight"]
    assert edges["y", "x"] > 3  # 2 in three units of time
    assert edges["x", "y"] < -3


@pytest.mark.slow
@WANDERS
@pytest.mark.parametrize("name", [*SPARSE, "NeuralODE", "SecondOrderNODE"])
def test_every_model_answers(name, paths, tmp_path):
    fitted = getattr(ch, name)(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    assert fitted.verbs == ["embed", "predict", "trajectory", "rank"]
    found = fitted.trajectory(paths[:3].copy(), [2.0, 0.0, 0.0])
    assert found.shape == (9, 12)
    assert found.obs["time"].tolist() == [2.0, 0.0, 0.0] * 3
    np.testing.assert_array_equal(found.X[1], found.X[2])  # asked twice
    loaded = ch.load(fitted.save(tmp_path / "model"))
    np.testing.assert_array_equal(
        loaded.trajectory(start="path_0").X, fitted.trajectory(start="path_0").X
    )
    assert fitted.rank().columns.tolist() == ["source", "target", "weight", "confidence"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PathReg", "GroupLasso", "LassoNet"])
def test_a_strong_penalty_leaves_no_edge(name, paths):
    model = getattr(ch, name)(**{**FEW, "match_steps": 300}, strength=10.0, lr=0.02)
    fitted = model.fit(paths, SCHEMA, seed=0, progress=False)
    assert len(fitted.rank()) == 0


@pytest.mark.slow
def test_a_penalty_closes_paths_and_not_only_shortens_them(paths):
    dense, sparse = (
        ch.PathReg(**{**FEW, "match_steps": 200}, strength=s, lr=0.02).fit(
            paths, SCHEMA, seed=0, progress=False
        )
        for s in (0.0, 0.02)
    )
    assert len(dense.rank()) == 132
    assert 10 < len(sparse.rank()) < 100


@pytest.mark.slow
def test_edges_of_a_network_are_better_than_chance(network, paths):
    fitted = ch.PathReg(match_steps=300, piece_steps=100, path_steps=40, strength=0.03).fit(
        paths, SCHEMA, seed=0, progress=False
    )
    weights = np.zeros((12, 12))
    at = {name: i for i, name in enumerate(network.names)}
    for row in fitted.rank().itertuples():
        weights[at[row.source], at[row.target]] = row.weight
    assert edge_precision(weights, network.signs)["signed_lift"] > 3


@pytest.mark.slow
@WANDERS
def test_what_is_knocked_out_is_gone_and_stays_so(paths):
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    to = {"knockout": "gene_1+gene_3"}
    found = fitted.trajectory(start="path_2", to=to)
    np.testing.assert_allclose(found.X[:, [1, 3]], 0, atol=1e-6)
    assert np.ptp(found.X[:, 0]) > 0.01
    moved = fitted.predict(paths[:4].copy(), to={**to, "time": 2.0})
    np.testing.assert_allclose(moved.X[:, [1, 3]], 0, atol=1e-6)
    assert (moved.obs["time"] == 2.0).all()
    at_end = fitted.predict(paths[:4].copy(), to=to)
    last = fitted.trajectory(paths[:4].copy(), [5.0], to=to)
    np.testing.assert_allclose(at_end.X, last.X, atol=1e-5)


@pytest.mark.slow
def test_confidence_among_thousands_of_genes():
    n = 4100
    spec = Spec(("expression", "time"), {"expression": tuple(map(str, range(n)))}, {}, {})
    module = ch.NeuralODE(hidden=(1,)).build(spec)
    edges = torch.zeros(n, n)
    edges[0, 1], edges[2, 3] = 1.0, 1e-3
    known = SimpleNamespace(edges=lambda: edges, state_dict=dict)
    chance = SimpleNamespace(edges=lambda: torch.full((n, n), 1e-2))
    module.edges = known.edges
    module.members.append(torch.nn.Identity())
    module.keep_refits([known], [chance])
    assert module.confidence[0, 1] == 1
    assert module.confidence.sum() == 1


@pytest.mark.slow
def test_confidence_comes_from_refits(paths):
    few = {"match_steps": 60, "piece_steps": 20, "path_steps": 0}
    fitted = ch.NeuralODE(**few, n_refits=3).fit(paths, SCHEMA, seed=0, progress=False)
    confidence = fitted.rank()["confidence"]
    assert set((3 * confidence).round(4)) <= {0.0, 1.0, 2.0, 3.0}
    assert confidence.nunique() > 1
    assert confidence.iloc[:10].mean() > confidence.iloc[-50:].mean()
    assert ch.NeuralODE(**few).fit(paths, SCHEMA, progress=False).rank()["confidence"].isna().all()


@pytest.mark.slow
def test_the_same_seed_is_the_same_fit(paths):
    model = ch.PathReg(match_steps=10, piece_steps=5, path_steps=5, n_refits=1)
    a, b = (
        model.fit(paths, SCHEMA, seed=3, progress=False).trajectory(start="path_0").X
        for _ in range(2)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_whole_trajectories_are_held_out(paths):
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    assert fitted.provenance["validation_cells"] == 20
    assert fitted.provenance["cells"] == 220


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_no_trajectory_is_learned_from_and_held_out(paths, n):
    """Of one trajectory cells are, spread over its time."""
    some = paths[paths.obs["trajectory"].isin([f"path_{i}" for i in range(n)])].copy()
    model, data = ch.PathReg(), read.read(some)
    spec = learn_spec(Cells(data, SCHEMA), ["expression", "time", "trajectory"], np.arange(20 * n))
    source = open_source(Cells(data, SCHEMA), spec, spec.roles, {})
    split = model.split(source, np.arange(20 * n), 0.1, Rng(0))
    of, time = some.obs["trajectory"].to_numpy(), some.obs["time"].to_numpy()
    shared = set(of[split.train]) & set(of[split.validation])
    assert len(shared) == (n == 1)
    assert len(set(of[split.validation])) == 1
    assert np.ptp(time[split.validation]) >= 2.0  # of 5
    few = model.split(source, np.arange(9), 0.1, Rng(0))
    assert len(few.validation) == 0  # one cell


@pytest.mark.slow
@WANDERS
def test_series_that_were_held_out_have_a_start_too(paths):
    """They once began at 0, at the mean time."""
    paths = paths[paths.obs["trajectory"].isin([f"path_{i}" for i in range(3)])].copy()
    model = ch.NeuralODE(match_steps=2, piece_steps=0, path_steps=0, hidden=(8,))
    fitted = model.fit(paths, SCHEMA, validation=0.5, progress=False)
    first = paths.obs.groupby("trajectory", observed=True)["time"].idxmin()
    for name, cell in first.items():
        found = fitted.trajectory(start=name, times=[0.0], progress=False)
        assert found.obs["start_time"].tolist() == [0.0]
        np.testing.assert_allclose(found.X[0], paths[cell].X.ravel(), atol=0.15)


@pytest.mark.slow
@WANDERS
@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(("NeuralODE", n) for n in (2, 3, 6, 9)),
        ("SecondOrderNODE", 3),
        pytest.param("PathReg", 4, marks=pytest.mark.slow),
    ],
)
def test_courses_of_few_times_are_learned(name, n):
    """One lineage of cells, a straight line of two genes in time: the commonest design."""
    rng, time = np.random.default_rng(0), np.repeat(np.arange(n), 20) / (n - 1)
    x = np.stack([time, 1 - time, 0 * time], 1) + 0.05 * rng.normal(size=(20 * n, 3))
    obs = pd.DataFrame({"time": time}, index=[str(i) for i in range(20 * n)])
    data = anndata.AnnData(x.astype(np.float32), obs=obs)
    data.var_names = ["up", "down", "still"]
    schema = ch.Schema(expression="X", time="obs/time")
    sparse = {"strength": 1e-3, "n_refits": 1} if name == "PathReg" else {}
    model = getattr(ch, name)(
        n_latent=3, match_steps=60, piece_steps=40, path_steps=20, lr=0.02, **sparse
    )
    fitted = model.fit(data, schema, seed=0, progress=False)
    end = fitted.trajectory(data[:20].copy(), times=[1.0]).X.mean(0)
    np.testing.assert_allclose(end, [1, 0, 0], atol=0.25)
    assert fitted.embed(data).shape == (20 * n, 3)


def test_series_that_were_named_are_never_learned_from(paths):
    """Those held out at random are, once slopes have been matched."""
    spared = paths.obs["trajectory"].isin(sorted(set(paths.obs["trajectory"]))[:2]).to_numpy()
    changed = paths.copy()
    changed.X[spared] *= 3
    model = ch.NeuralODE(match_steps=5, piece_steps=5, path_steps=0)
    for validation, same in ((spared, True), (0.2, False)):
        rows = [
            model.fit(cells, SCHEMA, seed=0, validation=validation, progress=False)
            for cells in (paths, changed)
        ]
        weights = [torch.cat([w.flatten() for w in r.module.field.weights]) for r in rows]
        assert torch.equal(*weights) == same
        kept = rows[0].history.query("phase == 'pieces'")
        assert ("validation_fit" in kept.dropna(axis=1, how="all")) == same


@pytest.mark.slow
def test_cells_in_any_order_are_the_same_series(paths):
    order = np.random.default_rng(0).permutation(paths.n_obs)
    a = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, validation=0.0, progress=False)
    b = ch.NeuralODE(**FEW).fit(paths[order].copy(), SCHEMA, seed=0, validation=0.0, progress=False)
    np.testing.assert_allclose(
        a.trajectory(start="path_1").X, b.trajectory(start="path_1").X, atol=1e-3
    )


@pytest.mark.slow
def test_a_blow_up_names_the_series_and_keeps_its_last_good_state(paths):
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    with torch.no_grad():
        for w in fitted.module.field.weights:
            w.mul_(1e6)
    with pytest.raises(BlowUpError, match="the path of cell 0") as caught:
        fitted.trajectory(paths[:1].copy(), [5.0])
    assert 0 <= caught.value.time < 5
    assert np.isfinite(np.asarray(caught.value.state)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        (
            {"to": {"knockout": "gene_77"}},
            SchemaError,
            "not among the 12 genes of the fit. The fit can say",
        ),
        ({"to": {"knockout": "GENE_7"}}, SchemaError, "Did you mean 'gene_7'"),
        ({"times": []}, ConfigError, "times"),
        ({"times": [float("nan")]}, ConfigError, "times"),
        ({"start": "path_0"}, ConfigError, "begins at cells"),
    ],
)
def test_bad_questions_are_refused(paths, how, error, said):
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    with pytest.raises(error, match=said):
        fitted.trajectory(paths[:2].copy(), **how)


def test_bad_series_are_refused(paths):
    one = paths[paths.obs["time"] == 0].copy()
    with pytest.raises(DataError, match="the same time"):
        ch.NeuralODE(**FEW).fit(one, SCHEMA, progress=False)
    lacking = paths.copy()
    lacking.obs.loc[lacking.obs_names[3], "time"] = np.nan
    with pytest.raises(DataError, match="time"):
        ch.NeuralODE(**FEW).fit(lacking, SCHEMA, progress=False)
    with pytest.raises(SchemaError, match="time"):
        ch.NeuralODE(**FEW).fit(paths, ch.Schema(expression="X"), progress=False)


@pytest.mark.slow
def test_another_set_of_genes_is_refused_or_matched_by_name(paths):
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)
    turned = paths[:5, ::-1].copy()
    np.testing.assert_allclose(
        fitted.trajectory(turned, [1.0]).X, fitted.trajectory(paths[:5].copy(), [1.0]).X, atol=1e-6
    )
    other = paths[:5].copy()
    other.var_names = [f"other_{i}" for i in range(12)]
    with pytest.raises(DataError, match="No feature is shared"):
        fitted.trajectory(other, [1.0])


@pytest.fixture(scope="module")
def course(paths):
    return ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, progress=False)


@pytest.mark.slow
@WANDERS
@pytest.mark.parametrize("times", [[8.0], [-3.0, 1.0]])
def test_times_beyond_those_of_the_fit_are_told(course, paths, times):
    """Observed from 0 to 5."""
    for ask in (
        lambda: course.trajectory(start="path_0", times=times),
        lambda: course.trajectory(paths[:3].copy(), times=times),
        lambda: course.predict(paths[:3].copy(), to={"time": times[0]}),
        lambda: course.embed(paths[:3].copy(), to={"time": times[0]}),
    ):
        with pytest.warns(ForecastWarning, match="from time .*the fit have times from 0 to 5"):
            ask()


@pytest.mark.parametrize("times", [[10.5], [-20.0, 1.0]])
def test_times_far_beyond_are_refused(course, paths, times):
    for ask in (
        lambda: course.trajectory(start="path_0", times=times),
        lambda: course.trajectory(paths[:3].copy(), times=times),
        lambda: course.predict(paths[:3].copy(), to={"time": times[0]}),
    ):
        with pytest.raises(ConfigError, match="from time .*the fit have times from 0 to 5"):
            ask()
    late = paths[:3].copy()
    late.obs["time"] = times[0]
    with pytest.raises(ConfigError, match="from time .*the fit have times from 0 to 5"):
        course.trajectory(late, times=[1.0])


@pytest.mark.parametrize(
    ("times", "got"),
    [(["day0"], "a list of text"), ("day0", "text"), ([None], "a list of None"), (1.0, "a number")],
)
def test_times_that_are_no_numbers_are_told_in_words(course, times, got):
    with pytest.raises(ArgumentError, match=f"expected a list of numbers or None, got {got}"):
        course.trajectory(start="path_0", times=times)


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "zero"), [(1.0, 0.0), (86400.0, 1_700_000_000.0)])
def test_the_span_that_is_told_is_that_of_the_cells_in_the_users_unit(network, unit, zero):
    """Of 150 times in a row two each are averaged: the means begin later and end earlier."""
    cells = network.simulate(Sampling(n_trajectories=2, n_times=150), seed=1)
    cells.obs["time"] = cells.obs["time"] * unit + zero
    first, last = cells.obs["time"].min(), cells.obs["time"].max()
    fitted = ch.NeuralODE(**FEW).fit(cells, SCHEMA, seed=0, validation=0, progress=False)
    said = f"the fit have times from {first:.0f} to {last:.0f}: 0.4 times"
    with pytest.warns(ForecastWarning, match=said):
        fitted.trajectory(cells[:1].copy(), [last + 0.4 * (last - first)])


@pytest.fixture
def steep(paths):
    """A field that carries every gene upwards, some 40 of its standard deviations in the time."""
    fitted = ch.NeuralODE(**FEW).fit(paths, SCHEMA, seed=0, validation=0.0, progress=False)
    with torch.no_grad():
        fitted.module.field.weights[-1].zero_()
        fitted.module.field.biases[-1].fill_(40.0)
    return fitted


@pytest.mark.slow
def test_values_stay_in_the_range_of_their_gene_and_that_is_told(steep, paths):
    with pytest.warns(ForecastWarning, match="held at its end"):
        found = steep.trajectory(paths[paths.obs["time"] == 0].copy(), times=[5.0]).X
    np.testing.assert_allclose(found, np.tile(paths.X.max(0), (12, 1)), rtol=1e-6)
    far = paths[:1].copy()
    far.X[:] = 100.5  # a cell of its own begins where it is
    with pytest.warns(ForecastWarning, match="held at its end"):
        np.testing.assert_allclose(steep.trajectory(far, times=[5.0]).X, 100.5, rtol=1e-6)
    with pytest.warns(ForecastWarning, match="held at its end"):
        moved = steep.predict(paths[:4].copy(), to={"time": 5.0}).X
    np.testing.assert_allclose(moved, np.tile(paths.X.max(0), (4, 1)), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*holds values up to:UserWarning")
def test_of_several_paths_those_that_blow_up_are_lost(course, paths):
    far = paths[:3].copy()
    far.X[1] = np.float32(3e38)
    with pytest.warns(ForecastWarning, match="The solver failed in 1 of 3 paths"):
        found = course.trajectory(far, times=[4.0]).X
    assert np.isnan(found[1]).all()
    alone = course.trajectory(paths[[0, 2]].copy(), times=[4.0]).X
    np.testing.assert_allclose(found[[0, 2]], alone, rtol=1e-5)


@pytest.mark.slow
def test_entries_not_measured_are_left_out():
    data = simulate_system("predators", Sampling(n_trajectories=10, n_times=30), seed=0)
    data.X[np.random.default_rng(0).random(data.X.shape) < 0.3] = np.nan
    fitted = ch.NeuralODE(**FEW).fit(data, SCHEMA, progress=False)
    assert fitted.history["train_fit"].notna().all()


@pytest.fixture(scope="module")
def fork():
    """Cells of dx/dt = 4 (x − x³), dy/dt = −y: they part to x = −1 and 1, and their mean stays at 0."""
    rng, rows, times = np.random.default_rng(0), [], np.linspace(0, 1, 5)
    for t in times:
        x = 0.4 * rng.normal(size=150)  # other cells at every time
        x = x * np.exp(4 * t) / np.sqrt(1 + x**2 * (np.exp(8 * t) - 1))
        rows.append(np.stack([x, np.exp(-t) * (1 + 0.1 * rng.normal(size=150))], 1))
    obs = pd.DataFrame({"time": np.repeat(times, 150)})
    obs.index = obs.index.astype(str)
    x = np.concatenate(rows).astype(np.float32)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=["x", "y"]))


@pytest.mark.slow
@WANDERS
def test_populations_part_where_their_means_do_not(fork):
    schema = ch.Schema(expression="X", time="obs/time")
    few = {"hidden": (32,), "match_steps": 100, "piece_steps": 40, "path_steps": 0}
    first = fork[fork.obs["time"] == 0].copy()
    found = {}
    for steps in (0, 200):
        fitted = ch.NeuralODE(**few, population_steps=steps, lr=3e-2).fit(
            fork, schema, seed=0, progress=False
        )
        found[steps] = fitted.trajectory(first, [0.5, 1.0]).X[:, 0].reshape(-1, 2)
    truth = [np.abs(fork.X[fork.obs["time"] == t, 0]).mean() for t in (0.5, 1.0)]
    assert (np.abs(found[0]).mean(0) < 0.6).all()
    np.testing.assert_allclose(np.abs(found[200]).mean(0), truth, atol=0.1)
    clear = np.abs(first.X[:, 0]) > 0.1
    assert (np.sign(found[200][:, 1]) == np.sign(first.X[:, 0]))[clear].mean() > 0.95


def test_every_step_draws_other_cells_of_a_population(fork, monkeypatch):
    drawn = []
    own = SeriesSource._draw_populations
    monkeypatch.setattr(
        SeriesSource,
        "_draw_populations",
        lambda self, rows, rng: drawn.append(own(self, rows, rng)) or drawn[-1],
    )
    schema = ch.Schema(expression="X", time="obs/time")
    ch.NeuralODE(**FEW, population_steps=3).fit(fork, schema, seed=0, progress=False)
    assert len({float(cells.sum()) for cells, _ in drawn}) == 3


def test_populations_need_every_entry(fork):
    holes = fork.copy()
    holes.X[3, 0] = np.nan
    schema = ch.Schema(expression="X", time="obs/time")
    with pytest.raises(DataError, match="population_steps=0"):
        ch.NeuralODE(**FEW, population_steps=2).fit(holes, schema, progress=False)


@WANDERS
def test_snapshots_are_said_to_be_learned_as_one_mean_course(fork, paths):
    """By `check` and the fit; not of populations, nor of trajectories, nor of cells of all times."""
    schema = ch.Schema(expression="X", time="obs/time")
    said = "one mean course is learned"
    few = {"match_steps": 2, "piece_steps": 0, "path_steps": 0, "hidden": (8,)}

    def noted(cells, schema, **more):
        found = ch.NeuralODE(**few, **more).fit(cells, schema, progress=False)
        return sum(said in note for note in found.provenance["notes"])

    own = fork.copy()
    own.obs["time"] += np.linspace(0, 1e-2, own.n_obs)
    assert noted(fork, schema) == 1
    assert noted(fork, schema, population_steps=2) == 0
    assert noted(own, schema) == 0
    assert noted(paths, SCHEMA) == 0
    for cells, roles, n in ((fork, schema, 1), (own, schema, 0), (paths, SCHEMA, 0)):
        assert sum(said in f.text for f in findings(Cells(cells, roles))) == n
