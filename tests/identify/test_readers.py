"""Readers: what they tell of cells, and that they have not seen those that they read."""

from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from identify.worlds import COUNTS
from sklearn.metrics import r2_score

import chreode as ch
from chreode.compute.rng import Rng
from chreode.identify.factors import Factor
from chreode.identify.readers import Readers, _Reader, as_rows, components, folds, halvings

coverage = importlib.import_module("chreode.identify.coverage")  # the function has the same name


def test_a_rare_class_may_be_among_the_cells_that_nobody_learns_from():
    reader = _Reader.of_classes(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20), 2)
    np.testing.assert_array_equal(
        reader.finish(np.zeros((4, 2)) + reader.bias, np.zeros((4, 3))), [[1, 0]] * 4
    )


def test_a_factor_that_cannot_be_read_is_not_told(fewer, world):
    data = world.data.copy()
    data.obs["noise"] = np.random.default_rng(0).random(data.n_obs)
    data.obs["coin"] = np.random.default_rng(1).permutation(["heads", "tails"] * (data.n_obs // 2))
    draw = world.positives(1, 1)
    found = ch.identify.coverage(draw, data, ["noise", "coin"], schema=COUNTS, n_views=2)
    table = found.table()
    assert table[["coverage", "low", "high", "blur"]].isna().all(axis=None)
    assert table["note"].str.startswith("not told: readers cannot tell this factor").all()
    assert "or there is none: noise, coin." in repr(found)


def test_to_name_the_commonest_class_of_all_cells_tells_nothing(fewer):
    """It is right of nine cells in ten, of all of one class and of none of the other."""
    factor = Factor("type", np.repeat([0.0, 1.0], [90, 10]), ("often", "rare"))
    told = np.array([0.9, 0.1])
    cells, views = (np.broadcast_to(told, (100, *views, 2, 2, 2)) for views in ((), (3,)))
    row = coverage._row(factor, cells, views, Rng(0))
    assert row["readable"] == row["baseline"] == 0.5
    assert row["note"].startswith("not told: readers cannot tell this factor")


def test_readers_do_not_see_the_cells_that_they_read(world):
    """Where they do, they tell a coin: the number that a factor is judged readable by would be worthless."""
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(np.log1p(world.data.X.toarray()))
    n = len(world.one)
    coin = Factor("coin", rng.integers(2, size=n).astype(float), ("heads", "tails"))
    halves, fold = halvings(1, x.shape[1], rng), folds(np.arange(n), rng)
    unseen, seen = np.flatnonzero(fold == 0), np.flatnonzero(fold != 0)
    reader = Readers.learn(x, [coin], halves, seen, Rng(0))

    def accuracy(cells):
        told = reader.read(as_rows(x[cells])).mean((1, 2)).argmax(1)
        return (told == coin.values[cells]).mean()

    assert accuracy(unseen) < 0.6
    assert accuracy(seen) > accuracy(unseen) + 0.1


def test_sparse_cells_are_read_as_dense_ones_are(world):
    x = sp.csr_matrix(np.log1p(world.data.X.toarray()))
    types = Factor("type", world.code.astype(float), ("a", "b", "c", "d"))
    halves = halvings(2, x.shape[1], np.random.default_rng(0))
    factors = [Factor("one", world.one), Factor("square", (world.one - 0.5) ** 2), types]
    readers = Readers.learn(x, factors, halves, np.arange(400), Rng(0))
    found = readers.read(as_rows(x[400:]))
    assert found.shape == (200, *readers.shape) == (200, 2, 2, 6)
    np.testing.assert_allclose(readers.read(torch.from_numpy(x[400:].toarray())), found, atol=1e-4)
    np.testing.assert_allclose(found[..., 2:].sum(-1), 1, rtol=1e-9)
    # each half reads its own genes alone
    other = x.toarray()[400:]
    other[:, halves[0]] = 0
    blind = readers.read(torch.from_numpy(other))
    np.testing.assert_allclose(blind[:, 0, 1], found[:, 0, 1], atol=1e-4)
    assert np.abs(blind[:, 0, 0] - found[:, 0, 0]).max() > 0.1


@pytest.mark.parametrize("groups", [None, "well"])
def test_readers_learn_nothing_from_the_group_of_a_cell(fewer, world, groups, monkeypatch):
    """Replicates have a value of noise in common: only a reader that saw the other one knows it.

    Positives are the cells themselves, so that whoever reads them must read what was read of the cells.
    """
    given, share = [], coverage.share_of
    monkeypatch.setattr(
        coverage, "share_of", lambda *read, **how: given.append(read) or share(*read, **how)
    )
    noise = np.tile(np.random.default_rng(0).normal(size=40), 2)
    few = ad.concat([world.data[:40], world.data[:40]], index_unique="-")
    few.obs["noise"], few.obs["well"] = noise, np.tile(np.arange(40), 2).astype(str)
    found = ch.identify.coverage(
        lambda cells, _: cells, few, "noise", groups=groups, schema=COUNTS, n_views=2
    )
    ((of_cells, of_views),) = given
    readable = found.table()["readable"]["noise"]
    assert readable > 0.1 if groups is None else readable < 0.1
    scaled = (noise - noise.mean()) / noise.std()  # as factors are
    assert r2_score(scaled, of_views.mean((1, 2, 3))[:, 0]) == pytest.approx(readable, abs=1e-4)
    np.testing.assert_allclose(of_views, np.stack([of_cells, of_cells], 1), atol=1e-4)


def test_cells_of_a_group_share_their_fold():
    found = folds(np.repeat(np.arange(7), 3), np.random.default_rng(0)).reshape(7, 3)
    assert (found == found[:, :1]).all()
    assert len(np.unique(found)) == 5


@pytest.mark.parametrize(("n", "g"), [(60, 20), (20, 60)])
def test_components_are_those_of_centred_cells(n, g):
    """By the covariance of genes, and by the products of cells where these are fewer."""
    x = 3 + np.random.default_rng(0).random((n, g))
    axes, centre, z = components(sp.csr_matrix(x), 4)
    u, values, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(axes @ axes.T, v[:4].T @ v[:4], atol=1e-9)
    np.testing.assert_allclose(z @ axes.T, (u[:, :4] * values[:4]) @ v[:4], atol=1e-8)
    np.testing.assert_allclose(centre, x.mean(0) @ axes)


def test_a_factor_that_is_no_line_is_read_by_a_kernel():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) @ np.diag([3, 1, 1, 1, 1, 1])
    x[:, 3:] = x[:, :3] + 0.1 * rng.normal(size=(300, 3))  # each half of the genes can tell
    half = np.array([[True] * 3 + [False] * 3])
    for power, kernel in ((1, False), (2, True)):
        factor = Factor("of the first", x[:, 0] ** power)
        readers = Readers.learn(sp.csr_matrix(x), [factor], half, np.arange(200), Rng(0))
        told = readers.read(torch.from_numpy(x[200:]).float())[..., 0].mean((1, 2))
        assert r2_score(factor.values[200:], told) > 0.9
        # a kernel takes the three components as they are, a line what it foretells of them
        assert len(readers.offset) == 2 * (3 if kernel else 1)
