"""Doses are amounts of the names in a set, and vectors are data of a fit.

The models are those of `test_sets`; cells are simulated, as nothing here is about how good a fit is.
"""

from __future__ import annotations

import json
import shutil
import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from contract.test_sets import Additive, AdditiveModule
from torch import nn

import chreode as ch
from chreode import store
from chreode.config import config, param
from chreode.data.horizon import ForecastWarning
from chreode.data.sampler import Shuffled
from chreode.data.simulate import simulate_cells
from chreode.fitted import seal
from chreode.learn import SGD, Phase
from chreode.model import Model
from chreode.module import Loss, Module

ROLES = ch.Schema(counts="X", perturbation="obs/guide", control="none")
DOSED = ROLES.with_(dose="obs/nM")
VECTORS = ROLES.with_(vectors="uns/embedding")
KNOWN = ["A", "B", "C"]


class AskedModule(AdditiveModule):
    """With every verb that takes other conditions."""

    def reconstruct(self, batch, to, library=None):
        return self.expected(to)

    def embed(self, batch, to=None):
        return self.expected(to or batch)


@config
class Asked(Additive):
    """Toy."""

    inverts: ClassVar = True

    def build(self, spec):
        return AskedModule(spec)


class CentredModule(Module):
    """A slope of the dose, centred and scaled."""

    def __init__(self, n_genes):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(n_genes))

    def loss(self, batch, step):
        error = batch.log_expression() - batch["dose"][:, None] * self.slope
        return Loss({"model": error.square().mean()})


@config
class Centred(Model):
    """Toy."""

    needs: ClassVar = ("counts", "dose")
    max_epochs: int = param(1, "Passes.")

    def build(self, spec):
        return CentredModule(spec.n_features("counts"))

    def phases(self):
        return [Phase(SGD(lr=0.1, max_epochs=self.max_epochs), data=Shuffled(64))]


@config
class AfterCentred(Additive):
    """Toy."""

    starts_from: ClassVar = {"centred": ""}


@pytest.fixture(scope="module")
def _cells():
    cells = simulate_cells(100, 12, seed=0)
    guide = np.array(["none", "A", "B", "C", "A+B"])[np.arange(100) % 5]
    cells.obs["guide"] = guide
    cells.obs["nM"] = np.where(guide == "none", 0.0, 10.0)
    # in the second plate there are controls alone
    cells.obs["plate"] = np.where((guide == "none") & (np.arange(100) < 50), "p2", "p1")
    return cells


@pytest.fixture
def cells(_cells):
    return _cells.copy()


@pytest.fixture(scope="module")
def dosed(_cells):
    return Asked(max_epochs=2).fit(_cells, DOSED, validation=0, progress=False)


def embedding(names, width=4):
    """Return a vector for each name, the same one for the same name."""
    rows = [np.random.default_rng(sum(map(ord, name))).normal(size=width) for name in names]
    return pd.DataFrame(rows, index=list(names))


def with_vectors(cells, names, width=4):
    cells = cells.copy()
    cells.uns["embedding"] = embedding(names, width)
    return cells


@pytest.mark.parametrize("verb", ["predict", "reconstruct", "embed"])
def test_a_perturbation_of_cells_without_a_dose_needs_one(cells, dosed, verb):
    ask = getattr(dosed, verb)
    rest = cells[cells.obs["guide"] == "none"].copy()
    with pytest.raises(ch.ConfigError, match=r"20 cells with a dose of 0.*'dose': 10\.0\}"):
        ask(rest, to="A+C")
    ask(rest, to={"perturbation": "A+C", "dose": 5})
    ask(rest, to="none")
    ask(rest, to={"dose": 3})
    ask(cells[cells.obs["guide"] == "B"].copy(), to="A+C")  # at their own dose


@pytest.mark.parametrize("asked", ["A", "A+C", ["A", "A+C", "none"] * 30])
def test_new_cells_of_a_perturbation_have_a_dose(dosed, asked):
    made = dosed.generate(90, given={"perturbation": asked}, seed=0).obs
    none = made["guide"] == "none"
    assert (made.loc[~none, "nM"] == 10).all()
    given = {"perturbation": asked, "dose": 4.0}
    assert (dosed.generate(90, given=given, seed=0).obs["nM"] == 4).all()


def test_new_cells_have_a_dose_where_others_of_their_kind_have_none(cells):
    @config
    class Plated(Additive):
        """Toy."""

        uses: ClassVar = ("dose", "categorical")

    plated = DOSED.with_(categorical=("obs/plate",))
    fitted = Plated(max_epochs=1).fit(cells, plated, validation=0, progress=False)
    given = {"perturbation": "A+C", "plate": "p2"}
    made = fitted.generate(40, given=given, seed=0).obs
    assert (made["nM"] == 10).all()
    assert (made["plate"] == "p2").all()


