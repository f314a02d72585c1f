"""Players with rates, turns and warm-ups of their own; what epochs are compared by; query mapping."""

from __future__ import annotations

from typing import ClassVar

import anndata
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chreode as ch
from chreode.compute.processes import Group
from chreode.config import config, param
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase, Rng
from chreode.learn.epoch import EpochMean
from chreode.model import Model
from chreode.module import Loss, Module, Player, Step
from chreode.nn.blocks import ConditionedLinear
from chreode.nn.queue import Queue
from chreode.nn.target import Target

FEW = ch.Schema(counts="X", label="obs/known")


def labelled(path, n_known=6):
    """Return 300 cells, a few of which have a type."""
    cells = anndata.read_h5ad(path)[:300, :200].copy()
    cells = cells[cells.X.sum(1).A1 > 0].copy()
    types = cells.obs["cell_type"].astype(str)
    known = np.zeros(len(cells), bool)
    known[np.random.default_rng(0).permutation(np.flatnonzero(types != "nan"))[:n_known]] = True
    cells.obs["known"] = types.where(known)
    return cells


@pytest.fixture(scope="module")
def pbmc(real):
    return labelled(real("pbmc3k/pbmc3k_2700.h5ad"))


# A code that an adversary shall not read types from: 29 lines.


class HiddenModule(Module):
    """A linear autoencoder whose code hides the types that some cells have."""

    def __init__(self, n_genes, n_labels, adversary):
        super().__init__()
        self.code, self.genes = nn.Linear(n_genes, 8), nn.Linear(8, n_genes)
        self.guess, self.adversary = nn.Linear(8, n_labels), adversary

    def players(self):
        own = [*self.code.parameters(), *self.genes.parameters()]
        return {"model": own, "adversary": Player(self.guess.parameters(), **self.adversary)}

    def loss(self, batch, step):
        x = batch.log_expression()
        z, known = self.code(x), batch["label"] >= 0
        error = (self.genes(z) - x).square().mean()
        each = F.cross_entropy(self.guess(z), batch["label"].clamp_min(0), reduction="none")
        guess = step.mean(each, known)
        terms = {"of_share": each[known].mean()} if bool(known.any()) else {}
        return Loss({"model": error - 0.1 * guess, "adversary": guess}, {"error": error, **terms})


@config
class Hidden(Model):
    """Types hidden from an adversary."""

    needs: ClassVar = ("counts", "label")
    rate: float = param(1.0, "Of the adversary.")
    every: int = param(1, "Minibatches between its steps.")
    begins: float = param(0.0, "Share of the run without it.")
    watch: str = param("objective", "What epochs are compared by.")
    max_epochs: int = param(6, "Passes.")

    def build(self, spec):
        adversary = {"lr": self.rate, "every": self.every, "begins": self.begins}
        n = spec.n_features("counts"), len(spec.categories["label"])
        return HiddenModule(*n, adversary)

    def phases(self):
        sgd = SGD(lr=1e-3, max_epochs=self.max_epochs, watch=self.watch)
        return [Phase(sgd, data=Shuffled(40))]


def test_an_adversary_moves_at_its_turns_and_at_its_rate(pbmc, monkeypatch):
    seen = []

    def after_step(self, step):
        parameters = self.guess.weight, self.code.weight
        rates = [float(step.rate(p).max()) for p in parameters]
        seen.append((*(p.detach().clone() for p in parameters), *rates))

    monkeypatch.setattr(HiddenModule, "after_step", after_step)
    steps = 8  # of an epoch
    Hidden(rate=5.0, every=3, begins=0.25).fit(pbmc, FEW, validation=0, progress=False)
    assert len(seen) == 6 * steps
    turns = [i for i in range(1, len(seen)) if not torch.equal(seen[i][0], seen[i - 1][0])]
    assert turns == [i for i in range(12, 6 * steps) if i % 3 == 0]
    assert all(not torch.equal(seen[i][1], seen[i - 1][1]) for i in range(1, len(seen)))
    # proximal steps go as far as the gradient did: nowhere, between its turns
    assert [i for i, step in enumerate(seen) if step[2] > 0] == turns
    assert all(step[3] > 0 for step in seen)
    # Adam's first step is the rate itself, wherever the gradient is not small
    first = (seen[12][0] - seen[11][0]).abs().max()
    np.testing.assert_allclose(first, 5e-3, rtol=1e-3)


