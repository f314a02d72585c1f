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
from chreode.module import Loss, Members, Module


@pytest.fixture(scope="module")
def restarts(blood):  # noqa: F811
    return Factors(n_factors=6, n_restarts=5, max_epochs=30).fit(blood, X)


def last(table):
    return table.groupby("member")["train_elbo"].last()


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
        self.members = Members(Means(g) for _ in range(n))

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
