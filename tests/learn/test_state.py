"""One word of four for how a fit stood when it stopped, whatever the noise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode import models
from chreode.bench.table import Bench
from chreode.compute.convergence import SHARE, STATES, read_state, state_of, worst
from chreode.fitted import seal
from chreode.learn.em import EM
from chreode.learn.phase import Phase, Trace, unfinished
from chreode.learn.sgd import SGD

EPOCHS = np.arange(400)


def curve(name, noise, seed):
    """Return an objective that falls by 100, as those of fits do."""
    falls = 100 * np.exp(-EPOCHS / 30)
    along = {
        "rests": falls,
        "falls to the end": 100 * np.exp(-EPOCHS / 300),
        "rises": falls + 8 * np.maximum(EPOCHS - 150, 0) / 250,
    }[name]
    noises = np.random.default_rng(seed).normal(size=len(EPOCHS))
    return (300 + along + noise * noises).tolist()


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "state"),
    [("rests", "rested"), ("falls to the end", "still improving"), ("rises", "overfitted")],
)
def test_noise_does_not_change_the_word(name, state, noise):
    found = [state_of(curve(name, noise, seed), held_out=True) for seed in range(50)]
    assert np.mean([word == state for word in found]) >= 0.96


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["rests", "falls to the end", "rises"])
def test_units_and_levels_do_not_matter(name, factor):
    values = curve(name, 0.5, 0)
    for held_out in (True, False):
        assert state_of([factor * (v - 300) for v in values], held_out=held_out) == state_of(
            values, held_out=held_out
        )


def test_only_cells_held_out_tell_of_overfitting():
    assert state_of(curve("rises", 0.1, 0), held_out=False) == "rested"


def test_what_is_nothing_is_said():
    """A fall by so small a share of the gain is none; without noise a larger one is."""
    flat = np.r_[np.full(4, 100.0), np.zeros(16)]
    for share, state in ((0.5 * SHARE, "rested"), (2 * SHARE, "still improving")):
        flat[-2:] = -100 * share
        assert state_of(flat.tolist(), held_out=True) == state


def test_a_start_far_from_any_cell_hides_nothing():
    """The first epochs of scVI on 300 cells gain 18,000 nats, of which half a percent is no rest."""
    far = np.r_[37_000.0, 25_000.0, np.linspace(19_150, 18_155, 58)]
    assert state_of(far.tolist(), held_out=True) == "still improving"
    back = np.r_[1e5, np.linspace(1000, 500, 39), np.linspace(500, 800, 20)]
    assert state_of(back.tolist(), held_out=True) == "overfitted"


def test_a_climb_in_between_hides_nothing():
    """What is only won back is no gain: 60 epochs after the climb had still 5 % to go."""
    climbed = np.r_[np.full(6, 2e4), np.geomspace(1e8, 2e4, 14), np.linspace(1.9e4, 1.0e4, 40)]
    assert state_of(climbed.tolist(), held_out=True) == "still improving"


def test_no_epoch_of_a_warm_up_is_the_lowest():
    values = [*np.linspace(100, 40, 20), *np.linspace(90, 50, 20), *np.full(20, 50.0)]
    assert state_of(values, held_out=True) == "overfitted"
    assert state_of(values, held_out=True, warm_up=20) == "rested"


def test_short_and_broken_runs():
    assert state_of([], held_out=True) == "still improving"
    assert state_of([1.0], held_out=True) == "still improving"
    assert state_of([1.0, np.inf], held_out=True) == "rested"  # nothing was gained, nothing lost
    assert state_of([3.0, 1.0, np.inf], held_out=True) == "overfitted"
    assert state_of([np.nan, np.inf], held_out=True) == "still improving"


def test_the_worst_of_several_is_told():
    assert worst(["rested", "overfitted", "still improving"]) == "still improving"
    assert worst(["rested", "overfitted"]) == "overfitted"
    assert worst(["rested", "moving target", "rested"]) == "moving target"
    assert worst([]) == "rested"


def test_rows_of_before_are_read():
    assert read_state({"converged": True}) == "rested"
    assert read_state({"converged": False}) == "still improving"
    assert read_state({"state": "overfitted", "converged": True}) == "overfitted"
    with pytest.raises(ValueError, match="no state"):
        read_state({"state": "done"})


@pytest.mark.parametrize(("was", "state"), [(True, "rested"), (False, "still improving")])
def test_models_and_benches_saved_before_are_read(cells, schema, tmp_path, was, state):
    folder = ch.PCA(n_latent=2).fit(cells, schema).save(tmp_path / "model")
    info = json.loads((folder / "model.json").read_text())
    info["provenance"].pop("state")
    info["provenance"]["converged"] = was
    info.pop("sha256")
    (folder / "model.json").write_text(json.dumps({**info, "sha256": seal(info)}))
    old = ch.load(folder)
    assert old.provenance["state"] == state
    assert "converged" not in old.provenance
    assert STATES[state] in old.card()
    methods = [
        {"method": "A", "role": "method", "seeds": 1, "converged": was, "seconds": 1.0, "note": ""}
    ]
    score = {
        "index": 0,
        "method": "A",
        "seed": 0,
        "metric": "m",
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    metric = {"metric": "m", "name": "m", "group": "bio", "best": 1.0, "about": ""}
    tables = {"scores": [{**score, "reason": ""}], "methods": methods, "metrics": [metric]}
    (tmp_path / "b.json").write_text(json.dumps({"kind": "integration", "about": {}, **tables}))
    assert Bench.load(tmp_path / "b.json").methods.loc["A", "state"] == state


@pytest.mark.parametrize("key", models.keys())
def test_every_stage_that_can_be_lengthened_names_its_option(key):
    cls = models.find(key)
    options = {"population_steps": 1} if hasattr(cls, "population_steps") else {}
    for phase in cls(**options).phases():
        lengthened = phase.learner.validates or isinstance(phase.learner, EM)
        # NMF's stage counts its iterations; what "all pairs" begins, the next stage goes on with
        assert bool(phase.lasts) == lengthened or phase.name in ("NMF", "all pairs")
        assert not phase.lasts or hasattr(cls, phase.lasts)


@pytest.mark.slow
def test_stages_of_a_fit_are_noted(cells, schema, quick):
    model = quick(ch.CFGen, max_epochs=1, flow_epochs=1)  # of which nothing can be told
    assert model.fit(cells[:60, :20].copy(), schema).provenance["notes"] == [
        "the stage autoencoder was still improving: raise max_epochs (now 1)",
        "the stage flow was still improving: raise flow_epochs (now 1)",
    ]


def test_a_note_names_the_stage_and_what_to_raise():
    traces = [
        Trace(pd.DataFrame({"epoch": [0, 1]}), state) for state in ("rested", "still improving")
    ]
    phases = [Phase(SGD(lr=1.0), name=name, lasts="max_epochs") for name in ("one", "two")]
    told = "the stage two was still improving: raise max_epochs (now 2)"
    assert unfinished(phases, traces, ch.SCVI()) == [told]  # None: as many as there were
    stopped = [
        replace(t, notes=("interrupted in epoch 1; the last update is kept",)) for t in traces
    ]
    assert unfinished(phases, stopped, ch.SCVI()) == []
