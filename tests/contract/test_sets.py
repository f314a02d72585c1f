"""Perturbations in combinations: `A+B` as the set of A and B, asked for though no cell ever had both.

The model is 41 lines: expression is a base plus the sum of what each perturbation does, learned as a table
or as a linear map of a given vector. Cells: K562 of Norman et al. (2019), single and double activations.
"""

from __future__ import annotations

from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import chreode as ch
from chreode.config import config, param
from chreode.data.align import open_query
from chreode.data.cells import Cells
from chreode.data.sampler import Balanced, Shuffled
from chreode.data.sets import packed
from chreode.learn import SGD, Phase
from chreode.model import Model
from chreode.module import Loss, Module
from chreode.nn.blocks import CategoryTable
from chreode.schema import Spec, members

FILE = "norman_mcfaline_crispr/norman19_mcfaline23_5961x500.h5ad"
ROLES = ch.Schema(counts="layers/counts", perturbation="obs/perturbation", control="control")


class AdditiveModule(Module):
    """A base and effects that add up."""

    def __init__(self, spec):
        super().__init__()
        genes = spec.n_features("counts")
        self.prior = 30 / spec.n_cells  # ridge
        self.register_buffer("base", torch.zeros(genes))
        names = spec.categories["perturbation"] if spec.vectors else ()
        self.register_buffer("vectors", torch.tensor([spec.vectors[name] for name in names]))
        if names:
            self.slope = nn.Linear(self.vectors.shape[1], genes, bias=False)
        else:
            self.effects = CategoryTable(spec.blocks["perturbation"], genes, 0.01)

    def prepare(self, source, rows, rng):
        if not self.base.any():  # else the fit starts from another one
            batch = source.batch(rows)
            self.base.copy_(batch.log_expression()[batch["perturbation"].sum(1) == 0].mean(0))

    def table(self):
        return self.slope(self.vectors) if len(self.vectors) else self.effects.table()

    def expected(self, batch):
        return self.base + batch.amounts("perturbation") @ self.table()

    def loss(self, batch, step):
        error = (self.expected(batch) - batch.log_expression()).square().sum(1).mean()
        return Loss({"model": error + self.prior * self.table().square().sum()})

    def predict(self, batch, to):
        return batch.log_expression() + self.expected(to) - self.expected(batch)

    def generate(self, batch):
        return self.expected(batch)


@config
class Additive(Model):
    """Toy."""

    needs: ClassVar = ("counts", "perturbation")
    uses: ClassVar = ("dose",)
    sets: ClassVar = ("perturbation",)
    scale: ClassVar = "log1p CP10k"
    max_epochs: int = param(25, "Passes.")

    def build(self, spec):
        return AdditiveModule(spec)

    def phases(self):
        learner = SGD(lr=0.03, max_epochs=self.max_epochs, schedule="cosine")
        return [Phase(learner, data=Shuffled(128))]


@pytest.fixture(scope="module")
def norman(real):
    cells = ad.read_h5ad(real(FILE))
    cells = cells[cells.obs["dataset"] == "norman19"].copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str)
    return cells


def log_expression(cells):
    x = cells.layers["counts"].toarray().astype(np.float64)
    return np.log1p(x * 1e4 / x.sum(1, keepdims=True))


def held_out(cells):
    """Return the doubles of which both arms were measured alone."""
    names = set(cells.obs["perturbation"])
    return sorted(n for n in names if "+" in n and set(n.split("+")) <= names)


@pytest.fixture(scope="module")
def fitted(norman):
    seen = ~norman.obs["perturbation"].isin(held_out(norman)).to_numpy()
    return Additive().fit(norman, ROLES, rows=seen, validation=0)


@pytest.fixture(scope="module")
def small(norman):
    """Return few cells and a short fit of them, for all that is not about how good it is."""
    kept = ["control", "KLF1", "MAP2K6", "TGFBR2", "KLF1+TGFBR2"]
    cells = norman[norman.obs["perturbation"].isin(kept)].copy()
    return cells, Additive(max_epochs=3).fit(cells, ROLES, validation=0)


