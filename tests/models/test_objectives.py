"""The objective of every self-supervised model is the equation of its paper, in NumPy on its own outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chreode import models
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch, SparseRows
from chreode.models.selfsupervised.network import View
from chreode.models.selfsupervised.options import Encoding
from chreode.module import Step
from chreode.nn.augment import coins
from chreode.schema import Spec

KEYS = [key for key in models.keys() if issubclass(models.find(key), Encoding)]  # noqa: SIM118
N, GENES, PROTEINS = 12, 30, 5
#: Which cells have proteins, and which proteins were measured of these.
PRESENT = np.arange(N) % 4 > 0
MEASURED = PRESENT[:, None] & (np.arange(N)[:, None] % 5 != np.arange(PROTEINS))
#: Options that are not the defaults, so that what ignores one is seen.
OPTIONS = {
    "simclr": {"temperature": 0.3},
    "moco": {"temperature": 0.3, "queue": 20},
    "nnclr": {"temperature": 0.3, "queue": 20},
    "vicreg": {"invariance": 2.0, "variance": 3.0, "covariance": 0.7},
    "barlowtwins": {"redundancy": 0.1},
    "maskedautoencoder": {"augment": ("noise",), "mask": 0.3},
    "clear": {"queue": 20},
    "claire": {"queue": 20, "mix": 0.4},
    "concerto": {"dropout": 0.0},
}


def array(x):
    return x.detach().double().numpy()


def unit(x):
    x = array(x) if isinstance(x, torch.Tensor) else x
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosine(one, two):
    return (unit(one) * unit(two)).sum(1).mean()


def surprise(logits, right):
    """Return the mean of −log of the probability of the right entry of each row."""
    rows = np.arange(len(logits))
    return (np.log(np.exp(logits).sum(1)) - logits[rows, right]).mean()


def two_views(module, batch):
    return module.views.draw(batch), module.views.draw(batch)


def projected(network, views):
    return [network(view)[1] for view in views]


def nt_xent(one, two, temperature):
    """Chen et al. (2020), equation 1."""
    z = np.concatenate([unit(one), unit(two)])
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    return surprise(logits, np.roll(np.arange(2 * N), N))


def among_earlier(query, key, queue, temperature):
    """He et al. (2020), equation 1."""
    q, k = unit(query), unit(key)
    own = (q * k).sum(1, keepdims=True)
    return surprise(np.hstack([own, q @ array(queue.held).T]) / temperature, 0)


def simclr(module, batch):
    one, two = projected(module.network, two_views(module, batch))
    return nt_xent(one, two, module.options.temperature), None


def moco(module, batch):
    """The other view's keys are those of the slow copy."""
    one, two = two_views(module, batch)
    (query,), (key,) = projected(module.network, [one]), projected(module.slow, [two])
    return among_earlier(query, key, module.queue, module.options.temperature), unit(key)


def simsiam(module, batch):
    """Chen & He (2021), equation 2."""
    one, two = projected(module.network, two_views(module, batch))
    first, second = module.predictor(one), module.predictor(two)
    return -(cosine(first, two) + cosine(second, one)) / 2, None


def nnclr(module, batch):
    """Dwibedi et al. (2021), equations 2 and 3, and algorithm 1: the bank takes in projections."""
    one, two = projected(module.network, two_views(module, batch))
    bank, total = array(module.bank.held), 0.0
    for z, other in ((one, two), (two, one)):
        neighbour = bank[(unit(z) @ bank.T).argmax(1)]
        logits = neighbour @ unit(module.predictor(other)).T / module.options.temperature
        total += surprise(logits, np.arange(N)) / 2
    return total, unit(one)


def byol(module, batch):
    """Grill et al. (2020), equation 2 and its other direction: each is 2 − 2 times a cosine."""
    views = two_views(module, batch)
    (one, two), (slow_one, slow_two) = (projected(n, views) for n in (module.network, module.slow))
    forth, back = (
        ((unit(module.predictor(z)) - unit(slow)) ** 2).sum(1).mean()
        for z, slow in ((one, slow_two), (two, slow_one))
    )
    return (forth + back) / 4 - 1, None


def vicreg(module, batch):
    """Bardes et al. (2022), equations 1 to 6, on the scales of the authors' code."""
    o = module.options
    z = [array(p) for p in projected(module.network, two_views(module, batch))]
    tables = [np.cov(p.T) for p in z]
    spread = [np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean() for c in tables]
    covary = [(c**2).sum() - (np.diag(c) ** 2).sum() for c in tables]
    total = o.variance * sum(spread) / 2 + o.covariance * sum(covary) / z[0].shape[1]
    return o.invariance * ((z[0] - z[1]) ** 2).mean() + total, None


def barlowtwins(module, batch):
    """Zbontar et al. (2021), equations 1 and 2; 10⁻⁵ is added to variances, as a batch norm does."""
    z = [array(p) for p in projected(module.network, two_views(module, batch))]
    a, b = ((p - p.mean(0)) / np.sqrt(p.var(0) + 1e-5) for p in z)
    c = a.T @ b / N
    others = (c**2).sum() - (np.diag(c) ** 2).sum()
    return ((1 - np.diag(c)) ** 2).sum() + module.options.redundancy * others, None


