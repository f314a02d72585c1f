"""Concerto: attention over genes by hand, and two networks that find the same cell, dropout apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.batch import SparseRows
from chreode.data.simulate import simulate_cells
from chreode.metrics.neighbours import exact_neighbours
from chreode.models.claire import unit
from chreode.models.concerto import Attention
from chreode.module import Step

SCHEMA = ch.Schema(counts="layers/counts")


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(600, 200, n_types=5, seed=2)


def test_attention_is_the_formula_gene_by_gene():
    torch.manual_seed(0)
    layer = Attention(7, 5, 3).eval()
    layer.norm.running_mean.fill_(0.4)
    layer.norm.running_var.fill_(2.0)
    x = torch.rand(6, 7) * (torch.rand(6, 7) < 0.6)
    x[2] = 0
    with torch.no_grad():
        found = layer(SparseRows.of(x)).numpy()
        weight, _ = layer.weights(SparseRows.of(x))
    vectors, key, bias, u = (
        t.detach().numpy() for t in (layer.vectors, layer.key.weight, layer.key.bias, layer.context)
    )
    for i, cell in enumerate(x.numpy()):
        genes = np.flatnonzero(cell)
        s = (cell[genes] - 0.4) / np.sqrt(2.0 + layer.norm.eps)
        score = [
            u @ np.tanh((s_j * vectors[j]) @ key + bias) for s_j, j in zip(s, genes, strict=True)
        ]
        a = np.exp(score) / np.exp(score).sum()
        by_hand = np.tanh(
            sum(
                (a_j * s_j * vectors[j] for a_j, s_j, j in zip(a, s, genes, strict=True)),
                np.zeros(5),
            )
        )
        np.testing.assert_allclose(found[i], by_hand, atol=1e-5)
        np.testing.assert_allclose(weight[i, genes], a, atol=1e-6)


def objective(module, batch, seed=0):
    with Rng(seed).scope("noise"), torch.no_grad():
        return float(module.loss(batch, Step(Rng(0), 0, 0.0)).objectives["model"])


@pytest.fixture(scope="module")
def fitted(cells):
    return ch.Concerto(max_epochs=15, batch_size=128).fit(cells, SCHEMA, progress=False)


def batch_of(cells):
    from chreode.data.batch import CellBatch

    x = torch.from_numpy(cells.layers["counts"][:40].toarray())
    return CellBatch(torch.arange(40), {"counts": x})


@pytest.mark.slow
def test_the_loss_compares_teacher_and_student(cells, fitted):
    module, batch = fitted.module, batch_of(cells)
    with torch.no_grad():
        view = module.views.plain(batch)
        z = [F.normalize(net(view)[1]).double().numpy() for net in (module.network, module.student)]
    every, total = np.concatenate(z), []
    for i in range(80):
        logits = every @ every[i] / 0.1
        others = np.delete(logits, i)
        total.append(np.log(np.exp(others).sum()) - logits[(i + 40) % 80])
    assert objective(module, batch) == pytest.approx(np.mean(total), rel=1e-5)


def test_dropout_alone_tells_the_views_apart(cells, fitted):
    """Without it nothing is drawn in training."""
    batch = batch_of(cells)
    for dropout, alike in ((0.1, False), (0.0, True)):
        module = ch.Concerto(dropout=dropout).build(fitted.spec)
        module.load_state_dict(fitted.module.state_dict())
        assert (objective(module.train(), batch, 0) == objective(module, batch, 1)) == alike
        assert objective(module.eval(), batch, 0) == objective(module, batch, 1)


def test_both_networks_learn_and_the_teacher_embeds(cells, fitted):
    module = ch.Concerto().build(fitted.spec).train()
    loss = module.loss(batch_of(cells), Step(Rng(0), 0, 0.0)).objectives["model"]
    loss.backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    z = fitted.module.embed(batch_of(cells))
    torch.testing.assert_close(
        z, fitted.module.network(fitted.module.views.plain(batch_of(cells)))[0]
    )


def test_types_are_found(cells, fitted):
    types = cells.obs["cell_type"].to_numpy()

    def agreement(z):
        near = exact_neighbours(unit(z.astype(float)), 15).indices
        return (types[near] == types[:, None]).mean()

    torch.manual_seed(0)
    untrained = ch.Concerto().build(fitted.spec).eval()
    from chreode.data.batch import CellBatch

    x = torch.from_numpy(cells.layers["counts"].toarray())
    with torch.no_grad():
        before = untrained.embed(CellBatch(torch.arange(600), {"counts": x})).numpy()
    assert agreement(fitted.embed(cells)) > agreement(before) + 0.1
