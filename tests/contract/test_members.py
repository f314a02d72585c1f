"""Several fits in one: restarts of which the best is kept, refits and folds, and what they agree on."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from contract.factors import FactorModule, Factors, X, blood, elbo, simulated  # noqa: F401 (a fixture)

import chreode as ch
from chreode.config import config, param
from chreode.data.sampler import FullBatch
from chreode.learn import SGD, Ensemble, Phase, found_again
from chreode.model import Model
from chreode.module import Loss, Module


@pytest.fixture(scope="module")
def restarts(blood):  # noqa: F811
    return Factors(n_factors=6, n_restarts=5, max_epochs=30).fit(blood, X)


def last(table):
    return table.groupby("member")["train_elbo"].last()


@pytest.mark.slow
def test_the_best_of_restarts_is_the_model(restarts):
    ends = last(restarts.history)
    assert len(ends) == 5
    assert ends.nunique() == 5  # each had a seed of its own
    assert restarts.history["criterion"].dropna().tolist() == ends.tolist()
    best = restarts.members[int(ends.idxmax())]
    for own, kept in zip(restarts.module.views, best.module.views, strict=True):
        assert torch.equal(own.w, kept.w)
    assert f"member {ends.idxmax()} is the best of 5" in restarts.provenance["notes"][-1]
    pairs = [m.module.views[0].w for m in restarts.members]
    assert not any(torch.equal(a, b) for i, a in enumerate(pairs) for b in pairs[:i])


def test_a_member_answers_as_a_model_does(restarts, blood):  # noqa: F811
    best = int(last(restarts.history).idxmax())
    few = blood[:40].copy()
    z = [member.embed(few) for member in restarts.members]
    np.testing.assert_array_equal(z[best], restarts.embed(few))
    assert all(np.abs(z[best] - other).max() > 0.1 for i, other in enumerate(z) if i != best)
    one = restarts.members[2]
    assert one.members == []
    assert one.model.n_restarts == 0
    assert elbo(one)[-1] == last(restarts.history)[2]


def test_a_member_is_the_fit_that_it_would_be_alone(blood):  # noqa: F811
    """Nothing of one reaches another: without the first, the second is the same to the bit."""
    two = Factors(n_restarts=2, max_epochs=5).fit(blood, X)
    four = Factors(n_restarts=4, max_epochs=5).fit(blood, X)
    for a, b in zip(two.members, four.members[:2], strict=True):
        assert torch.equal(a.module.views[0].w, b.module.views[0].w)
    plain = Factors(n_restarts=2, max_epochs=5).fit(blood, X, seed=1)
    assert not torch.equal(plain.members[0].module.views[0].w, two.members[0].module.views[0].w)


@pytest.mark.slow
def test_members_are_saved(restarts, blood, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("chreode.fitted.find", {"factors": Factors}.__getitem__)
    again, few = ch.load(restarts.save(tmp_path / "all")), blood[:40].copy()
    assert len(again.members) == 5
    for a, b in zip(restarts.members, again.members, strict=True):
        np.testing.assert_array_equal(a.embed(few), b.embed(few))
    alone = ch.load(restarts.members[3].save(tmp_path / "one"))
    np.testing.assert_array_equal(alone.embed(few), restarts.members[3].embed(few))
    torch.testing.assert_close(again.module.confidence, restarts.module.confidence)


def test_factors_that_all_restarts_find_are_told_from_noise(restarts):
    """The null: loadings of the members with their genes exchanged, factor by factor."""
    confidence, rng = restarts.module.confidence.numpy(), np.random.default_rng(0)
    own = restarts.module.views[0].w
    members = [m.module.views[0].w for m in restarts.members]
    members = [w for w in members if not torch.equal(w, own)]
    chance = [
        found_again(own, [torch.stack([w[rng.permutation(len(w)), k] for k in range(6)], 1) for w in members])
        for _ in range(5)
    ]  # fmt: skip
    chance = torch.stack(chance).numpy()
    assert len(members) == 4
    assert chance.max() < 0.3
    assert confidence.min() > 2 * chance.max()
    assert confidence.max() > 0.9
    random = torch.from_numpy(rng.normal(size=(len(own), 1)))
    mixed = found_again(torch.cat([own, random], 1), members).numpy()
    assert mixed[-1] < 1.5 * chance.max()
    np.testing.assert_allclose(mixed[:-1], confidence, atol=0.1)


@pytest.mark.slow
def test_only_cells_drawn_anew_tell_factors_from_noise():
    """Restarts on the same noise agree on its directions; on other draws of the cells they do not."""
    cells, _ = simulated(300, 40, 3, seed=2)
    few = {"n_factors": 3, "n_restarts": 4, "max_epochs": 100, "rows": "bootstrap"}
    true = Factors(**few).fit(cells, X).module.confidence
    cells.X = np.random.default_rng(0).normal(size=cells.shape).astype("f4")
    noise = Factors(**few).fit(cells, X).module.confidence
    assert true.min() > 0.75
    assert noise.mean() < 0.6


class Means(Module):
    """The mean of each feature, by gradients, and the members' (20 lines with its model)."""

    def __init__(self, g, n=0):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(g))
        self.members = torch.nn.ModuleList(Means(g) for _ in range(n))

    def loss(self, batch, step):
        return Loss({"model": (batch["views/X"] - self.mean).square().mean()})

    def fresh(self):
        return Means(len(self.mean))

    def embed(self, batch):
        return batch["views/X"] - self.mean


