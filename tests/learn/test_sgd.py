"""The learner by gradients: resume, interruption, stops, averages, players."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase, Rng, Session, Split
from chreode.learn import sgd as sgd_module
from chreode.module import Loss, Module, Player


class Quadratic(Module):
    """Minimise |w − mean(x)|² of the first gene; a toy whose answer is known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def loss(self, batch, step):
        if self.training:
            self.seen.append(step.progress)
        error = (self.w - batch["counts"][:, 0].mean()).square()
        return Loss({"model": error}, {"w": self.w})


@pytest.fixture
def source(cells, schema):
    from chreode.data.align import learn_spec, open_source

    spec = learn_spec(Cells(cells, schema), ["counts"], np.arange(500))
    return open_source(Cells(cells, schema), spec, ["counts"], {})


SPLIT = Split(np.arange(400), np.arange(400, 500))


def learn(module, source, split=SPLIT, seed=0, **options):
    learner = SGD(**{"lr": 0.05, "max_epochs": 30, **options})
    phase = Phase(learner, data=Shuffled(100))
    return learner.learn(module, phase, source, split, Session(Rng(seed)))


def state(fitted):
    return {k: v.clone() for k, v in fitted.module.state_dict().items()}


@pytest.mark.slow
def test_it_minimises(source):
    module = Quadratic()
    trace = learn(module, source, max_epochs=200)
    assert (
        abs(float(module.w.detach()) - float(source.batch(SPLIT.train)["counts"][:, 0].mean()))
        < 0.05
    )
    assert trace.history["train_objective"].iloc[-1] < trace.history["train_objective"].iloc[0]
    assert set(trace.history) >= {"epoch", "lr", "train_w", "validation_objective", "seconds"}


def test_the_clock_runs_from_zero_to_one(source):
    module = Quadratic()
    learn(module, source, max_epochs=5)
    assert module.seen == [i / 20 for i in range(20)]


def test_the_cosine_schedule_falls(source):
    lr = learn(Quadratic(), source, schedule="cosine", max_epochs=10).history["lr"]
    assert lr.iloc[0] == 0.05
    assert lr.is_monotonic_decreasing
    assert lr.iloc[-1] < 0.002


def test_the_step_schedule_is_a_tenth_after_every_ten_epochs(source):
    lr = learn(Quadratic(), source, schedule="step", max_epochs=25).history["lr"]
    np.testing.assert_allclose(lr, np.repeat([5e-2, 5e-3, 5e-4], [10, 10, 5]))


def test_clipping_bounds_the_gradient(source):
    module = Quadratic()
    norms = []
    module.after_step = lambda step: norms.append(float(module.w.grad.abs()))
    learn(module, source, clip=0.01, max_epochs=2)
    assert max(norms) <= 0.01 + 1e-6


def test_the_average_of_the_weights_is_what_is_kept(source):
    plain, averaged = Quadratic(), Quadratic()
    learn(plain, source, max_epochs=3)
    learn(averaged, source, max_epochs=3, ema=0.9, chooses=False)
    by_hand = torch.zeros(())
    trace = []
    replay = Quadratic()
    replay.after_step = lambda step: trace.append(float(replay.w.detach()))
    learn(replay, source, max_epochs=3)
    last = 0
    for step in (4, 8, 10, 12):  # the ends of the epochs, and every tenth
        decay = min(0.9, (1 + step) / (10 + step)) ** (step - last)
        by_hand, last = decay * by_hand + (1 - decay) * trace[step - 1], step
    assert averaged.w.item() == pytest.approx(float(by_hand), rel=1e-5)
    assert averaged.w.item() < plain.w.item()


def test_early_stopping_keeps_the_best_and_waits_for_the_warm_up(source):
    module = Overfits()
    trace = learn(module, source, patience=3, max_epochs=100)
    best = trace.history["validation_objective"].idxmin()
    assert len(trace.history) == best + 4
    assert trace.state == "overfitted"
    assert abs(module.w.item() - 0.3) < 0.15
    late = learn(Overfits(), source, patience=3, settle=0.5, max_epochs=40)
    assert len(late.history) >= 20


