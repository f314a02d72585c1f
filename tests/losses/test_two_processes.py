"""Two processes over gloo have loss and gradient of the joint minibatch: losses that gather, and models.

Run by torchrun, this file is what each process does: ``test_two_processes.py FOLDER``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from two_processes import found_by, tell

import chreode as ch
from chreode.compute.processes import Group
from chreode.compute.rng import Rng
from chreode.data.align import learn_spec, open_source
from chreode.data.batch import CellBatch
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells
from chreode.losses.barlowtwins import barlow_twins
from chreode.losses.clip import clip
from chreode.losses.infonce import among_keys
from chreode.losses.masked import masked_error
from chreode.losses.nnclr import nnclr
from chreode.losses.ntxent import nt_xent
from chreode.losses.sphere import uniformity
from chreode.losses.vicreg import vicreg
from chreode.module import Step
from chreode.nn.blocks import share_statistics
from chreode.schema import Spec

COUNTS = ch.Schema(counts="layers/counts")
BANK = torch.from_numpy(np.random.default_rng(9).normal(size=(8, 5)))
LOSSES = {
    "nt_xent": lambda a, b, group: nt_xent(a, b, 0.3, group),
    "among_keys": lambda a, b, group: among_keys(a, b, 0.3, group),
    "clip": lambda a, b, group: clip(a, b, 0.3, group),
    "nnclr": lambda a, b, group: nnclr(a, b, a.sin(), b.sin(), BANK, 0.3, group),
    "barlow_twins": lambda a, b, group: barlow_twins(a, b, 0.1, group),
    "vicreg": lambda a, b, group: sum(vicreg(0.3 * a, 0.3 * b, group)),
    "uniformity": lambda a, b, group: uniformity(a, 2.0, group) + uniformity(b, 1.0, group),
    # the first process hides nearly nothing of its cells, the second one nearly all
    "masked_error": lambda a, b, group: masked_error(a, b, b > b[:, :1], group),
}
#: Models, with options for so few cells.
FULL = {
    "SimCLR": {}, "MoCo": {"queue": 50}, "SimSiam": {}, "NNCLR": {"queue": 50}, "BYOL": {},
    "VICReg": {}, "BarlowTwins": {}, "MaskedAutoencoder": {},
}  # fmt: skip
#: Further models in one step, with options without anything drawn, which would be drawn otherwise in every
#: process.
ONCE = {
    "CLEAR": {}, "CLAIRE": {"mix": 1.0}, "Concerto": {"dropout": 0.0}, "ScCLIP": {}
}  # fmt: skip
N = 22


def gradients(group, *, gathered=True):
    """Return, by loss, its value and the gradient of all rows of 11 cells; two processes have 6 and 5."""
    r = np.random.default_rng(0)
    views, found = [torch.from_numpy(r.normal(size=(11, 5))) for _ in range(2)], {}
    for name, loss in LOSSES.items():
        rows = group.share(np.arange(11))
        one, two = (x[rows].clone().requires_grad_() for x in views)
        value = loss(one, two, group if gathered else Group()) * (len(rows) / 11)
        slopes = torch.zeros(2, 11, 5, dtype=torch.float64)
        of_each = torch.autograd.grad(value, (one, two), allow_unused=True)
        for slope, part in zip(slopes, of_each, strict=True):
            slope[rows] = torch.zeros_like(one) if part is None else part
        value = value.detach()
        group.add([value, slopes])
        found[name] = [value.item(), *slopes.flatten().tolist()]
    return found


def steps(group, name):
    """Return what three steps of a model leave in float64: loss, gradient, and all that no gradient moves.

    Both views are the cells as they are, as noise would be other noise in every process.
    """
    torch.set_default_dtype(torch.float64)
    cells = simulate_cells(150, 40, seed=0)
    spec = learn_spec(Cells(cells, COUNTS), ["counts"], np.arange(150))
    source = open_source(Cells(cells, COUNTS), spec, ["counts"], {})
    model = getattr(ch, name)(n_latent=6, augment=(), mask=0.01, **FULL[name])
    with Rng(0).scope("init"):
        module = model.build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    if name == "MaskedAutoencoder":
        hide_by_place(module)
    weights, kept = [p for p in module.parameters() if p.requires_grad], {}
    for index in range(3):
        rows = np.random.default_rng(index).permutation(150)[:41]
        mine = group.share(rows)
        step = Step(Rng(0), index, index / 3, group=group)
        loss = module(in_double(source.batch(mine)), step)
        share = len(mine) / len(rows)
        found = [
            (share * loss.objectives["model"]).detach(),
            *torch.autograd.grad(share * loss.objectives["model"], weights),
        ]
        group.add(found)
        with torch.no_grad():
            for weight, slope in zip(weights, found[1:], strict=True):
                weight -= 0.1 * slope
        outputs = {k: v.detach() for k, v in loss.outputs.items()}
        module.after_step(Step(Rng(0), index, index / 3, group=group, outputs=outputs))
        kept[f"loss {index}"] = [found[0].item()]
        kept[f"gradient {index}"] = torch.cat([t.flatten() for t in found[1:]]).tolist()
    state = {k: v.double().flatten().tolist() for k, v in module.state_dict().items()}
    torch.set_default_dtype(torch.float32)
    return kept | state


def in_double(batch):
    """Return the same cells with counts in float64."""
    counts = batch.views["counts"]
    counts = (
        counts.double() if isinstance(counts, torch.Tensor) else counts.map(counts.values.double())
    )
    return type(batch)(batch.rows, {"counts": counts})


def hide_by_place(module):
    """Hide what depends on the value alone, where coins would be others in every process."""
    from chreode.models import maskedautoencoder

    maskedautoencoder.coins = lambda share, n, device: torch.arange(n, device=device) % 40 % 3 == 0


def one_step(group, name):
    """Return loss, gradient and, of those with one, the queue after a step of 22 cells."""
    torch.set_default_dtype(torch.float64)
    features = {"counts": tuple(f"g{i}" for i in range(30))}
    if name == "ScCLIP":
        features["protein"] = tuple(f"p{i}" for i in range(5))
    spec = Spec(tuple(features), features, n_cells=N)
    with Rng(0).scope("init"):
        module = getattr(ch, name)(n_latent=6, augment=(), **ONCE[name]).build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    rows = group.share(np.arange(N))
    r = np.random.default_rng(0)
    # cells beyond the first are partners
    of_each = [r.poisson(2.0, (N, 30 if k < 4 else 5)).astype(float) for k in range(5)]
    several = 4 if name == "CLAIRE" else 1
    views = {"counts": np.concatenate([table[rows] for table in of_each[:several]])}
    present = {}
    if name == "ScCLIP":  # most cells of the second process lack proteins
        views["protein"] = of_each[4][rows]
        present["protein"] = torch.from_numpy((np.arange(N) < 13)[rows])
    tensors = {role: torch.from_numpy(table) for role, table in views.items()}
    batch = CellBatch(torch.arange(len(rows) * several), tensors, present)
    step = Step(Rng(0), 0, 0.0, group=group)
    loss = module.train()(batch, step)
    objective = loss.objectives["model"] * (len(rows) / N)
    weights = [p for p in module.parameters() if p.requires_grad]
    values = [objective.detach(), *torch.autograd.grad(objective, weights)]
    group.add(values)
    if loss.outputs:
        outputs = {k: v.detach() for k, v in loss.outputs.items()}
        module.after_step(Step(Rng(0), 0, 0.0, group=group, outputs=outputs))
        # of CLAIRE both keys of the first process come before those of the second
        values.append(module.queue.held.sort(0).values)
    torch.set_default_dtype(torch.float32)
    return torch.cat([v.flatten() for v in values]).tolist()


def find(group):
    """Return what this process finds."""
    return {
        "joint": gradients(group), "own": gradients(group, gathered=False),
        **{name: steps(group, name) for name in FULL},
        **{name: one_step(group, name) for name in ONCE},
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and what each of two found."""
    return found_by(__file__, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_of_every_loss_are_those_of_the_joint_minibatch(found, name):
    (alone,), both = found["alone"], found["distributed"]
    assert len(both) == 2
    expected = np.array(alone["joint"][name])
    assert alone["own"][name] == alone["joint"][name]
    for one in both:
        largest = np.abs(expected).max()
        np.testing.assert_allclose(one["joint"][name], expected, atol=1e-12 * largest, rtol=1e-11)
        # with its own share alone it would be another objective
        assert np.abs(np.array(one["own"][name]) - expected).max() > 1e-3 * largest


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_models_learn_in_two_processes_what_they_learn_in_one(found, name):
    """Loss, gradient, slow copies and queues after three steps; both processes have the same bits."""
    (alone,), (first, second) = found["alone"], found["distributed"]
    assert first[name] == second[name]
    largest = max(np.abs(v).max() for v in alone[name].values())
    assert first[name].keys() == alone[name].keys()
    for part, expected in alone[name].items():
        np.testing.assert_allclose(
            first[name][part], expected, atol=1e-11 * largest, rtol=1e-10, err_msg=part
        )
    queue = [part for part in alone[name] if part.endswith(".at")]
    assert [alone[name][part] for part in queue] == [[float(3 * 41 % 50)]] * len(queue)
    assert bool(queue) == ("queue" in FULL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ONCE)
def test_a_step_of_these_is_that_of_the_joint_minibatch(found, name):
    (alone,), both = found["alone"], found["distributed"]
    expected = np.array(alone[name])
    for one in both:
        np.testing.assert_allclose(
            one[name], expected, rtol=1e-9, atol=1e-11 * np.abs(expected).max()
        )


if __name__ == "__main__":
    tell(find)
