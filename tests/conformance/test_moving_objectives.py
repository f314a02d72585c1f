"""An objective may change along a fit for as long as the learner is told, and no longer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conformance.test_every_model import needed

from chreode import models
from chreode.learn import SGD
from chreode.learn import sgd as sgd_module
from chreode.module import Step

CLASSES = [models.find(key) for key in models.keys()]  # noqa: SIM118 (a function)


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if any(isinstance(p.learner, SGD) for p in c().phases())]
)
def test_warm_ups_are_over_when_the_learner_says_so(cls, quick, cells, schema, monkeypatch):
    plain, seen = sgd_module._Loop.run_epoch, set()

    def run_epoch(self):
        drawn = self.sampler.held_out(self.source, self.split.train, np.random.default_rng(0))
        batch = next(self._minibatches(drawn))
        values = []
        self.target.eval()
        for progress in (self.sgd.settle, 0.5 * (1 + self.sgd.settle), 1.0):
            step = Step(self.run.rng, self.index, progress)
            with self.run.rng.scope("noise", 0), torch.no_grad():
                values.append([float(v) for v in self.target(batch, step).objectives.values()])
        assert values[0] == values[1] == values[2], self.sgd
        seen.add(type(self.target).__name__)
        return plain(self)

    monkeypatch.setattr(sgd_module._Loop, "run_epoch", run_epoch)
    few = cells[:100, :30].copy()
    quick(cls).fit(few, schema.with_(**needed(cls)), seed=0)
    assert seen
