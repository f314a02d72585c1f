"""Negatives of the joint minibatch: two processes over gloo learn what one learns, gradient included.

Run by torchrun, this file is what each process does: ``test_gather.py FOLDER KIND BLOOD SCREEN``.
"""

from __future__ import annotations

from typing import ClassVar

import anndata
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from two_processes import found_by, tell

import chreode as ch
from chreode.compute.processes import Group
from chreode.config import config, param
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase, Rng
from chreode.model import Model
from chreode.module import Loss, Module, Step
from chreode.nn.blocks import MLP, share_statistics

COUNTS = ch.Schema(counts="X")


def blood(path, n_cells=600, n_genes=300):
    """Return some cells and their most variable genes."""
    data = anndata.read_h5ad(path)[:n_cells]
    variance = np.log1p(data.X.toarray()).var(0)
    return data[:, np.sort(np.argsort(-variance)[:n_genes])].copy()


# SimCLR (Chen et al. 2020, equation 1), of which the halves of a cell's genes are the views: 32 lines.


class SimCLRModule(Module):
    """Each half of a cell's genes finds the other among those of all cells of the minibatch."""

    def __init__(self, n, dropout):
        super().__init__()
        self.dropout = dropout
        self.encoder = nn.Sequential(MLP(n, [64], momentum=0.1), nn.Linear(64, 16))
        self.register_buffer("odd", (torch.arange(n) % 2).float())

    def loss(self, batch, step):
        x = F.dropout(batch.log_expression().to(self.odd), self.dropout, self.training)
        views = [self.encoder(x * part) for part in (self.odd, 1 - self.odd)]
        z = F.normalize(torch.stack(views, 1), dim=2)
        every, at = step.group.gather(z)
        objective, top = 0, 0
        for i in (0, 1):
            other, same = (z[:, i] @ every[:, j].T / 0.1 for j in (1 - i, i))
            same = same.scatter(1, at[:, None], -torch.inf)  # not a cell with itself
            objective = objective + F.cross_entropy(torch.cat([other, same], 1), at) / 2
            top = top + (other.argmax(1) == at).to(z).mean() / 2
        return Loss({"model": objective}, {"top": top})

    def embed(self, batch):
        return self.encoder(batch.log_expression())


@config
class SimCLR(Model):
    """A simple framework for contrastive learning."""

    needs: ClassVar = ("counts",)
    lr: float = param(3e-3, "Learning rate.")
    dropout: float = param(0.0, "Of genes.")
    max_epochs: int = param(6, "Passes.")

    def build(self, spec):
        return SimCLRModule(spec.n_features("counts"), self.dropout)

    def phases(self):
        return [Phase(SGD(lr=self.lr, max_epochs=self.max_epochs), data=Shuffled(101))]


def gradient(group, data, *, gathered=True):
    """Return loss and gradient in float64 of a minibatch of 101 cells, shared out unequally."""
    torch.set_default_dtype(torch.float64)
    spec = learn_spec(Cells(data, COUNTS), ["counts"], np.arange(len(data)))
    source = open_source(Cells(data, COUNTS), spec, ["counts"], {})
    with Rng(0).scope("init"):
        module = SimCLR().build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    rows = np.random.default_rng(0).permutation(len(data))[:101]
    mine = group.share(rows)
    step = Step(Rng(0), 0, 0.0, group=group if gathered else Group())
    loss = module(source.batch(mine), step).objectives["model"] * (len(mine) / len(rows))
    found = [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]
    group.add(found)
    torch.set_default_dtype(torch.float32)
    names = ["loss", *(name for name, _ in module.named_parameters())]
    return {n: t.flatten().tolist() for n, t in zip(names, found, strict=True)}


def pieces(group):
    """Return what is gathered of unlike shares, and the gradient of a sum of it weighed by process."""
    x = torch.arange(6.0).reshape(3, 2)[: 3 - group.rank].requires_grad_()
    whole, at = group.gather(x)
    weights = torch.arange(1.0, len(whole) + 1)[:, None] * (group.rank + 1)
    (found,) = torch.autograd.grad((whole * weights).sum(), x)
    return {"whole": whole.tolist(), "at": at.tolist(), "gradient": found.tolist()}


def ended(fitted):
    """Return history and weights."""
    history = fitted.history.drop(columns=["seconds", "phase"])
    weights = {k: v.double().flatten().tolist() for k, v in fitted.module.state_dict().items()}
    return {"history": history.to_dict("list"), "weights": weights}