class ScriptedModule(Module):
    """An objective that falls for ever, and an error that is least in the fourth epoch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, batch, step):
        objective = (self.w - 1).square() + 10 - self.steps
        return Loss({"model": objective}, {"error": (self.steps / 8 - 4).square()})

    def after_step(self, step):
        self.steps += 1


@config
class Scripted(Model):
    """Toy."""

    needs: ClassVar = ("counts",)
    watch: str = param("objective", "What epochs are compared by.")

    def build(self, spec):
        return ScriptedModule()

    def phases(self):
        sgd = SGD(lr=1e-3, max_epochs=12, watch=self.watch, patience=3)
        return [Phase(sgd, data=Shuffled(30))]


@pytest.mark.parametrize(("watch", "epochs", "kept"), [("objective", 12, 12), ("error", 7, 4)])
def test_early_stopping_goes_by_the_term_that_is_watched(pbmc, watch, epochs, kept):
    held_out = np.arange(len(pbmc) - 240)
    fitted = Scripted(watch=watch).fit(
        pbmc, ch.Schema(counts="X"), validation=held_out, progress=False
    )
    assert len(fitted.history) == epochs
    assert int(fitted.module.steps) == 8 * kept
    with pytest.raises(ch.ConfigError, match="no such term. It has objective, error"):
        Scripted(watch="eror").fit(pbmc, ch.Schema(counts="X"), progress=False)


def test_a_term_is_averaged_over_the_minibatches_that_have_it():
    mean = EpochMean("train", Group())
    objective = torch.tensor(1.0)
    for n in range(10):
        terms = {"rare": torch.tensor(2.0)} if n == 4 else {}
        mean.add(Loss({"model": objective}, terms), 30)
    assert mean.result() == {"train_objective": 1.0, "train_rare": 2.0}


def test_the_mean_of_what_is_known_is_that_of_the_known_alone():
    step = Step(Rng(0), 0, 0.0)
    values = torch.arange(6.0).reshape(3, 2).requires_grad_()
    known = torch.tensor([[True, False], [True, True], [False, False]])
    mean = step.mean(values, known)
    (gradient,) = torch.autograd.grad(mean, values)
    assert mean.item() == pytest.approx((0 + 2 + 3) / 3)
    torch.testing.assert_close(gradient, known / 3)
    assert step.mean(values, torch.zeros_like(known)).item() == 0


class QueryModule(Module):
    """A code by batch with a target, a queue and an adversary, as contrastive models have."""

    def __init__(self, spec):
        super().__init__()
        self.code = ConditionedLinear(spec.n_features("counts"), 4, spec.condition_blocks())
        self.target, self.queue, self.guess = Target(self.code), Queue(20, 4), nn.Linear(4, 1)

    def players(self):
        return {"model": self.code.parameters(), "adversary": self.guess.parameters()}

    def loss(self, batch, step):
        x, conditions = batch.log_expression(), batch.conditions()
        one, other = self.code(x, conditions), self.target(x, conditions)
        guess = (self.guess(one) - 1).square().mean()
        own = (one - other).square().mean() + (one.mean() - 1).square()
        return Loss({"model": own - 0.1 * guess, "adversary": guess}, outputs={"keys": one})

    def after_step(self, step):
        assert not step.outputs["keys"].requires_grad
        self.target.follow(self.code, 0.9)
        self.queue.push(step.outputs["keys"])

    def embed(self, batch):
        return self.target(batch.log_expression(), batch.conditions())


@config
class Query(Model):
    """Toy."""

    needs: ClassVar = ("counts", "batch")

    def build(self, spec):
        return QueryModule(spec)

    def phases(self):
        return [Phase(SGD(lr=1e-2, max_epochs=3), data=Shuffled(50))]


def test_mapping_a_query_moves_nothing_that_the_reference_has():
    cells = ch.simulate.simulate_cells(300, 60, n_batches=3, seed=0)
    cells.obs["batch"] = cells.obs["batch"].astype(str)
    new = (cells.obs["batch"] == "batch_2").to_numpy()
    schema = ch.Schema(counts="X", batch="obs/batch")
    reference = Query().fit(cells[~new], schema, progress=False)
    norms = reference.module.queue.keys.norm(dim=1)
    mapped = Query().fit(cells[new], schema, from_=reference, progress=False)
    old, now = reference.module.state_dict(), mapped.module.state_dict()
    assert [name for name in old if not torch.equal(old[name], now[name])] == []
    fresh = [name for name in now if name not in old]
    assert any(name.startswith("code.") for name in fresh)
    few = cells[~new][:20].copy()
    np.testing.assert_array_equal(reference.embed(few.copy()), mapped.embed(few.copy()))
    # while a fit of all of them does move them, and fills the queue
    assert norms.std() > 0
    torch.testing.assert_close(Queue(20, 4).keys.norm(dim=1), torch.ones(20))