@config
class Mean(Model):
    """Toy: the model learns from all rows, and its members from some."""

    needs: ClassVar = ("views",)
    n: int = param(4, "Members.")
    rows: str = param("folds", "Of a member.")

    def build(self, spec):
        return Means(spec.n_features("views/X"), self.n)

    def phases(self):
        own = Phase(SGD(lr=0.2, max_epochs=20, schedule="cosine", keep="last"), data=FullBatch(5))
        return [own, Phase(Ensemble(self.n, (own,), self.rows), name="members")]

    def alone(self):
        return dataclasses.replace(self, n=0)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["folds", "bootstrap", "all"])
def test_members_learn_from_rows_of_their_own(rows, monkeypatch):
    cells, _ = simulated(200, 5)
    seen, whole = [], SGD.learn

    def spy(self, module, phase, source, split, run):
        seen.append(split)
        return whole(self, module, phase, source, split, run)

    monkeypatch.setattr(SGD, "learn", spy)
    fitted = Mean(rows=rows).fit(cells, X, validation=0)
    first, *others = seen
    assert len(first.train) == 200
    mean = cells.X.mean(0)
    np.testing.assert_allclose(fitted.module.mean.detach(), mean, atol=0.1)  # as it learned first
    for split, member in zip(others, fitted.members, strict=True):
        expected = cells.X[split.train].mean(0)
        np.testing.assert_allclose(member.module.mean.detach(), expected, atol=0.02)
    if rows == "folds":
        held_out = np.concatenate([split.validation for split in others])
        np.testing.assert_array_equal(np.sort(held_out), np.arange(200))
        for split in others:
            np.testing.assert_array_equal(
                np.sort(np.concatenate([split.train, split.validation])), np.arange(200)
            )
        told = fitted.history[fitted.history["phase"] == "members"]
        assert told["validation_objective"].notna().all()
    elif rows == "bootstrap":
        assert all(len(s.train) == 200 and len(set(s.train)) < 150 for s in others)
        assert len({s.train.tobytes() for s in others}) == 4
    else:
        assert all(np.array_equal(s.train, np.arange(200)) for s in others)


def test_gradients_of_a_model_do_not_move_its_members():
    module = Means(5, 2)
    assert [len(list(p.parameters)) for p in module.players().values()] == [1]


@pytest.mark.slow
def test_a_bootstrap_spreads_as_theory_says():
    """The deviation of bootstrap means is that of the mean: σ / √n."""
    cells, _ = simulated(200, 30)
    fitted = Mean(n=12, rows="bootstrap").fit(cells, X, validation=0)
    means = torch.stack([m.module.mean.detach() for m in fitted.members]).numpy()
    ratio = np.sqrt((means.var(0, ddof=1) / (cells.X.var(0) / 200)).mean())
    assert 0.8 < ratio < 1.2


