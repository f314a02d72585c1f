"""What a model adds to the verbs: a temperature for `classify` and a shift for `embed`, by 25 lines."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import chreode as ch
from chreode.config import config
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase
from chreode.model import Model
from chreode.module import Loss, Module, Option


def positive(value):
    if not (isinstance(value, float) and 0 < value < math.inf):
        raise ch.ConfigError(f"temperature={value!r}: expected a number above 0.")
    return value


class TypesModule(Module):
    """Types that are linear in log-expression."""

    def __init__(self, n, k):
        super().__init__()
        self.types = nn.Linear(n, k)

    def loss(self, batch, step):
        logits = self.types(batch.log_expression())
        return Loss({"model": nn.functional.cross_entropy(logits, batch["label"])})

    def verb_options(self, verb):
        known = {"temperature": Option(1.0, "Above 1: less sure.", positive)}
        return known if verb == "classify" else {}

    def classify(self, batch, temperature):
        return (self.types(batch.log_expression()) / temperature).softmax(1)

    def embed(self, batch):
        return self.types(batch.log_expression())


@config
class Types(Model):
    """Toy."""

    needs: ClassVar = ("counts", "label")

    def build(self, spec):
        return TypesModule(spec.n_features("counts"), len(spec.categories["label"]))

    def phases(self):
        return [Phase(SGD(lr=1e-2, max_epochs=5), data=Shuffled(64))]


def test_a_verb_takes_what_its_model_adds_and_refuses_what_it_does_not():
    cells = ch.simulate.simulate_cells(200, 40, n_types=3, seed=0)
    fitted = Types().fit(cells, ch.Schema(counts="X", label="obs/cell_type"), progress=False)
    plain, warm = (fitted.classify(cells.copy(), **more) for more in ({}, {"temperature": 4.0}))
    np.testing.assert_array_equal(plain["label"], warm["label"])
    assert (warm["confidence"] < plain["confidence"]).all()
    logits = torch.from_numpy(fitted.embed(cells.copy()))
    expected = (logits / 4).softmax(1).max(1).values
    np.testing.assert_allclose(warm["confidence"], expected, rtol=1e-5)
    with pytest.raises(ch.ConfigError, match="temperature=-1.0: expected"):
        fitted.classify(cells.copy(), temperature=-1.0)
    for verb, wrong in ((fitted.embed, "temperature"), (fitted.classify, "temperatur")):
        with pytest.raises(ch.ArgumentError, match=f"has no argument '{wrong}'"):
            verb(cells.copy(), **{wrong: 2.0})
    with pytest.raises(ch.ArgumentError, match="Did you mean 'temperature'"):
        fitted.classify(cells.copy(), temperatur=2.0)
