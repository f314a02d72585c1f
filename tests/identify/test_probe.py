"""The linear probe of the image experiment: scikit-learn's minimum, and no say of test images."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from chreode.identify.imaging import probe as probing
from chreode.identify.imaging.data import parts
from chreode.identify.imaging.probe import Probe

grid = importlib.import_module("chreode.identify.images")  # the function has the same name


def blobs(n, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    x = 5 + 1e-2 * (np.eye(3, 6)[y] * 3 + spread * rng.normal(size=(n, 6)))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def test_the_probe_is_as_good_as_scikit_learns():
    (x, y), unseen, test = blobs(400, 0, 1.5), blobs(300, 1, 1.5), blobs(3000, 2, 1.5)
    found = Probe.fit(x, y, *unseen, 3)
    scale = x.std(0).mean()
    wanted = LogisticRegression().fit((x - x.mean(0)) / scale, y)
    recall = found.recall(*test)
    ours = recall[test[1]].mean().item()
    assert ours > wanted.score((test[0] - x.mean(0)) / scale, test[1]) - 0.02
    named = (test[0] @ found.weights + found.bias).argmax(1)
    for k in range(3):
        assert recall[k].item() == pytest.approx((named[test[1] == k] == k).float().mean().item())


def test_the_probe_minimises_the_penalised_loss(monkeypatch):
    """With one penalty and validation images that the last step names best, it is scikit-learn's minimum."""
    monkeypatch.setattr(probing, "PENALTIES", (0.05,))
    monkeypatch.setattr(probing, "EPOCHS", 600)
    weights = []
    keep = torch.optim.Adam.step

    def step(adam, *args, **kwargs):
        weights[:] = [p.detach().clone() for p in adam.param_groups[0]["params"]]
        return keep(adam, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    x, y = blobs(400, 0, 2.0)
    Probe.fit(x, y, x, y, 3)
    scale = x.var(0, correction=0).mean().sqrt()
    # scikit-learn's objective is C x the sum of losses + half the squared weights
    wanted = LogisticRegression(C=1 / (2 * 0.05 * len(x)), tol=1e-8, max_iter=5000)
    wanted.fit(((x - x.mean(0)) / scale).numpy(), y)
    np.testing.assert_allclose(weights[0][:, 0].T, wanted.coef_, atol=2e-3)


def test_validation_is_the_accuracy_of_what_was_kept():
    (x, y), (unseen, of_unseen) = blobs(100, 0, 2.0), blobs(200, 1, 2.0)
    found = Probe.fit(x, y, unseen, of_unseen, 3)
    named = (unseen @ found.weights + found.bias).argmax(1)
    assert found.validation == pytest.approx((named == of_unseen).float().mean().item(), abs=0.006)
    assert 1 <= found.epoch <= probing.EPOCHS
    assert found.penalty in probing.PENALTIES


def chosen(probe):
    return probe.penalty, probe.epoch, probe.validation


def test_validation_images_choose_and_test_images_do_not(monkeypatch):
    kept = []
    fit = Probe.fit.__func__
    monkeypatch.setattr(
        Probe, "fit", classmethod(lambda cls, *args: kept.append(fit(cls, *args)) or kept[-1])
    )
    z, y = blobs(500, 0, 2.5)
    rows = parts(y.numpy(), 0)
    shuffled = {}
    for part in ("test", "validation"):
        of = getattr(rows, part)
        shuffled[part] = y.numpy().copy()
        shuffled[part][of] = np.random.default_rng(1).permutation(shuffled[part][of])
    names = list("abc")
    honest = grid.scored(z, y.numpy(), rows, names)
    other_test = grid.scored(z, shuffled["test"], rows, names)
    grid.scored(z, shuffled["validation"], rows, names)
    assert chosen(kept[0]) == chosen(kept[1])
    assert torch.equal(kept[0].weights, kept[1].weights)
    assert torch.equal(kept[0].bias, kept[1].bias)
    assert other_test["accuracy"] < honest["accuracy"] - 0.2
    assert chosen(kept[0]) != chosen(kept[2])
    # a probe that is chosen on test images, as in the published code, is told apart by the same test
    leaky = rows._replace(validation=rows.test)
    for labels in (y.numpy(), shuffled["test"]):
        grid.scored(z, labels, leaky, names)
    assert chosen(kept[3]) != chosen(kept[4])


def test_test_images_are_scored_once(monkeypatch):
    calls = []
    recall = Probe.recall
    monkeypatch.setattr(Probe, "recall", lambda *args: calls.append(1) or recall(*args))
    z, y = blobs(100, 0)
    grid.scored(z, y.numpy(), parts(y.numpy(), 0), list("abc"))
    assert len(calls) == 1