def test_ctrl_c_keeps_the_members_that_are_whole(monkeypatch, tmp_path):
    cells, _ = simulated(100)
    whole, made = FactorModule.prepare, []

    def stop(self, *args):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        whole(self, *args)

    monkeypatch.setattr(FactorModule, "prepare", stop)
    with pytest.warns(UserWarning, match="interrupted in member 2; those before are kept"):
        cut = Factors(n_restarts=4, max_epochs=5).fit(cells, X)
    assert len(cut.members) == 2
    assert cut.provenance["state"] == "still improving"
    monkeypatch.undo()
    full = Factors(n_restarts=4, max_epochs=5).fit(cells, X)
    for a, b in zip(cut.members, full.members[:2], strict=True):
        assert torch.equal(a.module.views[0].w, b.module.views[0].w)
    monkeypatch.setattr("chreode.fitted.find", {"factors": Factors}.__getitem__)
    assert len(ch.load(cut.save(tmp_path / "m")).members) == 2


def test_factors_are_matched_one_to_one_whatever_their_sign_and_order():
    rng = np.random.default_rng(0)
    one = torch.from_numpy(rng.normal(size=(200, 4)))
    other = -2 * one[:, [2, 0, 3, 1]] + 1
    np.testing.assert_allclose(found_again(one, [other, one]), 1.0)
    half = found_again(one, [one[:, :2], one])
    np.testing.assert_allclose(half, [1, 1, 0.5, 0.5])
    twice = torch.cat([one[:, :1], one[:, :1]], 1)
    assert found_again(twice, [one])[1] < 0.3  # not twice the same
    assert found_again(torch.zeros(200, 1).double(), [one]).item() == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::chreode.data.horizon.ForecastWarning")
def test_refits_of_models_of_time_are_members(cells, schema):
    timed = schema.with_(time="obs/day", trajectory="obs/donor")
    small = cells[:60, cells.layers["counts"].sum(0).A1.argsort()[-6:]].copy()
    quick = {"match_steps": 3, "piece_steps": 3, "path_steps": 3}
    fitted = ch.NeuralODE(**quick, n_refits=2).fit(small, timed)
    assert len(fitted.members) == 2
    assert all(m.model.n_refits == 0 for m in fitted.members)
    paths = [m.trajectory(small[:3].copy(), [0.0, 8.0]).X for m in fitted.members]
    assert np.abs(paths[0] - paths[1]).max() > 0
    assert ch.NeuralODE(**quick).fit(small, timed).members == []
    assert fitted.members[0].provenance["cells"] == fitted.provenance["cells"]


@pytest.mark.slow
def test_after_ctrl_c_in_the_refits_there_are_none(cells, schema, monkeypatch):
    from chreode.models.dynamics.refits import Refits

    def stop(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Refits, "_refit", stop)
    timed = schema.with_(time="obs/day", trajectory="obs/donor")
    small = cells[:60, cells.layers["counts"].sum(0).A1.argsort()[-6:]].copy()
    quick = {"match_steps": 3, "piece_steps": 3, "path_steps": 3}
    with pytest.warns(UserWarning, match="forecasts are of one fit"):
        assert ch.NeuralODE(**quick, n_refits=2).fit(small, timed).members == []


@config
class Restarted(Model):
    """Toy: the members compete, and the best of them is the model."""

    needs: ClassVar = ("views",)
    criteria: tuple[float, ...] = param((1.0, 2.0), "Of the members (below 0: NaN).")
    lr: float = param(1e-9, "Learning rate.")

    def build(self, spec):
        return Means(spec.n_features("views/X"), len(self.criteria))

    def phases(self):
        criteria = iter([c if c >= 0 else np.nan for c in self.criteria])
        own = Phase(SGD(lr=self.lr, max_epochs=2, keep="last"), data=FullBatch(1))
        ensemble = Ensemble(len(self.criteria), (own,), best=lambda *_: next(criteria))
        return [Phase(ensemble, name="restarts")]


