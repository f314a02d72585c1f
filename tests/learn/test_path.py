"""Which strength is kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from chreode.compute.rng import Rng
from chreode.data.source import Source
from chreode.learn.exact import Exact
from chreode.learn.phase import Phase, Session, Split, Trace, forget
from chreode.models.dynamics.path import GROWN, Path, choose
from chreode.models.dynamics.rest import UntilConverged
from chreode.module import Module


def test_the_sparsest_within_one_standard_error_of_the_best_is_kept():
    series = np.linspace(1, 5, 12)  # series differ far more than fits do
    wobble = 0.01 * np.tile([1, -1], 6)
    apart = np.array([0.3 + wobble, 0 * wobble, 0.001 + wobble, 0.2 + wobble])
    assert choose(series + apart) == 2
    apart[2] += 0.01
    assert choose(series + apart) == 1


def test_of_few_series_one_percent_counts():
    errors = np.array([[1.2, 1.2], [1.0, 1.0], [1.005, 1.005], [1.02, 1.02]])
    assert choose(errors) == 2


def test_paths_that_blow_up_are_passed_over():
    errors = np.array([[np.inf, 1.0], [1.0, 1.1], [np.inf, 0.5]])
    assert choose(errors) == 1


def test_where_every_fit_blows_up_the_sparsest_is_kept():
    assert choose(np.full((3, 6), np.inf)) == 2


class Parabola(Module):
    """Its errors on held-out series are least at one strength; it learns nothing."""

    def __init__(self, best):
        super().__init__()
        self.best = best
        self.register_buffer("strength", torch.tensor(0.0))

    def set_strength(self, value):
        self.strength.fill_(value)

    def next_strength(self, value, before):
        return value * value / before

    def path_matrix(self):
        return torch.ones(2, 2)

    def errors(self, batch):
        return (1 + (self.strength / self.best).log().square()).expand(3)


class Cells(Source):
    """Held-out rows, which are not looked at."""

    def __init__(self):
        pass

    def pieces(self, rows):
        return [rows]

    def minibatches(self, rows, device):
        return [None for _ in rows]


class Nothing:
    validates = True

    def learn(self, module, phase, source, split, run):
        return Trace(pd.DataFrame({"train_objective": [1.0]}), "rested")


@pytest.mark.parametrize("best", [0.1, 0.4, 1.6, 0.025])
def test_a_grid_grows_while_the_best_lies_at_its_end(best):
    module, split = Parabola(best), Split(np.arange(5), np.arange(2))
    path = Path(Phase(Nothing()), (0.1, 0.2))
    trace = path.learn(module, Phase(path), Cells(), split, Session(Rng(0)))
    assert float(module.strength) == pytest.approx(best)
    tried = sorted(set(trace.history["strength"]))
    assert tried[0] < best * 1.01
    assert max(tried) >= best
    assert "end of the grid" not in trace.notes[-1]
    assert path.until(best, module).strengths[-1] == pytest.approx(best)


def test_a_grid_that_never_ends_says_so():
    module, split = Parabola(1e9), Split(np.arange(5), np.arange(2))
    path = Path(Phase(Nothing()), (0.1, 0.2))
    trace = path.learn(module, Phase(path), Cells(), split, Session(Rng(0)))
    assert float(module.strength) == pytest.approx(0.2 * 2**GROWN)
    assert "the end of the grid" in trace.notes[-1]


@pytest.mark.parametrize(("strengths", "rows"), [((0.1,), 2), ((0.1, 0.2), 0)])
def test_one_strength_is_no_grid_and_nothing_is_chosen_by_nothing(strengths, rows):
    module, split = Parabola(1e9), Split(np.arange(5), np.arange(rows))
    path = Path(Phase(Nothing()), strengths)
    trace = path.learn(module, Phase(path), Cells(), split, Session(Rng(0)))
    assert len(trace.history) == len(strengths)


class Slow:
    """Halves the way to an objective of 1 in every round."""

    validates = True

    def __init__(self, start):
        self.objective = start

    def learn(self, module, phase, source, split, run):
        self.objective = (1 + self.objective) / 2
        return Trace(pd.DataFrame({"train_objective": [self.objective]}), "rested")


@pytest.mark.parametrize(
    ("start", "rounds", "state"),
    [(1.0, 2, "rested"), (1.2, 5, "rested"), (999.0, 8, "still improving")],
)
def test_rounds_go_on_until_one_changes_little(start, rounds, state):
    split = Split(np.arange(5), np.arange(0))
    trace = UntilConverged(Slow(start)).learn(
        Parabola(1.0), Phase(Exact()), Cells(), split, Session(Rng(0))
    )
    assert len(trace.history) == rounds
    assert trace.state == state


class Writes:
    """Keeps a state; another round changes nothing."""

    validates = True

    def learn(self, module, phase, source, split, run):
        run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        run.checkpoint.write_text("a state")
        return Trace(pd.DataFrame({"train_objective": [1.0]}), "rested")


def test_states_of_every_strength_and_round_are_removed_and_no_others(tmp_path):
    path = Path(Phase(UntilConverged(Writes())), (0.1, 0.2))
    phases = [Phase(Writes()), Phase(path)]
    run = Session(Rng(0), checkpoint=tmp_path / "state")
    for number, phase in enumerate(phases):
        split = Split(np.arange(5), np.arange(0))
        phase.learner.learn(Parabola(1.0), phase, Cells(), split, run.for_phase(number))
    assert sum(p.is_file() for p in tmp_path.rglob("*")) == 1 + 2 * 2
    theirs = tmp_path / "state/phase1.safetensors/phase1.safetensors/thesis"
    theirs.write_text("years of work")
    forget(tmp_path / "state", phases)
    assert {*tmp_path.rglob("*")} == {theirs, *theirs.parents} - {tmp_path, *tmp_path.parents}


def test_a_way_ends_at_the_strength_that_is_asked_for():
    way, module = Path(Phase(Exact()), (0.1, 0.2, 0.4)), Parabola(1.0)
    assert way.until(0.2, module).strengths == (0.1, 0.2)
    assert way.until(1.6, module).strengths == pytest.approx((0.1, 0.2, 0.4, 0.8, 1.6))
    assert way.until(0.05, module).strengths == (0.05,)
