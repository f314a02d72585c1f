"""Models whose target moves: what is said of their fits, and that those which have one say so."""

from __future__ import annotations

import pytest

import chreode as ch
from chreode import models
from chreode.bench.contest import Contestant, Outcome, _summary
from chreode.data.simulate import simulate_cells
from chreode.learn import SGD
from chreode.learn.sgd import _Loop
from chreode.models.selfsupervised.options import Encoding
from chreode.nn.queue import Queue
from chreode.nn.target import Target
from chreode.plot import history
from chreode.report.fits import fit_sections

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch")
SIMPLE = [ch.SimCLR, ch.VICReg, ch.BarlowTwins, ch.Concerto, ch.MaskedAutoencoder, ch.ScCLIP]
MOVING = [ch.MoCo, ch.CLEAR, ch.CLAIRE, ch.BYOL, ch.NNCLR, ch.SimSiam]


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(240, 60, n_types=3, n_batches=2, seed=0)


@pytest.fixture(scope="module")
def fits(cells):
    quick = {"n_latent": 4, "n_hidden": 8, "batch_size": 60, "max_epochs": 4}
    return {cls: cls(**quick).fit(cells, SCHEMA, progress=False) for cls in (ch.MoCo, ch.SimCLR)}


@pytest.mark.parametrize("cls", MOVING + SIMPLE)
def test_models_with_a_target_or_a_queue_say_that_objectives_cannot_be_compared(cls, fits):
    learners = [p.learner for p in cls().phases() if isinstance(p.learner, SGD)]
    assert {learner.comparable for learner in learners} == {cls in SIMPLE}
    spec = fits[ch.MoCo].spec
    if "protein" not in "".join(cls.needs):
        holds = any(isinstance(part, (Target, Queue)) for part in cls().build(spec).modules())
        assert holds == (cls in MOVING and cls is not ch.SimSiam)


def test_no_model_that_has_one_is_left_out():
    of_views = {models.find(key) for key in models.keys()}  # noqa: SIM118 (a function)
    assert {c for c in of_views if issubclass(c, Encoding)} == {*MOVING, *SIMPLE}
    assert {c for c in of_views if not c.comparable} == {*MOVING}


def test_a_fit_that_was_cut_off_has_no_lowest_objective_either(cells, monkeypatch):
    plain = _Loop.run_epoch

    def cut(loop):
        if loop.epoch == 2:
            raise KeyboardInterrupt
        return plain(loop)

    monkeypatch.setattr(_Loop, "run_epoch", cut)
    quick = {"n_latent": 4, "n_hidden": 8, "batch_size": 60, "max_epochs": 4}
    with pytest.warns(UserWarning, match="Ctrl-C ends that one too|interrupted in epoch 2"):
        fitted = ch.MoCo(**quick).fit(cells, SCHEMA, progress=False)
    assert fitted.provenance["state"] == "still improving"
    assert len(history(fitted).axes[0].lines) == 2
    assert "cannot be compared" in fit_sections(fitted)[1].figures[0][0]


def test_card_report_and_picture_agree_on_a_moving_target(fits):
    moving, fixed = fits[ch.MoCo], fits[ch.SimCLR]
    row = moving.history.dropna(subset="validation_objective").iloc[-1]
    told = f"spread {row.validation_spread:.3g}, effective rank {row.validation_effective_rank:.3g}"
    assert moving.provenance["state"] == "moving target"
    assert (
        f"at the end of MoCo: {told} (in minibatches of cells held out)"
        in moving.provenance["notes"]
    )
    assert "neither whether it had converged nor whether it overfitted" in moving.card()
    model, training = fit_sections(moving)[:2]
    assert "neither whether it had converged" in model.text
    assert told in model.text
    assert "cannot be compared" in training.figures[0][0]
    marked = [len(history(fitted).axes[0].lines) for fitted in (moving, fixed)]
    assert marked == [2, 3]  # two curves, and the dot on the lowest
    assert fixed.provenance["state"] != "moving target"
    assert "the dot is the lowest" in fit_sections(fixed)[1].figures[0][0]


def test_a_bench_has_nothing_against_a_moving_target():
    row = Contestant("A", "method", lambda seed, given: ({}, {}))
    for state, notes in (("moving target", []), ("overfitted", ["overfitted"])):
        done = Outcome({"state": state, "seconds": 1.0})
        assert _summary(row, [done])["notes"] == notes


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_rate_that_fell_says_why_the_objective_levels_off(cells, schedule, monkeypatch):
    monkeypatch.setattr(_Loop, "state", lambda _: "rested")

    def said(epochs, schedule=schedule):
        model = ch.SimCLR(
            n_latent=4, n_hidden=8, batch_size=120, max_epochs=epochs, schedule=schedule
        )
        notes = model.fit(cells, SCHEMA, progress=False).provenance["notes"]
        return [note for note in notes if "had to level off" in note]

    assert "the learning rate of SimCLR fell to" in said(25)[0]
    assert not said(4)
    assert not said(25, "constant")
