"""Series of cells: averages, gaps, smoothing, pieces, resampling."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import chreode as ch
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.series_source import SeriesSource
from chreode.errors import DataError

SCHEMA = ch.Schema(expression="X", time="obs/time", trajectory="obs/path")


def cells(table, x):
    obs = pd.DataFrame(table, columns=["path", "time"])
    obs.index = obs.index.astype(str)
    return anndata.AnnData(np.asarray(x, np.float32), obs=obs)


def source_of(data, n_times=100, bandwidth=0.1, **how):
    rows = np.arange(data.n_obs)
    roles = ["expression", "time", "trajectory"]
    spec = learn_spec(Cells(data, SCHEMA), roles, rows)
    spec = replace(spec, numbers={})  # so that time is told in the units of the test
    source = open_source(Cells(data, SCHEMA), spec, roles, {})
    return SeriesSource.of(source, known=rows, n_times=n_times, bandwidth=bandwidth, **how)


def test_cells_are_sorted_and_those_of_one_time_are_averaged():
    data = cells(
        [("b", 2.0), ("a", 1.0), ("a", 0.0), ("a", 1.0), ("b", 1.0)], [[5], [1], [7], [3], [4]]
    )
    batch = source_of(data).series(np.arange(5))
    assert batch.names == ("a", "b")
    assert batch.times.tolist() == [[0, 1], [1, 2]]
    assert batch.values[..., 0].tolist() == [[7, 2], [4, 5]]
    assert batch.weight[..., 0].tolist() == [[1, 2], [1, 1]]


def test_many_times_become_as_many_groups_of_equal_size():
    rng = np.random.default_rng(0)
    time, x = rng.random(1000), rng.normal(size=(1000, 3))
    batch = source_of(cells([("a", t) for t in time], x), n_times=50).series(np.arange(1000))
    assert batch.times.shape == (1, 50)
    assert (batch.weight == 20).all()
    groups = np.array_split(np.argsort(time), 50)
    np.testing.assert_allclose(batch.values[0], [x[g].mean(0) for g in groups], atol=1e-6)
    np.testing.assert_allclose(batch.times[0], [time[g].mean() for g in groups], rtol=1e-6)


def test_squared_errors_of_means_are_those_of_cells_up_to_a_constant():
    rng = np.random.default_rng(0)
    time, x = rng.integers(4, size=60) / 4, rng.normal(size=(60, 2))
    batch = source_of(cells([("a", t) for t in time], x)).series(np.arange(60))
    gaps = []
    for guess in rng.normal(size=(2, 4, 2)):
        of_cells = ((x - guess[(time * 4).astype(int)]) ** 2).sum()
        of_means = (batch.weight[0].numpy() * (batch.values[0].numpy() - guess) ** 2).sum()
        gaps.append(of_cells - of_means)
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-5)


def test_what_was_not_measured_has_no_weight():
    data = cells([("a", 0.0), ("a", 1.0), ("a", 1.0)], [[1, 2], [np.nan, 4], [3, np.nan]])
    batch = source_of(data).series(np.arange(3))
    assert batch.values[0].tolist() == [[1, 2], [3, 4]]
    assert batch.weight[0].tolist() == [[1, 1], [1, 1]]


def test_a_line_is_smoothed_to_itself_and_its_slope():
    time = np.sort(np.random.default_rng(0).random(400))
    x = np.stack([2 * time - 1, 0 * time + 3], 1)
    batch = source_of(cells([("a", t) for t in time], x), n_times=500).series(np.arange(400))
    states, slopes = batch.smoothed(batch.times, 0.05)
    inside = (batch.times[0] > 0.1) & (batch.times[0] < 0.9)
    torch.testing.assert_close(states[0][inside], batch.values[0][inside], atol=5e-3, rtol=0)
    # drawn to 0 by the ridge of a twentieth
    torch.testing.assert_close(
        slopes[0][inside], torch.tensor([2.0, 0.0]).expand(int(inside.sum()), -1), atol=0.2, rtol=0
    )


def test_far_from_every_cell_the_nearest_ones_decide():
    batch = source_of(cells([("a", 0.0), ("a", 1.0)], [[2], [6]])).series(np.arange(2))
    states, slopes = batch.smoothed(torch.tensor([[0.0, 500.0]]), 1e-3)
    torch.testing.assert_close(states[0, :, 0], torch.tensor([2.0, 6.0]), atol=0.3, rtol=0)
    assert slopes.isfinite().all()


TIMES = {
    "three": [0, 1, 2],
    "six": np.arange(6),
    "nine": np.arange(9),
    "uneven": [0, 1, 2, 4, 8, 24],
    "pairs": [0, 0.001, 5, 5.001, 10, 10.001],
    "a late one": [0, 1, 2, 3, 4, 40],
    "forty": np.linspace(0, 1, 40),
}


@pytest.mark.parametrize("name", TIMES)
def test_slopes_are_seen_however_far_apart_times_are(name):
    """Of a straight line they are its slope, but for the ridge."""
    time = np.asarray(TIMES[name], float)
    share = (time - time.min()) / np.ptp(time)
    source = source_of(cells([("a", t) for t in time], (2 * share - 1)[:, None]))
    length = float(np.ptp(source.scaled("time")))
    batch = source.series(np.arange(len(time)))
    states, slopes = batch.smoothed(batch.times, 0.03 * length)
    found = slopes[0, :, 0].numpy() * length
    assert (found > 0.75 * 2).all()
    assert (found < 1.05 * 2).all()
    np.testing.assert_allclose(states[0, :, 0], 2 * share - 1, atol=0.1)


def test_where_times_are_dense_the_bandwidth_is_what_was_asked_for():
    batch = source_of(cells([("a", t) for t in np.linspace(0, 1, 100)], np.zeros((100, 1)))).series(
        np.arange(100)
    )
    assert bool((batch._widths(batch.times, 0.1) == 0.1).all())


@pytest.mark.parametrize("n", [2, 3, 6])
def test_few_times_are_resampled_without_losing_one(n):
    data = cells([(p, float(t)) for p in "ab" for t in range(n)], np.arange(2 * n)[:, None])
    whole = source_of(data).series(np.arange(2 * n))
    weights = {whole.resampled(np.random.default_rng(k)).weight.sum() for k in range(5)}
    assert len(weights) > 1
    for k in range(20):
        assert bool((whole.resampled(np.random.default_rng(k)).weight > 0).all())


def test_pieces_overlap_by_half_and_cover_the_series():
    data = cells(
        [("a", t / 10) for t in range(21)] + [("b", t / 5) for t in range(4)], np.zeros((25, 1))
    )
    whole = source_of(data).series(np.arange(25))
    cut = whole.pieces(1.0, 0.1)
    spans = [
        (name, float(t[0]), float(t[w[:, 0] > 0].max()))
        for name, t, w in zip(cut.names, cut.times, cut.weight, strict=True)
    ]
    expected = [("a", 0, 1), ("a", 0.5, 1.5), ("a", 1, 2), ("b", 0, 0.6)]
    for found, wanted in zip(spans, expected, strict=True):
        assert found[0] == wanted[0]
        assert found[1:] == pytest.approx(wanted[1:], abs=1e-6)
    torch.testing.assert_close(cut.begin, cut.times[:, 0])


def test_a_start_is_smoothed_from_all_known_cells():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, 200)
    data = cells([("a", t) for t in time], 5 + 0.5 * rng.normal(size=(200, 1)))
    source = source_of(data, n_times=300)
    some = source.series(np.arange(0, 200, 50))
    assert abs(float(some.start) - 5) < 0.3
    assert float(some.begin) == 0.0


def test_resampled_series_keep_their_paths():
    data = cells([(f"s{s}", float(t)) for s in range(8) for t in range(3)], np.arange(24)[:, None])
    whole = source_of(data).series(np.arange(24))
    drawn = whole.resampled(np.random.default_rng(0))
    times = drawn.weight[:, 0, 0]
    assert times.sum() == 8
    assert (times == 0).any()
    assert (drawn.values == whole.values).all()


def test_exchanged_paths_keep_what_genes_do_and_not_what_they_do_together():
    t = np.linspace(0, 6, 50)
    x = np.concatenate([np.stack([np.sin(t + s), np.sin(t + s)], 1) for s in range(20)])
    data = cells([(f"s{s}", float(v)) for s in range(20) for v in t], x)
    whole = source_of(data).series(np.arange(1000))
    drawn = whole.exchanged(np.random.default_rng(0))
    together = [np.corrcoef(b.values.flatten(0, 1).T.numpy())[0, 1] for b in (whole, drawn)]
    assert together[0] > 0.99
    assert abs(together[1]) < 0.6
    assert set(drawn.values[..., 0].flatten().tolist()) <= set(
        whole.values[..., 0].flatten().tolist()
    )


def test_a_series_of_one_time_is_refused_by_name():
    with pytest.raises(DataError, match="one time only for 2 of 2 trajectories, such as 'a'"):
        source_of(cells([("a", 1.0), ("b", 2.0)], [[1], [2]])).series(np.arange(2))
    three = cells([("a", 1.0), ("a", 2.0), ("b", 2.0)], [[1], [2], [3]])
    with pytest.raises(DataError, match="one time only for 1 of 2 trajectories, such as 'b'"):
        source_of(three).series(np.arange(3))
    for names in ("ab", "aa"):
        at_once = cells([(name, 1.0) for name in names], [[1], [2]])
        with pytest.raises(DataError, match="All cells have the same time.*another column as time"):
            source_of(at_once).series(np.arange(2))


def test_a_series_without_a_gene_is_refused_by_name():
    data = cells([("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0)], np.ones((4, 3)))
    data.var_names = ["x", "y", "z"]
    data.X[2:, 1:] = np.nan
    with pytest.raises(DataError, match="'b' lacks 2 features in all its cells, such as 'y'"):
        source_of(data).series(np.arange(4))
    with pytest.raises(DataError, match="'b' lacks 2 features"):
        ch.NeuralODE(match_steps=1, piece_steps=1, path_steps=1).fit(data, SCHEMA, progress=False)
    data.X[2, 1:] = 1.0  # once is enough
    assert source_of(data).series(np.arange(4)).start.isfinite().all()


def test_series_are_kept_for_each_device():
    source = source_of(cells([("a", 0.0), ("a", 1.0), ("a", 2.0)], np.ones((3, 2))))
    for device in ("meta", "cpu", "meta"):
        (batch,) = source.minibatches([np.arange(3)], device)
        assert batch.values.device.type == device


def test_a_population_is_drawn_of_the_cells_of_each_time():
    rng = np.random.default_rng(0)
    table = [(p, float(t)) for p in "ab" for t in range(3 if p == "a" else 2) for _ in range(20)]
    x = np.array([[100 * (p == "b") + 10 * t, k] for k, (p, t) in enumerate(table)])
    data = cells(table, x)[rng.permutation(len(table))].copy()
    (batch,) = source_of(data, n_particles=12).minibatches([np.arange(100)])
    drawn, present = batch.draw_populations(np.random.default_rng(0))
    assert drawn.shape == (2, 3, 12, 2)
    assert present[..., 0].tolist() == [[1, 1, 1], [1, 1, 0]]
    for s in range(2):
        for t in range(3 - s):
            assert (drawn[s, t, :, 0] == 100 * s + 10 * t).all()
            assert len(drawn[s, t, :, 1].unique()) == 12  # none twice
    again, _ = batch.draw_populations(np.random.default_rng(1))
    assert not torch.equal(again, drawn)
    (batch,) = source_of(data, n_particles=500).minibatches([np.arange(100)])
    drawn, present = batch.draw_populations(np.random.default_rng(0))
    assert drawn.shape[2] == 20  # all there are
    assert float(present.sum()) == 100


def test_smoothed_states_stand_for_the_cells():
    rng = np.random.default_rng(0)
    time = np.arange(60) / 10
    data = cells([("a", t) for t in time], np.stack([time, time + rng.normal(size=60)], 1))
    (batch,) = source_of(data, bandwidth=1.0, smooth=True).minibatches([np.arange(60)])
    plain = source_of(data, bandwidth=1.0).series(np.arange(60))
    torch.testing.assert_close(batch.values, plain.smoothed(plain.times, 1.0)[0])
    torch.testing.assert_close(batch.weight, plain.weight)