def test_an_amount_below_0_is_refused_on_every_path(cells, dosed):
    bad = cells.copy()
    bad.obs["nM"] = np.where(bad.obs["guide"] == "B", -bad.obs["nM"], bad.obs["nM"])
    for call in (
        lambda: Asked(max_epochs=1).fit(bad, DOSED, progress=False),
        lambda: Asked(max_epochs=1).fit(bad, DOSED, from_=dosed, progress=False),
        lambda: dosed.predict(bad, to="none"),
        lambda: dosed.embed(bad),
    ):
        with pytest.raises(ch.DataError, match="dose goes down to -10"):
            call()
    kept = (
        cells.obs["guide"] != "B"
    ).to_numpy()  # nobody asks about cells that are not learned from
    Asked(max_epochs=1).fit(bad, DOSED, rows=kept, validation=0, progress=False)
    asked = {"perturbation": "A", "dose": -1}
    for call in (
        lambda: dosed.predict(cells, to=asked),
        lambda: dosed.generate(3, given=asked),
        lambda: dosed.generate(3, given={"perturbation": "A", "dose": [1, 2, -1]}),
    ):
        with pytest.raises(ch.SchemaError, match="dose=-1: an amount is not negative"):
            call()


def test_doses_are_seen_from_none_to_the_largest(cells):
    cells.obs["nM"] = np.where(cells.obs["guide"] == "A", 10.0, 12.0)
    fitted = Asked(max_epochs=2).fit(cells, DOSED, validation=0, progress=False)
    some = cells[:10].copy()

    def at(dose, to="A"):
        return fitted.predict(some, to={"perturbation": to, "dose": dose}).X

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(at(0), at(12, "none"))
        assert np.abs(at(5) - at(0)).max() > 1e-4
        at(13)
    with pytest.warns(ForecastWarning, match=r"training cells have dose up to 12: 0\.333 times"):
        at(16)
    with pytest.raises(ch.ConfigError, match="no further beyond"):
        at(30)


def test_a_dose_that_meant_something_else_is_not_taken_over(cells):
    old = Centred().fit(cells, DOSED, validation=0, progress=False)
    assert old.spec.numbers["dose"][0] > 0
    with pytest.raises(ch.ConfigError, match="dose centred and scaled.*reads it as an amount"):
        AfterCentred(max_epochs=1).fit(cells, DOSED, from_=old, progress=False)


def test_a_fit_goes_on_with_vectors_of_further_names(cells):
    fit = Asked(max_epochs=2).fit
    old = fit(with_vectors(cells, KNOWN), VECTORS, validation=0, progress=False)
    longer = with_vectors(cells, [*KNOWN, "AA", "D"])
    new = fit(longer, VECTORS, from_=old, validation=0, progress=False)
    assert new.spec.categories["perturbation"] == (*KNOWN, "AA", "D")
    assert new.module.vectors[:3].equal(old.module.vectors)
    assert not new.module.slope.weight.equal(
        old.module.slope.weight
    )  # it goes on, and maps nothing
    cells.obs["guide"] = cells.obs["guide"].replace("C", "D")
    again = fit(with_vectors(cells, [*KNOWN, "D"]), VECTORS, from_=old, progress=False)
    assert {"D", "C"} <= set(again.generate(200, seed=0).obs["guide"])


def test_what_has_parameters_of_each_name_says_that_it_cannot_go_on(cells):
    class OfEachModule(AdditiveModule):
        def __init__(self, spec):
            super().__init__(spec)
            self.scale = nn.Parameter(torch.ones(len(spec.vectors), 1))

        def table(self):
            return self.scale * super().table()

    @config
    class OfEach(Additive):
        """Toy."""

        def build(self, spec):
            return OfEachModule(spec)

    old = OfEach(max_epochs=1).fit(with_vectors(cells, KNOWN), VECTORS, progress=False)
    longer = with_vectors(cells, [*KNOWN, "D"])
    with pytest.raises(ch.CapabilityError, match="cannot learn categories that are new"):
        OfEach(max_epochs=1).fit(longer, VECTORS, from_=old, progress=False)


@pytest.fixture(scope="module")
def described(_cells):
    """Return a fit whose vectors would be most of a description."""
    names = [*KNOWN, *(f"gene{i}" for i in range(300))]
    cells = with_vectors(_cells, names, 40)
    return Additive(max_epochs=2).fit(cells, VECTORS, validation=0, progress=False)


