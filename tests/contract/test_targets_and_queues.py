"""What gradients do not move: targets that follow a network, queues of what it has seen."""

from __future__ import annotations

import math
from typing import ClassVar

import anndata
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chreode as ch
from chreode import store
from chreode.config import config, param
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase, sgd
from chreode.model import Model
from chreode.module import Loss, Module
from chreode.nn.blocks import MLP, BatchNorm
from chreode.nn.queue import Queue
from chreode.nn.target import Target

COUNTS = ch.Schema(counts="X")


def blood(path, n_cells=600, n_genes=300):
    """Return some cells and their most variable genes."""
    data = anndata.read_h5ad(path)[:n_cells]
    variance = np.log1p(data.X.toarray()).var(0)
    return data[:, np.sort(np.argsort(-variance)[:n_genes])].copy()


@pytest.fixture(scope="module")
def pbmc(real):
    return blood(real("pbmc3k/pbmc3k_2700.h5ad"))


def encoder(n, z=16):
    return nn.Sequential(MLP(n, [64], momentum=0.1), nn.Linear(64, z))


# BYOL (Grill et al. 2020, section 3.1): 32 lines.


class BYOLModule(Module):
    """Each view of a cell predicts what the target makes of the other one."""

    def __init__(self, n, statistics):
        super().__init__()
        self.online = encoder(n)
        self.predictor = nn.Sequential(MLP(16, [32], momentum=0.1), nn.Linear(32, 16))
        self.target = Target(self.online, statistics)

    def loss(self, batch, step):
        x = batch.log_expression()
        one, two = (x * (torch.rand_like(x) > 0.2) for _ in range(2))
        same = [
            F.cosine_similarity(self.predictor(self.online(a)), self.target(b)).mean()
            for a, b in ((one, two), (two, one))
        ]
        return Loss({"model": 2 - sum(same)})

    def after_step(self, step):
        self.target.follow(self.online, 1 - 0.1 * (math.cos(math.pi * step.progress) + 1) / 2)

    def embed(self, batch):
        return self.online(batch.log_expression())


@config
class BYOL(Model):
    """Bootstrap your own latent."""

    needs: ClassVar = ("counts",)
    statistics: str = param("own", "Of the target's batch norm.")
    patience: int | None = param(None, "Epochs.")
    lr: float = param(3e-3, "Learning rate.")
    max_epochs: int = param(6, "Passes.")

    def build(self, spec):
        return BYOLModule(spec.n_features("counts"), self.statistics)

    def phases(self):
        learner = SGD(lr=self.lr, max_epochs=self.max_epochs, patience=self.patience)
        return [Phase(learner, data=Shuffled(100))]


# MoCo (He et al. 2020, algorithm 1), which matches the halves of a cell's genes: 35 lines.


class MoCoModule(Module):
    """One half of a cell's genes finds the other among keys of earlier cells."""

    def __init__(self, n, size, dropout):
        super().__init__()
        self.dropout = dropout
        self.query = encoder(n)
        self.key, self.queue = Target(self.query), Queue(size, 16)
        self.register_buffer("odd", (torch.arange(n) % 2).float())

    def loss(self, batch, step):
        x = F.dropout(batch.log_expression(), self.dropout, self.training)
        first = self.odd if step.index % 2 else 1 - self.odd
        q, k = F.normalize(self.query(x * first)), F.normalize(self.key(x * (1 - first)))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.keys.T], 1) / 0.1
        top = (logits.argmax(1) == 0).float().mean()
        goal = torch.zeros(len(x), dtype=torch.long)
        return Loss({"model": F.cross_entropy(logits, goal)}, {"top": top}, {"keys": k})

    def after_step(self, step):
        self.key.follow(self.query, 0.95)
        self.queue.push(step.group.gather(step.outputs["keys"])[0])

    def embed(self, batch):
        return self.query(batch.log_expression())