def find(group, cells, screened):
    """Return what this process finds of the cells of two files."""
    from test_partners import SCREEN, Response, screen
    from test_players import FEW, Hidden, labelled
    from test_targets_and_queues import MoCo

    how = {"validation": 1 / 6, "distributed": not group.alone, "progress": False}
    data = blood(cells)
    return {
        "joint": gradient(group, data), "own": gradient(group, data, gathered=False), "pieces": pieces(group),
        "SimCLR": ended(SimCLR().fit(data, COUNTS, **how)), "MoCo": ended(MoCo().fit(data, COUNTS, **how)),
        "Response": ended(Response(max_epochs=8).fit(screen(screened), SCREEN, **how)),
        # of three labelled cells most shares of a minibatch have none
        "Hidden": ended(Hidden(every=2).fit(labelled(cells, 3), FEW, **how)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(real, tmp_path_factory):
    """What one process found, and what each of two found."""
    files = [
        real("pbmc3k/pbmc3k_2700.h5ad"),
        real("papalexi_eccite_crispr/papalexi_20729x299.h5ad"),
    ]
    return found_by(__file__, tmp_path_factory, *files)


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_the_joint_minibatch(found):
    (alone,), both = found["alone"], found["distributed"]
    assert len(both) == 2
    largest = max(np.abs(v).max() for v in alone["joint"].values())
    for one in both:
        for name, expected in alone["joint"].items():
            np.testing.assert_allclose(
                one["joint"][name], expected, atol=1e-12 * largest, rtol=1e-11, err_msg=name
            )
        # with negatives of its own share alone it is another objective
        assert one["own"]["loss"][0] < alone["joint"]["loss"][0] - 0.3
        assert alone["own"] == alone["joint"]


@pytest.mark.slow
def test_a_row_has_the_gradient_that_all_processes_have_for_it(found):
    (alone,), (first, second) = (
        [one["pieces"] for one in found[kind]] for kind in ("alone", "distributed")
    )
    rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert alone == {"whole": rows, "at": [0, 1, 2], "gradient": [[1, 1], [2, 2], [3, 3]]}
    assert first["whole"] == second["whole"] == [*rows, *rows[:2]]
    assert (first["at"], second["at"]) == ([0, 1, 2], [3, 4])
    # of the weights 1 to 5 in the first process and twice as much in the second
    assert first["gradient"] == [[3, 3], [6, 6], [9, 9]]
    assert second["gradient"] == [[12, 12], [15, 15]]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SimCLR", "MoCo", "Response", "Hidden"])
def test_whole_fits_agree_and_both_processes_end_with_the_same_bits(found, model):
    """Keys of a queue are those of all processes, pairs are weighed by their anchors, labels count alike."""
    (alone,), (first, second) = found["alone"], found["distributed"]
    assert first[model] == second[model]
    one, shared = alone[model], first[model]
    assert one["history"].keys() == shared["history"].keys()
    for name, values in one["history"].items():
        if "top" not in name and "share" not in name:  # ranks jump, and shares differ
            np.testing.assert_allclose(shared["history"][name], values, rtol=2e-3, err_msg=name)
    for name in {
        "MoCo": ["queue.keys", "queue.at"],
        "Response": ["effect"],
        "Hidden": ["guess.weight"],
    }.get(model, []):
        np.testing.assert_allclose(
            shared["weights"][name], one["weights"][name], atol=5e-3, err_msg=name
        )


@pytest.mark.slow
def test_halves_of_held_out_cells_find_each_other(real):
    """Of 100 held-out cells; what has learned nothing finds one."""
    data, found = blood(real("pbmc3k/pbmc3k_2700.h5ad"), 1500, 600), {}
    for lr in (1e-9, 1e-3):
        model = SimCLR(lr=lr, dropout=0.5, max_epochs=10)
        history = model.fit(data, COUNTS, validation=1 / 15, progress=False).history
        found[lr] = history[["validation_top", "validation_objective"]].iloc[-1]
    assert found[1e-9].iloc[0] < 0.04
    assert found[1e-3].iloc[0] > 0.07
    assert found[1e-3].iloc[1] < np.log(199) - 0.8 < found[1e-9].iloc[1]


if __name__ == "__main__":
    tell(find)