def controls(cells, n=50):
    return cells[(cells.obs["perturbation"] == "control").to_numpy()][:n].copy()


@pytest.mark.slow
def test_doubles_never_seen_are_the_sum_of_their_arms(norman, fitted):
    """Against the mean of training, and against ridge regression, which has the same optimum."""
    doubles, y = held_out(norman), log_expression(norman)
    names = norman.obs["perturbation"].to_numpy()
    train = ~np.isin(names, doubles)
    single = sorted({m for name in names[train] for m in members(name, "control")})
    design = np.array([[float(s in members(n, "control")) for s in single] for n in names])[train]
    rest, mean = y[names == "control"].mean(0), y[train & (names != "control")].mean(0)
    ridge = design.T @ design + 30 * np.eye(len(single))
    best = np.linalg.solve(ridge, design.T @ (y[train] - rest))
    ours, theirs, far = [], [], []
    assert len(doubles) == 5
    for double in doubles:
        found = fitted.predict(controls(norman, None), to=double).X.mean(0)
        truth = y[names == double].mean(0)
        ours.append(np.square(found - truth).mean())
        theirs.append(np.square(mean - truth).mean())
        effect = best[[single.index(m) for m in members(double, "control")]].sum(0)
        far.append(np.abs(found - rest - effect).max() / np.abs(effect).max())
    assert np.mean(ours) < 0.6 * np.mean(theirs)
    assert np.max(far) < 0.1


def test_the_order_of_names_does_not_matter_and_the_control_changes_nothing(small):
    cells, fitted = small
    rest = controls(cells)
    one, other = (fitted.predict(rest, to=to).X for to in ("KLF1+MAP2K6", "MAP2K6+KLF1"))
    assert np.array_equal(one, other)
    np.testing.assert_allclose(
        fitted.predict(rest, to="control").X, log_expression(rest), atol=1e-5
    )
    swapped = cells.copy()
    swapped.obs["perturbation"] = cells.obs["perturbation"].replace("KLF1+TGFBR2", "TGFBR2 + KLF1")
    again = Additive(max_epochs=3).fit(swapped, ROLES, validation=0)
    for name, tensor in again.module.state_dict().items():
        assert tensor.equal(fitted.module.state_dict()[name])


def test_a_batch_holds_one_for_each_name_in_a_set(small):
    cells, fitted = small
    assert fitted.spec.categories["perturbation"] == ("KLF1", "MAP2K6", "TGFBR2")
    assert fitted.spec.sets == {"perturbation": "control"}
    source = open_query(Cells(cells, ROLES), fitted.spec, ["counts", "perturbation"])
    held = source.batch(np.arange(cells.n_obs))["perturbation"]
    assert held.dtype == torch.float32
    names = cells.obs["perturbation"].to_numpy()
    wanted = [[g in name.split("+") for g in ("KLF1", "MAP2K6", "TGFBR2")] for name in names]
    assert np.array_equal(held.numpy(), np.array(wanted, np.float32))


def test_sets_of_the_same_names_are_the_same_row():
    found = packed([[2, 0], [0, 2], [1], []])
    assert found.tolist() == [[0, 2], [0, 2], [1, -1], [-1, -1]]


def test_sets_are_drawn_equally_often(small):
    cells, fitted = small
    source = open_query(Cells(cells, ROLES), fitted.spec, ["counts", "perturbation"])
    rng = np.random.default_rng(0)
    rare = np.flatnonzero(cells.obs["perturbation"] == "KLF1")[10:]
    rows = np.setdiff1d(np.arange(len(source)), rare)
    drawn = list(Balanced(64, "perturbation").batches(source, rows, 0, rng))
    shares = cells.obs["perturbation"].iloc[np.concatenate(drawn)].value_counts(normalize=True)
    assert len(shares) == 5
    assert (shares.between(0.15, 0.25)).all()