@config
class MoCo(Model):
    """Momentum contrast."""

    needs: ClassVar = ("counts",)
    size: int = param(250, "Keys of the queue.")
    dropout: float = param(0.0, "Of genes.")
    patience: int | None = param(None, "Epochs.")
    lr: float = param(3e-3, "Learning rate.")
    max_epochs: int = param(6, "Passes.")

    def build(self, spec):
        return MoCoModule(spec.n_features("counts"), self.size, self.dropout)

    def phases(self):
        learner = SGD(lr=self.lr, max_epochs=self.max_epochs, patience=self.patience)
        return [Phase(learner, data=Shuffled(90))]


def watched(monkeypatch, cls, read):
    """Return a list that gets what ``read(module, step)`` returns before and after every `after_step`."""
    plain, log = cls.after_step, []

    def after_step(self, step):
        before = read(self, step)
        plain(self, step)
        log.append((before, read(self, step)))

    monkeypatch.setattr(cls, "after_step", after_step)
    return log


def copied(network):
    return {k: v.clone().double().numpy() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("statistics", ["own", "followed"])
def test_the_target_is_the_moving_average_of_the_network(pbmc, monkeypatch, statistics):
    def read(module, step):
        return copied(module.online), copied(module.target.network), step.progress

    log = watched(monkeypatch, BYOLModule, read)
    module = BYOL(statistics=statistics).fit(pbmc, COUNTS, validation=0).module
    names, norm = dict(module.online.named_parameters()), "0.norms.0."
    average = log[0][0][1]
    for number, ((online, looked, progress), (_, after, _)) in enumerate(log):
        share = 0.1 * (math.cos(math.pi * progress) + 1) / 2
        for name, value in online.items():
            if name not in names and statistics == "own":
                np.testing.assert_array_equal(after[name], looked[name])  # of its own minibatches
                continue
            copies = name not in names and (number == 0 or "batches" in name)
            step = 1 if copies else share
            average[name] = average[name] + step * (value - average[name])
            np.testing.assert_allclose(after[name], average[name], rtol=1e-4, atol=1e-6)
    online, target = copied(module.online), copied(module.target.network)
    assert online[norm + "num_batches_tracked"] == target[norm + "num_batches_tracked"] == 72
    mean, spread = (np.abs(online[norm + n] - target[norm + n]).max() for n in RUNNING)
    assert min(mean, spread) > 0
    far = np.abs(online["0.layers.0.linear.weight"] - target["0.layers.0.linear.weight"])
    start = log[0][0][1]["0.layers.0.linear.weight"]
    assert 0 < far.max() < np.abs(online["0.layers.0.linear.weight"] - start).max()
    assert module.target.training is False


RUNNING = ("running_mean", "running_var")


def test_the_target_takes_no_gradient_and_learns_as_published(pbmc, monkeypatch):
    modes = []
    plain = Target.forward
    monkeypatch.setattr(
        Target, "forward", lambda self, x: (modes.append(self.network.training), plain(self, x))[1]
    )
    grads = watched(monkeypatch, BYOLModule, lambda m, s: [p.grad for p in m.target.parameters()])
    optimised = []
    start = sgd.Players.__init__

    def init(self, *args):
        start(self, *args)
        optimised.extend(id(p) for found in self.parameters.values() for p in found)

    monkeypatch.setattr(sgd.Players, "__init__", init)
    module = BYOL(max_epochs=1).fit(pbmc, COUNTS).module
    assert all(g is None for before, _ in grads for g in before)
    assert set(optimised) == {
        id(p) for part in (module.online, module.predictor) for p in part.parameters()
    }
    assert modes == [True] * 10 + [False] * 2  # 540 cells in 5 minibatches, then 60 at once
    modes.clear()
    BYOL(max_epochs=1, statistics="followed").fit(pbmc, COUNTS)
    assert modes == [False] * 12


@pytest.mark.slow
@pytest.mark.parametrize("model", [BYOL(), BYOL(statistics="followed"), MoCo()], ids=str)
def test_a_fit_that_was_cut_off_goes_on_with_the_same_bits(pbmc, model, tmp_path, monkeypatch):
    plain, ends = sgd._Loop.run_epoch, []

    def run_epoch(loop):
        if stops and loop.epoch == 3:
            raise KeyboardInterrupt
        row = plain(loop)
        ends.append(store.digest(loop.target.state_dict(), ""))
        return row

    monkeypatch.setattr(sgd._Loop, "run_epoch", run_epoch)
    stops = False
    whole = model.fit(pbmc, COUNTS)
    stops = True
    with pytest.warns(UserWarning, match="interrupted in epoch 3"):
        model.fit(pbmc, COUNTS, checkpoint=tmp_path)
    stops = False
    again = model.fit(pbmc, COUNTS, checkpoint=tmp_path)
    assert ends[:6] == ends[6:]
    assert len(set(ends)) == 6
    left = [store.digest(fitted.module.state_dict(), "") for fitted in (whole, again)]
    assert left[0] == left[1]
    names = set(whole.module.state_dict())
    assert any(n.endswith("network.0.norms.0.running_var") for n in names)
    if isinstance(model, MoCo):
        assert {"queue.keys", "queue.at"} <= names


@pytest.mark.parametrize("model", [BYOL, MoCo])
def test_the_best_weights_have_the_target_and_the_queue_of_their_epoch(pbmc, model, monkeypatch):
    plain, ends = sgd._Loop.run_epoch, []

    def run_epoch(loop):
        row = plain(loop)
        ends.append(store.digest(loop.target.state_dict(), ""))
        return row

    monkeypatch.setattr(sgd._Loop, "run_epoch", run_epoch)
    fitted = model(patience=2, lr=0.05, max_epochs=40).fit(pbmc, COUNTS)
    best = int(fitted.history["validation_objective"].idxmin())
    assert best < len(ends) - 1
    assert store.digest(fitted.module.state_dict(), "") == ends[best]


@pytest.mark.parametrize("size", [250, 70])
def test_the_queue_holds_the_last_keys(pbmc, monkeypatch, size):
    """250 keys are no multiple of a minibatch, and 70 are fewer."""

    def read(module, step):
        return step.outputs["keys"].clone()

    log = watched(monkeypatch, MoCoModule, read)
    module = MoCo(size=size, max_epochs=2).fit(pbmc, COUNTS).module
    keys = torch.cat([k for k, _ in log])
    assert len(keys) == 2 * 540
    assert not keys.requires_grad
    oldest_first = torch.roll(module.queue.keys, -int(module.queue.at), 0)
    assert torch.equal(oldest_first, keys[-size:])
    assert keys.norm(dim=1).sub(1).abs().max() < 1e-5


@pytest.mark.slow
def test_halves_of_held_out_cells_find_each_other(real):
    """Among the keys of 250 cells that it learned from; what has learned nothing is worse than chance."""
    data, chance = blood(real("pbmc3k/pbmc3k_2700.h5ad"), 1500, 600), math.log(251)
    ended = {
        lr: MoCo(lr=lr, dropout=0.5, max_epochs=10)
        .fit(data, COUNTS, validation=1 / 15)
        .history["validation_objective"]
        .iloc[-1]
        for lr in (1e-9, 1e-3)
    }
    assert ended[1e-3] < chance - 0.8 < chance < ended[1e-9]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm])
def test_followed_statistics_hold_nothing_of_their_start(norm):
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(5, 3), norm(3))
    target = Target(online, "followed").train()
    x = 50 + torch.randn(64, 5)
    online(x)
    target.follow(online, 0.99)
    for name in RUNNING:
        assert torch.equal(getattr(target.network[1], name), getattr(online[1], name))
    assert torch.equal(target(x), online.eval()(x))
