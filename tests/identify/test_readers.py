"""Readers: what they tell of cells, and that they have not seen those that they read."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from identify.worlds import COUNTS

import chreode as ch
from chreode.compute.rng import Rng
from chreode.identify.factors import Factor
from chreode.identify.readers import Readers, _Reader, as_rows, folds, halvings


def test_a_rare_class_may_be_among_the_cells_that_nobody_learns_from():
    reader = _Reader.of_classes(np.random.default_rng(0).normal(size=(20, 3)), np.zeros(20), 2)
    np.testing.assert_array_equal(reader.finish(np.zeros((4, 2)) + reader.bias), [[1, 0]] * 4)


def test_a_factor_that_cannot_be_read_is_not_told(fewer, world):
    data = world.data.copy()
    data.obs["noise"] = np.random.default_rng(0).random(data.n_obs)
    data.obs["coin"] = np.random.default_rng(1).permutation(["heads", "tails"] * (data.n_obs // 2))
    draw = world.positives(1, 1)
    found = ch.identify.coverage(draw, data, ["noise", "coin"], schema=COUNTS, n_views=2)
    table = found.table()
    assert table[["coverage", "low", "high", "blur"]].isna().all(axis=None)
    assert table["note"].str.startswith("not told: readers cannot tell this factor").all()
    assert "Not known: noise, coin." in repr(found)


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


def test_readers_learn_nothing_from_the_group_of_a_cell(fewer, world):
    """Replicates have a value of noise in common: only a reader that saw the other one knows it."""
    twice = ad.concat([world.data, world.data], index_unique="-")
    twice.obs["well"] = np.tile(np.arange(world.data.n_obs), 2).astype(str)
    noise = np.random.default_rng(0).normal(size=40)
    twice.obs["noise"] = np.tile(noise, 30)
    few = twice[np.r_[:40, 600:640]].copy()
    how = {"schema": COUNTS, "n_views": 2}
    seen, unseen = (
        ch.identify.coverage(lambda a, _: a, few, ["noise"], groups=groups, **how).table()[
            "readable"
        ]["noise"]
        for groups in (None, "well")
    )
    assert unseen < 0.1 < seen
    assert len(np.unique(folds(np.repeat(np.arange(7), 3), np.random.default_rng(0)))) == 5