def test_the_first_of_the_members_that_compete_goes_on_from_an_earlier_fit():
    cells, _ = simulated(100, 5)
    start = Restarted(lr=0.2).fit(cells, X)
    again = Restarted(criteria=(2.0, 1.0)).fit(cells, X, from_=start)
    own = start.module.mean.detach()
    assert own.abs().max() > 0.1
    torch.testing.assert_close(again.members[0].module.mean.detach(), own)
    torch.testing.assert_close(again.module.mean.detach(), own)
    assert again.members[1].module.mean.abs().max() < 1e-6  # from new weights


def test_a_criterion_that_is_no_number_is_never_the_best():
    cells, _ = simulated(100, 5)
    fitted = Restarted(criteria=(-1.0, 1.0, 2.0)).fit(cells, X)
    assert "member 2 is the best of 3" in fitted.provenance["notes"][-1]
    with pytest.raises(ch.FitError, match="the criterion of all is not a number"):
        Restarted(criteria=(-1.0, -1.0)).fit(cells, X)
    assert found_again(torch.eye(3).double(), []).isnan().all()


def test_a_member_says_what_it_learned_from_and_how_it_stood(tmp_path, monkeypatch):
    cells, _ = simulated(200, 5)
    fitted = Mean().fit(cells, X, validation=0)
    assert fitted.provenance["cells"] == 200
    for member in fitted.members:
        assert (member.provenance["cells"], member.provenance["validation_cells"]) == (150, 50)
        of_ends = ("had to level off", "had its best objective")
        assert all(any(said in n for said in of_ends) for n in member.provenance["notes"])
        assert "150 cells" in member.card()
    monkeypatch.setattr("chreode.fitted.find", {"mean": Mean}.__getitem__)
    again = ch.load(fitted.save(tmp_path / "all"))
    records = [[m.provenance for m in one.members] for one in (fitted, again)]
    assert records[0] == records[1]
    wrong = [{**fitted.provenance["members"][0], "cells": "x"}]
    broken = dataclasses.replace(fitted, provenance={**fitted.provenance, "members": wrong})
    broken.save(tmp_path / "broken")
    with pytest.raises(ch.StoreError, match="provenance"):
        ch.load(tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("model", [Mean(), ch.PCA(n_latent=2), Factors(n_factors=2, max_epochs=2)])
def test_cells_that_are_named_to_validate_on_are_never_learned_from(model):
    cells, _ = simulated(200, 5)
    named = np.arange(0, 200, 10)
    plain = model.fit(cells, X if "views" in model.needs else ch.Schema(expression="X"))
    assert plain.provenance["validation_cells"] in (0, 20)
    cells.X[named] *= 100
    schema = X if "views" in model.needs else ch.Schema(expression="X")
    fitted, other = (model.fit(data, schema, validation=named) for data in (cells, cells.copy()))
    assert fitted.provenance["validation_cells"] == 20
    few = np.setdiff1d(np.arange(200), named)
    alone = model.fit(cells[few].copy(), schema, validation=0)
    for one in (fitted, other):
        np.testing.assert_allclose(
            one.embed(cells[few].copy()).std(), alone.embed(cells[few].copy()).std(), rtol=0.1
        )


class Drawing(Means):
    """Draws numbers when a stage begins, and puts them where the state can be read."""

    def prepare(self, source, rows, rng):
        self.mean.copy_(torch.randn_like(self.mean))

    def fresh(self):
        return Drawing(len(self.mean))


@config
class Drawn(Mean):
    """Toy."""

    def build(self, spec):
        module = Drawing(spec.n_features("views/X"))
        module.members = torch.nn.ModuleList(module.fresh() for _ in range(self.n))
        return module

    def phases(self):
        own = Phase(SGD(lr=1e-9, max_epochs=1, keep="last"), data=FullBatch(1))
        return [Phase(Ensemble(self.n, (own,), self.rows), name="members")]


def test_what_a_stage_draws_when_it_begins_follows_the_seed_alone():
    cells, _ = simulated(100, 5)
    drawn = []
    for of_torch in (1, 2):
        torch.manual_seed(of_torch)
        drawn.append(torch.stack([m.module.mean for m in Drawn(n=2).fit(cells, X).members]))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0][0], drawn[0][1])