@pytest.fixture
def saved(described, tmp_path, monkeypatch):
    monkeypatch.setattr("chreode.fitted.find", lambda _: Additive)
    return described.save(tmp_path / "additive")


def test_vectors_are_kept_beside_the_description(described, saved, monkeypatch):
    monkeypatch.setattr("chreode.fitted._MOST", 40_000)  # a name's vector has more in JSON
    assert (saved / "vectors.safetensors").stat().st_size > 303 * 40 * 8 > 40_000
    described.save(saved)
    loaded = ch.load(saved)
    assert loaded.spec == described.spec
    assert loaded.spec.hash == described.spec.hash
    assert loaded.generate(5, seed=0).obs.equals(described.generate(5, seed=0).obs)


def test_a_spec_of_other_vectors_has_another_hash(described):
    vectors = dict(described.spec.vectors)
    vectors["gene7"] = (*vectors["gene7"][:-1], vectors["gene7"][-1] + 1e-12)
    other = type(described.spec)(**{**vars_of(described.spec), "vectors": vectors})
    assert other.hash != described.spec.hash
    with pytest.raises(ch.SchemaError, match="its vectors are others"):
        type(described.spec).from_dict(described.spec.as_dict(), vectors)
    with pytest.raises(ch.SchemaError, match="vectors"):
        type(described.spec).from_dict(described.spec.as_dict())


def vars_of(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def sign(folder):
    """Make the description agree with the vectors."""
    info = json.loads((folder / "model.json").read_text())
    file = folder / "vectors.safetensors"
    info["vectors"] = {"bytes": file.stat().st_size, "sha256": store.sha256(file)}
    info["sha256"] = seal({k: v for k, v in info.items() if k != "sha256"})
    (folder / "model.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.flip(0), lambda t: t[:-1], lambda t: t[:, 0], lambda t: t.long(),
        lambda t: t * torch.nan, lambda t: t.new_zeros(0),
    ],
)  # fmt: skip
def test_other_vectors_than_those_of_the_fit_are_refused(saved, change):
    file = saved / "vectors.safetensors"
    tensors, told = store.read_tensors(file)
    store.write_tensors(file, {"vectors": change(tensors["vectors"])}, told)
    with pytest.raises(ch.StoreError, match="cut short|was changed"):
        ch.load(saved)
    sign(saved)
    with pytest.raises(ch.StoreError):
        ch.load(saved)


def test_a_fit_without_vectors_leaves_none_of_an_older_one(described, saved, cells):
    (saved / "notes.txt").write_text("mine")
    bare = Additive(max_epochs=1).fit(cells, ROLES, validation=0, progress=False)
    bare.save(saved)
    assert not (saved / "vectors.safetensors").exists()
    assert (saved / "notes.txt").exists()
    assert ch.load(saved).spec == bare.spec
    described.save(saved)
    (saved / "vectors.safetensors").unlink()
    with pytest.raises(ch.StoreError, match="vectors.safetensors is absent"):
        ch.load(saved)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 1.0, 1.5, 30.0])
@pytest.mark.parametrize("heavy", ["model.json", "history.csv", "weights.safetensors"])
def test_save_refuses_what_load_would(cells, tmp_path, monkeypatch, heavy, share):
    """Whichever file is the largest, and whatever the most is that may be read."""
    monkeypatch.setattr("chreode.fitted.find", lambda _: Additive)
    fitted = Additive(max_epochs=1).fit(cells, ROLES, validation=0, progress=False)
    if heavy == "model.json":
        fitted.provenance["notes"].append("x" * 100_000)
    elif heavy == "history.csv":
        fitted = type(fitted)(**{**vars(fitted), "history": pd.concat([fitted.history] * 2000)})
    else:
        rows = {k: np.concatenate([v] * 200) for k, v in fitted.statistics.items()}
        fitted = type(fitted)(**{**vars(fitted), "statistics": rows})
    old = shutil.copytree(fitted.save(tmp_path / "old"), tmp_path / "new")
    most = int(share * (old / heavy).stat().st_size)
    assert most < 2**27
    monkeypatch.setattr("chreode.fitted._MOST", most)
    try:
        ch.load(old)
    except ch.StoreError:
        with pytest.raises(ch.StoreError, match="not saved, because load could not read it"):
            fitted.save(old)
    else:
        ch.load(fitted.save(old))
    for file in (tmp_path / "new").iterdir():
        assert (old / file.name).read_bytes() == file.read_bytes()
