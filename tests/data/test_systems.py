"""Simulated dynamics are their equations, observed as told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from chreode.data.systems import GeneNetwork, Sampling, simulate_system
from chreode.errors import ConfigError

EXACT = Sampling(n_trajectories=3, n_times=200, duration=4.0, noise=0.0)


def of_path(cells, name):
    mine = cells[cells.obs["trajectory"] == name]
    return mine.obs["time"].to_numpy(), np.array(mine.layers["true_state"], dtype=float)


@pytest.mark.parametrize("name", ["predators", "lorenz"])
def test_slopes_are_the_equations(name):
    time, x = of_path(simulate_system(name, EXACT, seed=3), "path_1")
    slope = np.gradient(x, time, axis=0)[60:100]
    x = x[60:100]
    if name == "predators":
        expected = np.stack(
            [1.3 * x[:, 0] - 0.9 * x[:, 0] * x[:, 1], 0.8 * x[:, 0] * x[:, 1] - 1.8 * x[:, 1]], 1
        )
    else:
        a, b, c = x.T
        expected = np.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)
    assert np.abs(slope - expected).mean() < 0.02 * np.abs(expected).mean()


def test_oscillators_are_of_second_order():
    time, x = of_path(simulate_system("damped", EXACT, seed=1), "path_0")
    spring = np.array([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])
    whole = np.block([[np.zeros((3, 3)), np.eye(3)], [-4 * spring, -0.3 * np.eye(3)]])
    start = np.concatenate([x[0], np.zeros(3)])
    expected = np.stack([(expm(whole * t) @ start)[:3] for t in time])
    np.testing.assert_allclose(x, expected, atol=1e-4)


def test_a_gene_moves_by_what_drives_it():
    network = GeneNetwork.random(10, seed=2)
    x = np.random.default_rng(0).uniform(0, 1, 10)
    for source in range(10):
        more = x.copy()
        more[source] += 1e-5
        effect = (network.velocity(more) - network.velocity(x)) / 1e-5
        effect[source] += network.decay[source]  # decay is no edge
        driven = np.abs(effect) > 1e-6
        np.testing.assert_array_equal(driven, network.signs[source] != 0)
        np.testing.assert_array_equal(np.sign(effect[driven]), network.signs[source][driven])


def test_what_is_knocked_out_is_absent_and_the_start_is_the_same():
    network, how = GeneNetwork.random(10), Sampling(n_trajectories=2, n_times=5, noise=0.0)
    whole, without = (network.simulate(how, knockout=k, seed=4) for k in ([], ["gene_2"]))
    assert not without.layers["true_state"][:, 2].any()
    others = np.setdiff1d(np.arange(10), [2])
    np.testing.assert_array_equal(whole.X[0, others], without.X[0, others])
    with pytest.raises(ConfigError, match="Did you mean 'gene_2'"):
        network.simulate(how, knockout=["gen_2"])


def test_paths_are_observed_as_told():
    how = Sampling(n_trajectories=4, n_times=50, irregular=True, noise=0.3, missing=0.4)
    cells = simulate_system("predators", how, seed=0)
    sizes = cells.obs.groupby("trajectory", observed=True).size()
    assert 60 < sizes.sum() < 160
    assert (cells.obs.groupby("trajectory", observed=True)["time"].min() == 0).all()
    assert cells.obs.groupby("trajectory", observed=True)["time"].is_monotonic_increasing.all()
    gaps = cells.obs.loc[cells.obs["trajectory"] == "path_0", "time"].diff().dropna()
    assert gaps.std() > 0.5 * gaps.mean()
    noise = (cells.X - cells.layers["true_state"]).std(0)
    np.testing.assert_allclose(noise, 0.3 * cells.layers["true_state"].std(0), rtol=0.25)
    again = simulate_system("predators", how, seed=0)
    np.testing.assert_array_equal(cells.X, again.X)
    assert not np.array_equal(cells.X[:20], simulate_system("predators", how, seed=1).X[:20])


def test_counts_are_whole_and_sparse():
    cells = GeneNetwork.random(20).simulate(Sampling(n_trajectories=3, n_times=10), counts=15.0)
    counts = cells.layers["counts"]
    assert (counts == counts.round()).all()
    assert counts.sum(1).mean() == pytest.approx(15, abs=2)
    assert (counts == 0).mean() > 0.3
    np.testing.assert_allclose(np.expm1(cells.X).sum(1), 1e4, rtol=1e-3)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"n_times": 1}, "two times"),
        ({"noise": -0.1}, "noise"),
        ({"missing": 1.0}, "missing"),
        ({"duration": 0.0}, "above 0"),
    ],
)
def test_nonsense_is_refused(bad, said):
    with pytest.raises(ConfigError, match=said):
        Sampling(**bad)


def test_unknown_systems_and_small_networks_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'lorenz'"):
        simulate_system("lorentz")
    with pytest.raises(ConfigError, match="eight"):
        GeneNetwork.random(5)