@pytest.mark.parametrize("patience", [None, 3])
def test_the_last_weights_of_an_overfitted_fit_are_kept_when_asked(source, patience):
    ended = {}
    for keep in ("best", "last"):
        module = Overfits()
        trace = learn(module, source, patience=patience, keep=keep, max_epochs=30)
        assert trace.state == "overfitted"
        ended[keep] = (module.w.item() - 0.3) ** 2
        best = trace.history["validation_objective"].idxmin()
        assert trace.notes[0] == (
            f"fit had its best objective after {best + 1} of {len(trace.history)} epochs, and the model has "
            f"{'those' if keep == 'best' else 'the last'} weights"
        )
    assert ended["last"] == pytest.approx(trace.history["validation_objective"].iloc[-1], rel=1e-5)
    assert ended["best"] == pytest.approx(trace.history["validation_objective"].min(), rel=1e-5)
    assert ended["best"] < 0.9 * ended["last"]


@pytest.mark.slow
def test_a_run_that_still_improves_is_called_so(source):
    assert learn(Quadratic(), source, lr=1e-4, max_epochs=10).state == "still improving"
    assert learn(Quadratic(), source, max_epochs=200).state == "rested"


class Overfits(Quadratic):
    """Cells that are held out want 0.3, those learned from 1."""

    def loss(self, batch, step):
        up = (self.w - 1).square() if self.training else (self.w - 0.3).square()
        return Loss({"model": up})


@pytest.mark.slow
def test_the_best_weights_are_kept_where_a_fit_overfits(source):
    module, last = Overfits(), Overfits()
    trace = learn(module, source, max_epochs=60)
    assert trace.state == "overfitted"
    assert len(trace.history) == 60
    assert abs(module.w.item() - 0.3) < 0.15
    # where the objective is not all that is minimised, held-out cells choose nothing
    assert learn(last, source, max_epochs=60, chooses=False).state != "overfitted"
    assert last.w.item() > 0.9
    # and without them nobody can tell
    alone = learn(Overfits(), source, Split(SPLIT.train, SPLIT.train[:0]), max_epochs=60)
    assert alone.state != "overfitted"


class Moves(Overfits):
    """What it is compared with moves, which is not to be seen in its objective."""

    def loss(self, batch, step):
        return replace(super().loss(batch, step), terms={"some_spread": self.w.detach()})


@pytest.mark.parametrize("patience", [None, 3])
def test_of_a_moving_target_no_epoch_is_the_best(source, patience):
    module, fixed = Moves(), Moves()
    options = {"max_epochs": 30, "patience": patience}
    assert learn(fixed, source, **options).state == "overfitted"
    trace = learn(module, source, **options, comparable=False)
    assert trace.state == "moving target"
    assert len(trace.history) == 30
    last = trace.history["validation_some_spread"].iloc[-1]
    assert module.w.item() == pytest.approx(last)
    assert module.w.item() > fixed.w.item() + 0.2
    said = f"at the end of fit: some spread {last:.3g} (in minibatches of cells held out)"
    assert trace.notes == (said,)


def test_of_a_moving_target_ctrl_c_keeps_the_last_epoch(source):
    class CutOff(Moves):
        def after_step(self, step):
            if step.progress > 0.9:
                raise KeyboardInterrupt

    module = CutOff()
    with pytest.warns(UserWarning, match="the weights of epoch 8 are kept"):
        trace = learn(module, source, max_epochs=10, comparable=False)
    assert trace.state == "still improving"
    assert module.w.item() == pytest.approx(trace.history["validation_some_spread"].iloc[-1])


class WarmsUp(Quadratic):
    """A penalty rises over the run, so that the objective is lowest before there is one."""

    def loss(self, batch, step):
        penalty = step.warm_up(0.5) * (10 + (self.w + 1).square())
        return Loss({"model": (self.w - 1).square() + penalty})


@pytest.mark.slow
@pytest.mark.parametrize("patience", [None, 3])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_warm_up_is_compared_with_nothing(source, patience, held_out):
    """The weights kept minimise the whole objective, at 0, and not what it was at first, at 1."""
    module, split = WarmsUp(), SPLIT if held_out else Split(SPLIT.train, SPLIT.train[:0])
    options = {"lr": 0.02, "settle": 0.5, "patience": patience, "max_epochs": 120}
    trace = learn(module, source, split, **options)
    assert abs(module.w.item()) < 0.1
    assert trace.state == "rested"
    # a run whose objective changed to its end has no epochs to compare: the last weights are kept
    late, same = WarmsUp(), WarmsUp()
    assert learn(late, source, split, **options | {"settle": 1.0}).state in (
        "rested",
        "still improving",
    )
    learn(same, source, split, **options | {"settle": 1.0, "patience": None})
    assert late.w.item() == pytest.approx(same.w.item(), abs=0.05)