def test_classes_to_fill_up_are_sets_in_whatever_order(small):
    class CountsModule(AdditiveModule):
        def generate(self, batch):
            return super().generate(batch).clamp_min(0).round()

    @config
    class Counts(Additive):
        """Toy."""

        scale: ClassVar = "counts"

        def build(self, spec):
            return CountsModule(spec)

    cells = small[0].copy()
    doubles = np.flatnonzero(cells.obs["perturbation"] == "KLF1+TGFBR2")
    swapped = cells.obs["perturbation"].to_numpy().copy()
    swapped[doubles[::2]] = "TGFBR2+KLF1"
    cells.obs["perturbation"] = swapped
    fitted = Counts(max_epochs=1).fit(cells, ROLES, validation=0)
    both = ch.augment(cells, fitted, by="perturbation", floor=len(doubles))
    assert not both.obs["generated"].any()
    both = ch.augment(cells, fitted, by="perturbation", floor=len(doubles) + 3)
    made = both.obs.loc[both.obs["generated"], "perturbation"]
    assert (made == "KLF1+TGFBR2").sum() == 3


def test_a_dose_is_how_much_there_was(small):
    """Twice the dose has twice the effect, none has none, and the largest dose of the fit is 1."""
    cells = small[0].copy()
    cells.obs["nM"] = np.where(cells.obs["perturbation"] == "control", 0.0, 1e4)
    cells.obs.loc[cells.obs_names[::3], "nM"] /= 4
    fitted = Additive(max_epochs=3).fit(cells, ROLES.with_(dose="obs/nM"), validation=0)
    assert fitted.spec.numbers["dose"] == (0.0, 1e4)
    rest = controls(cells)
    effect = [
        fitted.predict(rest, to={"perturbation": "KLF1+MAP2K6", "dose": d}).X - log_expression(rest)
        for d in (0.0, 4e3, 8e3)
    ]
    np.testing.assert_allclose(effect[0], 0, atol=1e-5)
    np.testing.assert_allclose(effect[2], 2 * effect[1], atol=1e-5)
    assert np.abs(effect[2]).max() > 1e-3
    cells.obs["nM"] -= 1
    with pytest.raises(ch.DataError, match="dose goes down to -1"):
        Additive().fit(cells, ROLES.with_(dose="obs/nM"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("KLF1+MAP2K9", "'MAP2K9' was never seen in the fit. Did you mean 'MAP2K6'"),
        ("ZZZ", "Available: control, KLF1, MAP2K6, TGFBR2"),
        ("KLF1+control", "names the control 'control' beside others"),
        ("KLF1+KLF1", "no combination of names, each once"),
        ("KLF1+", "no combination of names, each once"),
    ],
)
def test_what_is_no_set_of_known_names_is_refused(small, asked, said):
    cells, fitted = small
    with pytest.raises(ch.SchemaError) as caught:
        fitted.predict(controls(cells), to=asked)
    assert said in str(caught.value)


def test_cells_of_unknown_names_and_odd_sets_are_refused(small, norman):
    cells, fitted = small
    query = norman[norman.obs["perturbation"] == "SET+KLF1"].copy()
    with pytest.raises(ch.DataError, match=r"never saw 'SET'. It knows KLF1"):
        fitted.predict(query, to="KLF1")
    for odd in ("KLF1+control", "KLF1+KLF1"):
        mixed = cells.copy()
        mixed.obs.loc[mixed.obs_names[3], "perturbation"] = odd
        with pytest.raises(ch.DataError, match="perturbation: "):
            Additive().fit(mixed, ROLES)
        kept = np.arange(cells.n_obs) != 3  # nobody asks about cells that are not learned from
        Additive(max_epochs=1).fit(mixed, ROLES, rows=kept, validation=0)


