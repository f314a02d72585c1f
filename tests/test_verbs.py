"""What all verbs promise, whichever model is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import chreode as ch
from chreode import verbs


@pytest.fixture(scope="module")
def fitted(_simulated, quick):
    schema = ch.Schema(counts="layers/counts", batch="obs/batch")
    return quick(ch.SCVI).fit(_simulated.copy(), schema, progress=False)


@pytest.mark.parametrize("verb", ["generate", "predict", "reconstruct"])
def test_a_result_that_cannot_be_kept_leaves_torch_as_it_was(fitted, cells, monkeypatch, verb):
    """Notebooks hold on to the last traceback, and with it to whatever was left in the middle."""

    def full(chunks, *_, **__):
        next(iter(chunks))
        raise OSError("no space left on device")

    monkeypatch.setattr(verbs, "collect_cells", full)
    ask = {
        "generate": lambda: fitted.generate(20, progress=False),
        "predict": lambda: fitted.predict(cells, to={}, progress=False),
        "reconstruct": lambda: fitted.reconstruct(cells, progress=False),
    }[verb]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global one is meant)
    with pytest.raises(OSError, match="no space") as held:
        ask()
    assert held.tb is not None
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    fitted.model.fit(cells, fitted.schema, progress=False)  # which an inference mode would refuse
