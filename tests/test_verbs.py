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


@pytest.mark.parametrize("number", [np.int64(3), np.float32(3), np.array(3), 3])
def test_numbers_of_numpy_are_conditions_as_those_of_python_are(fitted, cells, quick, number):
    """As the largest value of a column is one."""
    cells.obs["rank"] = np.arange(cells.n_obs) % 4
    schema = fitted.schema.with_(continuous=("obs/rank",))
    of_ranks = quick(ch.SCVI).fit(cells, schema, progress=False)
    to, plain = {"rank": number}, {"rank": 3}
    for verb, asked, expected in (
        ("generate", (5,), {"given": plain}),
        ("predict", (cells,), {"to": plain}),
        ("reconstruct", (cells,), {"to": plain}),
    ):
        ask = getattr(of_ranks, verb)
        found = ask(*asked, **dict.fromkeys(expected, to), progress=False)
        same = ask(*asked, **expected, progress=False)
        assert (found.X != same.X).sum() == 0
        assert found.uns["chreode"][verb].replace("3.0", "3") == same.uns["chreode"][verb]
