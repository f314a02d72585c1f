"""Paths that know their lineage part where their starts tell which it is."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.series_source import SeriesSource
from chreode.learn import analogs

SCHEMA = ch.Schema(expression="X", time="obs/time", trajectory="obs/path")
MODEL = ch.LineageNODE(n_components=2, match_steps=300, piece_steps=40, path_steps=20)


def lineages(seed, names, apart=0.5, noise=0.1, times=40):
    """Return lineages of 20 genes that begin beside each other, and go apart, up or down."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, times)
    up, aside = np.random.default_rng(0).normal(size=(2, 20))
    made = []
    for name in names:
        way = 1.0 if name.startswith("up") else -1.0
        x = way * (apart + 3 * t)[:, None] * up + np.sin(3 * t)[:, None] * aside
        x = x + noise * rng.normal(size=x.shape)
        obs = pd.DataFrame({"time": t, "path": name}, index=[f"{name} {i}" for i in range(times)])
        made.append(anndata.AnnData(x.astype(np.float32), obs=obs))
    return anndata.concat(made)


@pytest.fixture(scope="module")
def train():
    return lineages(0, ["up 0", "down 0", "up 1"])


@pytest.fixture(scope="module")
def module(train):
    return MODEL.fit(train, SCHEMA, seed=0, progress=False).module


def series(cells):
    from chreode.data.align import learn_spec, open_source

    roles = ["expression", "time", "trajectory"]
    rows = np.arange(cells.n_obs)
    source = open_source(
        Cells(cells, SCHEMA), learn_spec(Cells(cells, SCHEMA), roles, rows), roles, {}
    )
    return SeriesSource.of(source, known=rows, n_times=1000, bandwidth=0.1).series(rows)


@pytest.mark.slow
def test_lineages_part_from_starts_that_tell(module, train):
    known, new = series(train), series(lineages(1, ["up 7", "down 7"]))
    with torch.no_grad():
        found = module.forecast(new)
    by_time = analogs.over_time(known, new, 0.1)
    error, of_time = ((x - new.values).square().mean() for x in (found, by_time))
    assert error < 0.15 * of_time


@pytest.mark.slow
def test_weights_are_of_training_lineages_and_fall_with_distance(train):
    held_out = train.obs["path"].eq("up 1").to_numpy()
    module = MODEL.fit(train, SCHEMA, validation=held_out, seed=0, progress=False).module
    assert module.learned.tolist() == [True, True, False]  # down 0, up 0, up 1
    starts = module.frame.starts[:2]
    weights = module.lineage_weights(starts, module.frame.begins[:2])
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not weights[:, 2].any()
    assert (weights[:, :2].argmax(1) == torch.arange(2)).all()
    near, far = (starts[0] @ module.view - module.courses[:2, 0]).square().sum(1)
    torch.testing.assert_close(
        weights[0, 1] / weights[0, 0], torch.exp((near - far) / (2 * module.reach**2))
    )


@pytest.mark.slow
def test_paths_lie_in_the_components(module, train):
    with torch.no_grad():
        found = module.forecast(series(train))
    torch.testing.assert_close(
        module.from_components(module.to_components(found)), found, atol=1e-3, rtol=1e-3
    )
    assert module.axes.shape == (20, 2)
    torch.testing.assert_close(module.axes.T @ module.axes, torch.eye(2), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_what_is_absent_is_told_as_absent(module, train):
    with torch.no_grad():
        found = module.forecast(series(train), (3,))
    torch.testing.assert_close(found[..., 3], torch.zeros_like(found[..., 3]), atol=1e-4, rtol=0)
