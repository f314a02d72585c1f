"""A damaged checkpoint is refused as such, with what to do, or goes on to the very same fit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from fuzz.common import examples
from fuzz.test_store import damage
from hypothesis import event, given
from hypothesis import strategies as st

import chreode as ch
from chreode import store

pytestmark = pytest.mark.slow
SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch")
FILE = "phase0.safetensors"


class Interrupted:
    """A fit that was cut off after half of its epochs, and how it ends if it goes on."""

    def __init__(self, model, cells, folder):
        self.model, self.cells, self.folder = model, cells, folder
        self.whole = self.fit(folder / "whole")
        self.half = folder / "half"
        epochs = []

        def tick(*_):
            epochs.append(1)
            if len(epochs) == model.max_epochs // 2 + 1:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            from chreode.learn.sgd import _Loop

            plain = _Loop.run_epoch
            patch.setattr(_Loop, "run_epoch", lambda loop: (tick(), plain(loop))[1])
            with pytest.warns(UserWarning, match="interrupted"):
                self.fit(self.half)

    def fit(self, checkpoint):
        return self.model.fit(self.cells, SCHEMA, seed=1, checkpoint=checkpoint, progress=False)

    def __repr__(self):
        return self.model.key


@pytest.fixture(scope="module", params=[ch.SCVI, ch.VAE])
def interrupted(request, _simulated, tmp_path_factory):
    model = request.param(max_epochs=4, n_hidden=8, n_latent=3, batch_size=64, patience=4)
    return Interrupted(
        model, _simulated[:100, :30].copy(), tmp_path_factory.mktemp("fits") / model.key
    )


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def resumes_or_refuses(interrupted, state):
    """Go on: an error that says what to do, or the bits of the fit that nobody cut off."""
    try:
        fitted = interrupted.fit(state)
    except ch.StoreError as error:
        event("refused")
        if "Remove it" not in str(error):
            raise
        return
    event("resumed")
    ours, theirs = fitted.module.state_dict(), interrupted.whole.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    histories = [f.history.drop(columns="seconds").to_numpy() for f in (fitted, interrupted.whole)]
    assert np.array_equal(*(h[:, :-1].astype(float) for h in histories), equal_nan=True)


@examples(60)
@given(data=st.data())
def test_damaged_bytes(interrupted, state, data):
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(interrupted.half, state)
    (state / FILE).write_bytes(damage(data, (state / FILE).read_bytes()))
    resumes_or_refuses(interrupted, state)


@examples(40)
@given(data=st.data())
def test_other_states(interrupted, state, data):
    """Weights and counters that are lost or of another shape, with a hash that fits them."""
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(interrupted.half, state)
    tensors, told = store.read_tensors(state / FILE)
    # torch itself fills in a counter of minibatches that is missing
    weights = [n for n in sorted(tensors) if not n.startswith("optimiser/") and "tracked" not in n]
    for name in data.draw(st.lists(st.sampled_from(weights), max_size=2, unique=True)):
        tensor = tensors.pop(name)
        if data.draw(st.booleans()):
            tensors[name] = tensor.new_zeros((*tensor.shape, 2))
    for name in data.draw(st.lists(st.sampled_from(sorted(told)), max_size=2, unique=True)):
        told.pop(name)
    store.write_tensors(state / FILE, tensors, told)
    resumes_or_refuses(interrupted, state)


@examples(8)
@given(kind=st.sampled_from(["folder", "link to nothing", "absent", "link"]))
def test_other_things_in_its_place(interrupted, state, kind):
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    if kind == "folder":
        (state / FILE).mkdir()
    elif kind == "link to nothing":
        (state / FILE).symlink_to(state / "nothing")
    elif kind == "link":
        shutil.copy(interrupted.half / FILE, state / "elsewhere")
        (state / FILE).symlink_to(state / "elsewhere")
    resumes_or_refuses(interrupted, state)