def test_a_saved_fit_knows_its_sets(small, tmp_path, monkeypatch):
    cells, fitted = small
    monkeypatch.setattr("chreode.fitted.find", lambda _: Additive)
    loaded = ch.load(fitted.save(tmp_path / "additive"))
    assert loaded.spec == fitted.spec
    assert Spec.from_dict(fitted.spec.as_dict()) == fitted.spec
    one, other = (f.predict(controls(cells), to="MAP2K6+TGFBR2").X for f in (loaded, fitted))
    assert np.array_equal(one, other)
    assert loaded.generate(30, seed=1).obs.equals(fitted.generate(30, seed=1).obs)


def test_new_cells_are_drawn_of_sets_that_occur_or_of_any_that_is_given(small):
    cells, fitted = small
    free = fitted.generate(400, seed=0).obs["perturbation"]
    assert set(free) == set(cells.obs["perturbation"])
    share = (free == "control").mean() / (cells.obs["perturbation"] == "control").mean()
    assert 0.7 < share < 1.4
    asked = ["TGFBR2+MAP2K6+KLF1", "control", "KLF1", "KLF1"]
    made = fitted.generate(4, given={"perturbation": asked})
    assert made.obs["perturbation"].tolist() == ["KLF1+MAP2K6+TGFBR2", *asked[1:]]
    effects, base = fitted.module.table().detach(), fitted.module.base
    np.testing.assert_allclose(made.X[0], base + effects.sum(0), atol=1e-5)
    np.testing.assert_allclose(made.X[1], base, atol=1e-5)
    assert np.array_equal(made.X[2], made.X[3])


def test_of_a_name_that_no_training_cell_has_it_is_said(small):
    cells = small[0]
    apart = (cells.obs["perturbation"] == "MAP2K6").to_numpy()
    with pytest.warns(UserWarning, match="of perturbation MAP2K6 all cells are held out"):
        fitted = Additive(max_epochs=1).fit(cells, ROLES, validation=apart)
    with pytest.warns(UserWarning, match="perturbation='MAP2K6': no training cell is of it"):
        fitted.predict(controls(cells), to="KLF1+MAP2K6")
    fitted.predict(controls(cells), to="KLF1+TGFBR2")


@pytest.mark.slow
def test_a_query_brings_names_of_its_own(norman):
    """What is known stays so bit by bit; SET, which has no single arm, is told from SET+KLF1."""
    names = norman.obs["perturbation"]
    first = norman[
        names.isin(["control", "KLF1", "MAP2K6"])
    ].copy()  # no set of two, unlike the query
    query = norman[names.isin(["control", "SET+KLF1"])].copy()
    long = Additive(max_epochs=60)  # of few cells there are few steps in a pass
    old = long.fit(first, ROLES, validation=0)
    new = long.fit(query, ROLES, from_=old, validation=0)
    assert new.spec.categories["perturbation"] == ("KLF1", "MAP2K6", "SET")
    assert new.spec.blocks["perturbation"] == (2, 1)
    known = old.module.state_dict()
    assert all(new.module.state_dict()[name].equal(t) for name, t in known.items())
    truth = log_expression(norman[names == "SET+KLF1"]).mean(0)
    rest = controls(norman, None)
    error = [
        np.square(fit.predict(rest, to=to).X.mean(0) - truth).mean()
        for fit, to in ((new, "KLF1+SET"), (old, "KLF1"))
    ]
    assert error[0] < 0.5 * error[1]
    again = new.generate(200, seed=0).obs["perturbation"]  # old cells are remembered beside the new
    assert {"control", "KLF1", "MAP2K6", "KLF1+SET"} == set(again)
    query.obs["perturbation"] = query.obs["perturbation"].replace("control", "ctrl")
    with pytest.raises(ch.ConfigError, match="the control 'control'.*the control 'ctrl'"):
        Additive().fit(query, ROLES.with_(control="ctrl"), from_=old)