class OverfitsEarly(Quadratic):
    """Held-out cells want 0.3, which is passed on the way up, long before the warm-up is over."""

    def loss(self, batch, step):
        up = (self.w - step.warm_up(0.5)).square() if self.training else (self.w - 0.3).square()
        return Loss({"model": up})


@pytest.mark.parametrize("patience", [None, 3])
def test_no_epoch_of_a_warm_up_is_the_best(source, patience):
    """Its weights minimise something else, however well they do on held-out cells."""
    module = OverfitsEarly()
    options = {"lr": 0.05, "settle": 0.5, "patience": patience, "max_epochs": 60}
    trace = learn(module, source, **options)
    assert trace.history["validation_objective"].idxmin() < 25
    # patience stops it where it is about to rise
    assert trace.state == ("rested" if patience else "overfitted")
    assert module.w.item() > 0.8


def test_each_player_follows_its_own_objective(source):
    class Duel(Module):
        """The model pulls a·b up, the adversary down: with shared gradients both would move alike."""

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(()))
            self.b = torch.nn.Parameter(torch.ones(()))

        def players(self):
            return {"model": Player([self.a]), "adversary": Player([self.b])}

        def loss(self, batch, step):
            return Loss({"model": -self.a * self.b, "adversary": self.a * self.b})

    module = Duel()
    learn(module, source, max_epochs=2)
    assert module.a.item() > 1 > module.b.item()


def test_a_non_finite_loss_names_tensor_cells_and_cure(cells, schema):
    with pytest.raises(
        ch.FitError, match=r"(?s)not finite.*Tensors:.*cells of the minibatch: .*lower lr"
    ):
        ch.SCVI(lr=1e12, max_epochs=5).fit(cells, schema)


def _stop_after(monkeypatch, epochs, error):
    plain = sgd_module._Loop.run_epoch

    def run_epoch(self):
        if self.epoch == epochs:
            raise error
        return plain(self)

    monkeypatch.setattr(sgd_module._Loop, "run_epoch", run_epoch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"patience": 2, "kl_warmup": 0.0}, {"latent_library": True}]
)
def test_a_resumed_fit_has_the_same_bits(cells, schema, tmp_path, monkeypatch, options):
    model = ch.SCVI(max_epochs=6, n_hidden=32, **options)
    whole = model.fit(cells, schema, seed=3)
    with monkeypatch.context() as patch:
        _stop_after(patch, 3, RuntimeError("power cut"))
        with pytest.raises(RuntimeError, match="power cut"):
            model.fit(cells, schema, seed=3, checkpoint=tmp_path / "run")
    resumed = model.fit(cells, schema, seed=3, checkpoint=tmp_path / "run")
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))


