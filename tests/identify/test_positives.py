"""Positives of models: that views stand at their cells, and are those of a fit."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from identify.worlds import COUNTS

import chreode as ch
from chreode.data.batch import SparseRows
from chreode.data.cells import Cells
from chreode.identify.positives import open_positives


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
