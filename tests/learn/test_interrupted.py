"""Ctrl-C in a part of a fit: what follows, what is said, and what a later call goes on from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from learn.test_path import Cells

import chreode as ch
from chreode import store
from chreode.compute.rng import Rng
from chreode.config import config
from chreode.data.sampler import Shuffled
from chreode.data.series_source import SeriesSource
from chreode.learn import SGD, em, sgd
from chreode.learn.phase import Phase, Session, Split, Trace
from chreode.models.dynamics.path import Path
from chreode.models.dynamics.refits import Refits
from chreode.module import Loss, Module
from chreode.schema import Spec

CUT = "interrupted in epoch 1; the weights of epoch 0 are kept"


def same(fitted, other):
    states = fitted.module.state_dict(), other.module.state_dict()
    return store.digest(states[0], "") == store.digest(states[1], "")


class Half(Module):
    """Learns the mean of the counts."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def loss(self, batch, step):
        return Loss({"model": (self.w - batch["counts"].mean()).square()})


class Whole(Half):
    """Goes on from there, as a flow does from an autoencoder."""

    def __init__(self):
        super().__init__()
        self.first = Half()

    def loss(self, batch, step):
        return Loss({"model": (self.w + self.first.w - 9).square() + 0 * batch["counts"].sum()})


@config
class Stages(ch.SCVI):
    """Two stages, of which the second begins from the first."""

    def build(self, spec):
        return Whole()

    def phases(self):
        data = Shuffled(64)
        return [
            Phase(SGD(lr=0.1, max_epochs=9), "first", data),
            Phase(SGD(lr=0.1, max_epochs=2), "", data),
        ]


def test_a_fit_goes_on_from_an_early_stage_that_was_cut(cells, tmp_path, monkeypatch):
    """The later stage, which began from less than the whole, is learned anew."""
    monkeypatch.setenv("CHREODE_KERNEL", "0")  # it is not asked for
    schema, model, cells = ch.Schema(counts="layers/counts"), Stages(), cells[:60, :20].copy()
    whole, real = model.fit(cells, schema), sgd._Loop.run_epoch

    def stop(loop):
        if loop.epochs == 9 and loop.epoch == 1:
            raise KeyboardInterrupt
        return real(loop)

    monkeypatch.setattr(sgd._Loop, "run_epoch", stop)
    with (
        pytest.warns(UserWarning, match="fit, the next stage, begins; Ctrl-C ends that one too"),
        pytest.warns(UserWarning, match="interrupted in epoch 1"),
    ):
        cut = model.fit(cells, schema, checkpoint=tmp_path / "state")
    assert len(cut.history) == 1 + 2
    assert not same(cut, whole)
    monkeypatch.setattr(sgd._Loop, "run_epoch", real)
    assert same(model.fit(cells, schema, checkpoint=tmp_path / "state"), whole)


class Grid(Module):
    """Its error falls with every strength, so that a grid would grow."""

    def __init__(self):
        super().__init__()
        self.register_buffer("strength", torch.tensor(0.0))
        self.members, self.kept = 0, True

    def set_strength(self, value):
        self.strength.fill_(value)

    def next_strength(self, value, before):
        return value * value / before

    def path_matrix(self):
        return torch.ones(2, 2)

    def errors(self, batch):
        return (1 / self.strength).expand(3)

    def fresh(self):
        self.members += 1
        return Grid()

    def drop_refits(self):
        self.kept = False


class Cut:
    """Is cut the so-manieth time it learns; notes where it would have kept its state."""

    validates = True

    def __init__(self, at):
        self.at, self.places = at, []

    def learn(self, module, phase, source, split, run):
        self.places.append(run.checkpoint)
        notes = (CUT,) if len(self.places) == self.at else ()
        return Trace(pd.DataFrame({"train_objective": [1.0]}), "rested", notes)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_grid_ends_where_it_was_cut_and_says_so(at):
    """Also if another strength is kept, and if it had begun to grow."""
    learner, split = Cut(at), Split(np.arange(5), np.arange(2))
    path = Path(Phase(learner), (0.1, 0.2))
    trace = path.learn(Grid(), Phase(path), Cells(), split, Session(Rng(0)))
    assert len(learner.places) == at
    assert trace.interrupted
    assert trace.state == "still improving"


def test_refits_that_were_cut_leave_none(tmp_path):
    learner, module = Cut(3), Grid()
    split, spec = Split(np.arange(5), np.arange(0)), Spec((), {}, {}, {}, (), (), 5, {})
    series = SeriesSource(spec, np.arange(5).astype(str), {})
    refits = Refits(2, (Phase(learner, view=lambda *_: (series, split)),))
    with pytest.warns(UserWarning, match="there is no confidence"):
        trace = refits.learn(module, Phase(refits), Cells(), split, Session(Rng(0)))
    assert (module.members, module.kept) == (3, False)
    assert trace.interrupted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::chreode.data.horizon.ForecastWarning")
def test_forecasts_without_refits_are_those_of_the_fit(cells, schema, monkeypatch):
    timed = schema.with_(time="obs/day", trajectory="obs/donor")
    small = cells[:60, cells.layers["counts"].sum(0).A1.argsort()[-6:]].copy()
    quick = {"match_steps": 3, "piece_steps": 3, "path_steps": 3}
    plain = ch.NeuralODE(**quick).fit(small, timed)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Refits, "_refit", stop)
    with pytest.warns(UserWarning, match="forecasts are of one fit"):
        cut = ch.NeuralODE(**quick, n_refits=5).fit(small, timed)
    assert cut.rank()["confidence"].isna().all()
    times = [0.0, 8.0]
    np.testing.assert_allclose(
        cut.trajectory(small, times).X, plain.trajectory(small, times).X, rtol=1e-5, atol=1e-6
    )


def test_ctrl_c_in_the_first_round_of_em_keeps_nothing(cells, schema, monkeypatch):
    def stop(parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(em, "add_up", stop)
    with pytest.raises(KeyboardInterrupt):
        ch.FactorAnalysis(n_factors=3).fit(cells, schema)