@pytest.mark.slow
def test_vectors_of_names_are_summed_and_asked_for_without_a_cell(norman, tmp_path, monkeypatch):
    """A name whose vector is the sum of two others' does what both do; no cell was ever of it."""
    doubles, r = held_out(norman), np.random.default_rng(0)
    names = norman.obs["perturbation"]
    single = sorted({m for name in names for m in members(name, "control")})
    table = pd.DataFrame(r.normal(size=(len(single), 40)), single)
    table.loc["TWIN"] = table.loc["KLF1"] + table.loc["MAP2K6"]
    cells = norman.copy()
    cells.uns["embedding"] = table
    roles = ROLES.with_(vectors="uns/embedding")
    seen = ~names.isin(doubles).to_numpy()
    fitted = Additive().fit(cells, roles, rows=seen, validation=0)
    assert len(fitted.spec.categories["perturbation"]) == len(single) + 1
    rest, y = controls(cells, None), log_expression(cells)
    mean = y[(seen & (names != "control")).to_numpy()].mean(0)
    found = {to: fitted.predict(rest, to=to).X.mean(0) for to in doubles}
    truth = {to: y[(names == to).to_numpy()].mean(0) for to in doubles}
    ours, theirs = (
        np.mean([np.square(guess[to] - truth[to]).mean() for to in doubles])
        for guess in (found, dict.fromkeys(doubles, mean))
    )
    assert ours < 0.7 * theirs
    twin = fitted.predict(rest, to="TWIN").X.mean(0)
    np.testing.assert_allclose(twin, found["KLF1+MAP2K6"], atol=1e-4)

    monkeypatch.setattr("chreode.fitted.find", lambda _: Additive)
    loaded = ch.load(fitted.save(tmp_path / "additive"))
    assert loaded.spec.vectors["TWIN"] == pytest.approx(table.loc["TWIN"].tolist())
    again = loaded.predict(rest, to="KLF1+MAP2K6").X
    assert np.array_equal(again, fitted.predict(rest, to="KLF1+MAP2K6").X)


def test_vectors_are_read_from_files_and_refused_where_they_are_none(small, tmp_path):
    cells = small[0].copy()
    roles, short = ROLES.with_(vectors="uns/embedding"), Additive(max_epochs=1)
    vectors = {name: [1.0, float(i)] for i, name in enumerate(("KLF1", "MAP2K6", "TGFBR2"))}
    with pytest.raises(ch.SchemaError, match="there is no 'embedding' in uns"):
        short.fit(cells, roles)
    for odd, said in (
        ({k: v for k, v in vectors.items() if k != "KLF1"}, "vectors lacks KLF1"),
        ({**vectors, "KLF1": [1.0]}, "vectors of one length"),
        ({**vectors, "KLF1": [1.0, np.nan]}, "finite numbers"),
        ("text", "expected a table"),
    ):
        cells.uns["embedding"] = odd
        with pytest.raises(ch.DataError, match=said):
            short.fit(cells, roles)
    with_control = {
        **vectors,
        "control": [9.0, 9.0],
    }  # the empty set, whose sum is 0 whatever stands there
    cells.uns["embedding"] = {k: np.array(v) for k, v in with_control.items()}
    in_memory = short.fit(cells, roles, validation=0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = short.fit(tmp_path / "cells.h5ad", roles, validation=0)
    assert on_disk.spec == in_memory.spec
    assert on_disk.spec.vectors["TGFBR2"] == (1.0, 2.0)
    assert set(on_disk.spec.vectors) == set(vectors) == set(on_disk.spec.categories["perturbation"])
    for wrong in ("layers/a", "embedding", "uns/"):
        with pytest.raises(ch.SchemaError, match="vectors='uns/NAME'"):
            ROLES.with_(vectors=wrong)


def test_models_that_read_single_categories_know_nothing_of_sets(small, quick):
    cells = small[0]
    fitted = quick(ch.CFGen, max_epochs=1, flow_epochs=1).fit(cells, ROLES)
    assert "KLF1+TGFBR2" in fitted.spec.categories["perturbation"]
    assert {"sets", "vectors"}.isdisjoint(fitted.spec.as_dict())
    with pytest.raises(ch.SchemaError, match="never seen in the fit"):
        fitted.predict(cells[:5].copy(), to="MAP2K6+KLF1")
