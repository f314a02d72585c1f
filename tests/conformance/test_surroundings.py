"""Every model in a process that is not its own: folders and settings of the user's stay as they are."""

from __future__ import annotations

import pytest

from chreode import models
from chreode.learn.phase import forget


@pytest.fixture(params=models.keys())
def model(request, quick):
    return quick(models.find(request.param))


@pytest.fixture
def roles(model, schema):
    """Return the roles of the simulated cells, with those of time if the model needs them."""
    timed = {"time": "obs/day", "trajectory": "obs/donor"}
    return schema.with_(**timed) if "time" in model.needs else schema


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_nothing_is_removed_but_the_states_that_a_fit_has_kept(model, roles, cells, tmp_path):
    gradients = any(phase.learner.validates for phase in model.phases())
    state, theirs = tmp_path / "state", ["phase9.safetensors", "sub/phase0.safetensors", "thesis"]
    if not gradients:
        theirs.append("phase0.safetensors")
    for name in theirs:
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("years of work")
    model.fit(cells, roles, checkpoint=state)
    assert (tree(state) != sorted(theirs)) == gradients
    forget(state, model.phases())
    assert tree(state) == sorted(theirs)