def maskedautoencoder(module, batch):
    """He et al. (2022), section 3: the error of what was hidden and measured, a mean per modality."""
    view, truth = module.views.draw(batch), module.views.plain(batch)
    seen, hidden = {}, {}
    for role, x in view.values.items():
        hidden[role] = coins(module.options.mask, x.numel(), x.device).view_as(x)
        seen[role] = torch.where(hidden[role], 0, x)
    network, shown = module.network, View(seen, view.present)
    embedded = network.fuse(network.encode(shown), shown)
    measured = {"counts": np.ones((N, GENES), bool), "protein": MEASURED}
    total = 0.0
    for role, known in measured.items():
        x = truth.values[role]
        x = array(x.dense() if isinstance(x, SparseRows) else x)
        error = array(module.decoders[role](embedded)) - x
        total += (error[hidden[role].numpy() & known] ** 2).mean()
    return total, None


def claire(module, batch):
    """Yan et al. (2023): a cell and its positive, each moved towards a neighbour, are both queries."""
    cell, near, positive, near_positive = batch.aligned(4)
    views = module.views.draw(cell, near), module.views.draw(positive, near_positive)
    (one, two), (slow_one, slow_two) = (projected(n, views) for n in (module.network, module.slow))
    by = module.queue, module.options.temperature
    both = among_earlier(one, slow_two, *by), among_earlier(two, slow_one, *by)
    return np.mean(both), np.concatenate([unit(slow_two), unit(slow_one)])


def concerto(module, batch):
    """The teacher sees one view, and the student the other one."""
    one, two = two_views(module, batch)
    (teacher,), (student,) = projected(module.network, [one]), projected(module.student, [two])
    return nt_xent(teacher, student, module.options.temperature), None


def scclip(module, batch):
    """Radford et al. (2021), figure 3, over the cells that have both kinds of measurements."""
    places = module.network.encode(module.views.draw(batch))
    rna, protein = (unit(places[role][torch.from_numpy(PRESENT)]) for role in ("counts", "protein"))
    logits = rna @ protein.T * np.exp(float(module.scale.detach()))
    right = np.arange(PRESENT.sum())
    return (surprise(logits, right) + surprise(logits.T, right)) / 2, None


EQUATIONS = {
    **{f.__name__: f for f in (simclr, moco, simsiam, nnclr, byol, vicreg, barlowtwins)},
    **{f.__name__: f for f in (maskedautoencoder, claire, concerto, scclip)},
    "clear": moco,
}


def built(key):
    """Return a module in training, with a slow copy, if it has one, that is not like the network."""
    features = {"counts": tuple(f"g{i}" for i in range(GENES))}
    if key in ("maskedautoencoder", "scclip"):
        features["protein"] = tuple(f"p{i}" for i in range(PROTEINS))
    options = {"n_latent": 6, "n_hidden": 8, "augment": ("mask",), "chance": 1.0, "mask": 0.3}
    with Rng(0).scope("init"):
        model = models.find(key)(**{**options, **OPTIONS.get(key, {})})
        module = model.build(Spec(tuple(features), features, n_cells=40)).train()
        for weight in module.slow.parameters() if hasattr(module, "slow") else ():
            weight.add_(0.3 * torch.randn_like(weight))
    return module


def minibatch(module):
    rng, n = np.random.default_rng(0), N * (1 + module.options.n_partners)
    views = {"counts": torch.from_numpy(rng.poisson(3.0, (n, GENES)).astype(np.float32))}
    if "protein" not in module.spec.features:
        return CellBatch(torch.arange(n), views)
    proteins = np.where(MEASURED, rng.poisson(9.0, MEASURED.shape), np.nan).astype(np.float32)
    there = {"protein": torch.from_numpy(PRESENT)}
    return CellBatch(torch.arange(n), {**views, "protein": torch.from_numpy(proteins)}, there)


@pytest.mark.parametrize("key", KEYS)
def test_the_objective_is_the_equation_of_the_paper(key):
    """And what a queue or a bank takes in after the step are the keys, or the projections, of length 1."""
    module, step = built(key), Step(Rng(0), 0, 0.0)
    batch = minibatch(module)
    torch.manual_seed(1)
    loss = module(batch, step)
    torch.manual_seed(1)
    expected, keys = EQUATIONS[key](module, batch)
    assert loss.objectives["model"].item() == pytest.approx(expected, rel=1e-5)
    if keys is None:
        assert not loss.outputs
        return
    earlier = module.bank if key == "nnclr" else module.queue
    module.after_step(replace(step, outputs={k: v.detach() for k, v in loss.outputs.items()}))
    last = keys[-20:]
    held = torch.roll(earlier.held, -int(earlier.at), 0)[-len(last) :]
    np.testing.assert_allclose(held.numpy(), last, atol=1e-6)
