"""Positives of models: that views stand at their cells, and are those of a fit."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from identify.worlds import COUNTS
from scipy.spatial.distance import cdist

import chreode as ch
from chreode.data.batch import SparseRows
from chreode.data.cells import Cells
from chreode.identify.positives import open_positives
from chreode.models.claire import Constructed
from chreode.models.selfsupervised.embedder import Embedder


@pytest.mark.parametrize("augment", [(), ("mnn",), ("bbknn",)])
def test_views_stand_at_their_cells(cells, schema, augment):
    """With nothing changed, or mixed with a weight of 1, they are the cells themselves."""
    model = ch.SimCLR(augment=augment, mix=1.0, batch_size=64)
    opened = open_positives(model, Cells.of(cells, schema), 0)
    counts = cells.layers["counts"].toarray()
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    times = np.zeros((3, cells.n_obs), int)
    for view, rows, x in opened.draw(3):
        np.testing.assert_allclose(
            x.dense() if isinstance(x, SparseRows) else x, logs[rows], atol=1e-4
        )
        times[view, rows] += 1
    assert (times == 1).all()


def test_a_view_of_claire_is_of_a_cell_of_another_batch(cells, schema):
    """With a weight of 1 and nothing changed, the second view is the positive itself."""
    opened = open_positives(ch.CLAIRE(mix=1.0, augment=()), Cells.of(cells, schema), 0)
    counts = cells.layers["counts"].toarray()
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    batch = cells.obs["batch"].to_numpy()
    for view, rows, x in opened.draw(2):
        apart = cdist(x.dense(), logs)
        assert apart.min(1).max() < 1e-2
        seen = apart.argmin(1)
        assert (seen == rows).all() if view == 0 else (batch[seen] != batch[rows]).all()


def test_each_epoch_has_its_order_and_each_minibatch_its_noise(cells, schema, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Embedder,
        "draw_views",
        lambda _, batch: drawn.append(torch.rand(()).item()) or [batch["counts"]] * 2,
    )
    opened = open_positives(ch.SimCLR(batch_size=100), Cells.of(cells, schema), 0)
    order = [[], [], [], []]
    for view, rows, _ in opened.draw(4):
        order[view].extend(rows)
    first, second = order[0], order[2]
    assert (order[1], order[3]) == (first, second)  # two views of an epoch
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(cells)))
    assert len(set(drawn)) == len(drawn) == 10


def test_a_fit_draws_as_in_its_last_phase_and_a_model_as_in_its_first(cells, schema, monkeypatch):
    """CLAIRE refines its pairs in the last one."""
    model = ch.CLAIRE(max_epochs=2, n_latent=4)
    fitted = model.fit(cells, schema, progress=False)
    refined, plain = [], Constructed.__call__
    monkeypatch.setattr(
        Constructed, "__call__", lambda self, *of: refined.append(self.refined) or plain(self, *of)
    )
    for given in (model, fitted):
        open_positives(given, Cells.of(cells, schema), 0)
    assert refined == [False, True]


@pytest.mark.parametrize("key", ["clear", "claire", "maskedautoencoder", "nnclr", "concerto"])
def test_every_model_of_views_says_what_they_are(cells, schema, key):
    model = ch.models.find(key)()
    opened = open_positives(model, Cells.of(cells, schema), 0)
    views = {view for view, _, _ in opened.draw(2)}
    assert views == {0, 1}
    share = [float((x.dense() if isinstance(x, SparseRows) else x).gt(0).float().mean())
             for _, _, x in opened.draw(1)]  # fmt: skip
    plain = float((cells.layers["counts"] > 0).mean())
    if key == "maskedautoencoder":  # half of all genes is hidden, and always
        assert np.mean(share) == pytest.approx(plain / 2, rel=0.1)


def test_crossover_changes_types_and_masks_do_not(fewer, world):
    def of(**options):
        model = ch.SimCLR(chance=1.0, **options)
        return ch.identify.coverage(model, world.data, "type", schema=COUNTS).table()["coverage"][
            "type"
        ]

    assert of(augment=("crossover",), crossover=0.5) > 0.15
    assert of(augment=("mask",), mask=0.3) < 0.05


def test_thinning_changes_depth_more_than_masks_do(fewer):
    rng = np.random.default_rng(0)
    rate, depth = rng.lognormal(0, 1, 300), np.exp(rng.uniform(5, 8, 400))
    data = ad.AnnData(sp.csr_matrix(rng.poisson(depth[:, None] * rate / rate.sum()).astype("f4")))
    data.obs["depth"] = np.log(depth)
    thin, mask = (
        ch.identify.coverage(name, data, "depth", schema=COUNTS).table()["coverage"]["depth"]
        for name in ("thin", "mask")
    )
    assert thin > mask + 0.1


def test_a_fit_knows_its_schema_and_draws_as_its_model(fewer, world, quick):
    model = quick(ch.SimCLR, augment=("programmes",))
    fitted = model.fit(world.data, COUNTS)
    found = ch.identify.coverage(fitted, world.data, "one", n_views=2)
    assert found.about["positives"]["augment"] == ["programmes"]
    assert 0 < found.table()["coverage"]["one"] < 0.9