def test_a_checkpoint_of_another_fit_is_refused(cells, schema, tmp_path):
    ch.SCVI(max_epochs=2).fit(cells, schema, checkpoint=tmp_path / "run")
    with pytest.raises(ch.StoreError, match="another fit"):
        ch.SCVI(max_epochs=2).fit(cells, schema, seed=1, checkpoint=tmp_path / "run")
    with pytest.raises(ch.StoreError, match="another fit"):
        ch.SCVI(max_epochs=2, lr=0.01).fit(cells, schema, checkpoint=tmp_path / "run")
    cells.layers["counts"] = cells.layers["counts"] * 2
    with pytest.raises(ch.StoreError, match="another fit"):
        ch.SCVI(max_epochs=2).fit(cells, schema, checkpoint=tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far_and_says_so(cells, schema, monkeypatch):
    three = ch.SCVI(max_epochs=8, patience=8).fit(cells, schema)
    _stop_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.warns(UserWarning, match="interrupted in epoch 3; the weights of epoch 2 are kept"):
        cut = ch.SCVI(max_epochs=8, patience=8).fit(cells, schema)
    assert len(cut.history) == 3
    assert "interrupted" in cut.provenance["notes"][0]
    assert cut.history["train_objective"].tolist() == three.history["train_objective"][:3].tolist()


def test_ctrl_c_in_the_first_epoch_stops(cells, schema, monkeypatch):
    _stop_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ch.SCVI(max_epochs=8).fit(cells, schema)


@pytest.mark.slow
def test_bf16_learns_the_same_thing_roughly(cells, schema):
    a = ch.SCVI(max_epochs=10).fit(cells, schema).history["validation_elbo"].iloc[-1]
    b = (
        ch.SCVI(max_epochs=10)
        .fit(cells, schema, precision="bf16")
        .history["validation_elbo"]
        .iloc[-1]
    )
    assert a != b
    assert b == pytest.approx(a, rel=0.02)


def test_randomness_by_purpose_restores_what_was_there():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Rng(0).scope("noise", 1):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with Rng(0).scope("noise", 1):
        assert torch.equal(torch.rand(3), drawn)
    for other in (Rng(1).scope("noise", 1), Rng(0).scope("noise", 2), Rng(0).scope("data", 1)):
        with other:
            assert not torch.equal(torch.rand(3), drawn)


def test_validation_rows_may_be_named(cells, schema):
    rows = np.arange(100, 200)
    a = ch.SCVI(max_epochs=2).fit(cells, schema, validation=rows)
    assert a.provenance["cells"] == 400
    assert a.provenance["validation_cells"] == 100


@pytest.mark.parametrize("none", [None, 0, 0.0, np.int64(0)])
def test_no_validation_learns_from_all_cells(cells, schema, none):
    fitted = ch.SCVI(max_epochs=1, n_hidden=8).fit(cells, schema, validation=none)
    assert fitted.provenance["cells"] == 500
    assert not fitted.provenance["validation_cells"]


@pytest.mark.parametrize(
    "what",
    [1.0, 2, -0.1, np.nan, True, "plate1", ["nobody"], [], np.arange(100, 200), np.arange(95, 105),
     np.arange(100), {"a": 1}, object(), [[1], [2, 3]], np.zeros(7, bool)],
)  # fmt: skip
@pytest.mark.parametrize("model", [ch.SCVI(max_epochs=1), ch.PPCA(), ch.PathReg()])
def test_an_odd_validation_is_refused_by_name(cells, schema, model, what):
    timed = schema.with_(time="obs/day") if isinstance(model, ch.PathReg) else schema
    with pytest.raises(ch.ChreodeError, match="^validation"):
        model.fit(cells, timed, rows=np.arange(100), validation=what)


@pytest.mark.slow
def test_compiled_is_the_same_model():
    """In a process of its own: torch cannot compile through the tests' type checks.

    All minibatches are of one size: compiling takes most of the time, and once is enough.
    """
    script = """
import chreode as ch
from chreode.data.cells import Cells
cells = ch.simulate.simulate_cells(500, 300, n_batches=3, seed=0)
schema = ch.Schema(counts="X", batch="obs/batch")
model = ch.SCVI(max_epochs=2, dropout=0.0, batch_size=125)
for compiled in (False, True):
    fitted = model.fit(cells, schema, validation=0, compile=compiled)
    print(*fitted.history["train_objective"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    eager, compiled = (np.array(line.split(), float) for line in done.stdout.splitlines())
    np.testing.assert_allclose(eager, compiled, rtol=5e-3)


def weight(source, split=SPLIT, **options):
    module = Quadratic()
    learn(module, source, split, max_epochs=5, **options)
    return module.w.item()


def test_a_decay_may_depend_on_the_number_of_cells(source):
    few = Split(np.arange(100), SPLIT.validation)
    for split, decay in ((few, 2.0), (SPLIT, 0.5)):
        found = weight(source, split, weight_decay=lambda n: 200.0 / n)
        assert found == weight(source, split, weight_decay=decay)
        assert found < weight(source, split)


def test_cells_named_for_validation_that_were_not_measured_are_no_silent_none():
    data = ch.simulate.simulate_citeseq(60, 20, n_batches=2, absent={"rna": ["batch_1"]}, seed=0)
    lacking = data.obs_names[~data.obs_names.isin(data["rna"].obs_names)]
    assert len(lacking)
    with pytest.raises(ch.DataError, match="validation: of .*, none has what scvi reads"):
        ch.SCVI(max_epochs=1).fit(data, ch.Schema(counts="rna:X"), validation=lacking)
