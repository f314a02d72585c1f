"""CLEAR is MoCo with its own augmentations and constants; the slow copy must move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch
from chreode.data.simulate import simulate_cells
from chreode.metrics.neighbours import exact_neighbours
from chreode.models.claire import unit
from chreode.module import Step
from chreode.nn.target import Target

SCHEMA = ch.Schema(counts="layers/counts")
FEW = {"max_epochs": 25, "batch_size": 128, "momentum": 0.9}


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(900, 300, n_types=5, seed=2)


def agreement(fitted, cells):
    """Return the share of the 15 nearest neighbours that are of the same type."""
    near = exact_neighbours(unit(fitted.embed(cells, progress=False).astype(float)), 15).indices
    types = cells.obs["cell_type"].to_numpy()
    return (types[near] == types[:, None]).mean()


def test_the_loss_is_the_formula(cells):
    fitted = ch.CLEAR(max_epochs=1, augment=("mask",), mask=0.0).fit(cells, SCHEMA, progress=False)
    module = fitted.module
    x = np.random.default_rng(0).poisson(1.0, (30, 300)).astype(np.float32)
    batch = CellBatch(torch.arange(30), {"counts": torch.from_numpy(x)})
    with torch.no_grad():
        found = module.loss(batch, Step(Rng(0), 0, 0.0))
        view = module.views.plain(batch)
        q, k = (F.normalize(net(view)[1]).double().numpy() for net in (module.network, module.slow))
    queue = module.queue.held.double().numpy()
    assert len(queue) == 450  # half of the cells
    by_hand = []
    for a, b in zip(q, k, strict=True):
        logits = np.r_[a @ b, queue @ a] / 0.2
        by_hand.append(np.log(np.exp(logits).sum()) - logits[0])
    assert float(found.objectives["model"]) == pytest.approx(np.mean(by_hand), rel=1e-5)
    np.testing.assert_allclose(found.outputs["keys"].numpy(), k, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("without_types")
def test_a_frozen_copy_teaches_less(cells, monkeypatch):
    right = agreement(ch.CLEAR(**FEW).fit(cells, SCHEMA, progress=False), cells)
    monkeypatch.setattr(Target, "follow", lambda *_: None)
    frozen = agreement(ch.CLEAR(**FEW).fit(cells, SCHEMA, progress=False), cells)
    assert right > frozen + 0.05
    assert right > 0.7


@pytest.mark.parametrize("name", ["CLEAR", "CLAIRE", "Concerto", "ScCLIP"])
def test_labels_leave_no_trace(name, cells, quick):
    some = simulate_cells(200, 60, n_types=3, n_batches=2, seed=0)
    some.obsm["protein"] = np.random.default_rng(0).poisson(5.0, (200, 6)).astype(np.float32)
    roles = {"counts": "layers/counts", "batch": "obs/batch", "label": "obs/cell_type"}
    if name == "ScCLIP":
        roles["protein"] = "obsm/protein"
    other = some.copy()
    other.obs["cell_type"] = np.random.default_rng(1).permutation(some.obs["cell_type"].to_numpy())
    fits = [
        quick(getattr(ch, name)).fit(c, ch.Schema(**roles), progress=False) for c in (some, other)
    ]
    one, two = (f.module.network.state_dict() for f in fits)
    assert all(torch.equal(one[key], two[key]) for key in one)
