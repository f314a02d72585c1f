"""Batch norm: in training that of torch, and afterwards of minibatches alone, however few there were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from chreode.nn import blocks
from chreode.nn.blocks import BatchNorm

MOMENTUM = 0.01


def minibatches(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor([500.0, -3.0, 0.0])
    return [level + (i + 1) * torch.randn(20, 3, generator=generator) for i in range(n)]


def test_running_statistics_are_weighted_means_of_minibatches():
    """A loop in double precision, with the weights of Adam's means (Kingma & Ba 2015, section 3)."""
    norm, seen = BatchNorm(3, momentum=MOMENTUM), minibatches(7)
    for x in seen:
        norm(x)
    weights = (1 - MOMENTUM) ** np.arange(7)[::-1]
    for running, of in ((norm.running_mean, torch.mean), (norm.running_var, torch.var)):
        each = np.stack([of(x.double(), 0).numpy() for x in seen])
        np.testing.assert_allclose(running, np.average(each, 0, weights), rtol=2e-5, atol=1e-5)


def test_training_and_long_fits_are_those_of_torch():
    ours, theirs = BatchNorm(3, momentum=0.1), nn.BatchNorm1d(3, momentum=0.1)
    for x in minibatches(200):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    x = minibatches(1, seed=1)[0]
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_several_processes_are_as_one(monkeypatch, kind):
    """In mixed precision too: neither numbers of cells nor running statistics are of 16 bits."""
    monkeypatch.setattr(blocks, "total", lambda x: x)
    alone, joint = BatchNorm(3, momentum=MOMENTUM), BatchNorm(3, momentum=MOMENTUM)
    joint.joint = True
    for x in minibatches(3):
        x = x.repeat(15, 1)[:299].to(kind)
        out = joint(x)
        assert out.dtype == kind
        torch.testing.assert_close(out, alone(x), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(joint.running_mean, alone.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joint.running_var, alone.running_var, rtol=1e-4, atol=1e-4)
