"""Cells without a label, a perturbation, a modality or a value are refused where a model needs it."""

from __future__ import annotations

from typing import ClassVar

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from contract.test_sets import Additive
from torch import nn

import chreode as ch
from chreode.config import config
from chreode.data.batch import CellBatch
from chreode.data.sampler import Balanced, Shuffled
from chreode.data.simulate import simulate_cells
from chreode.learn import SGD, Exact, Phase
from chreode.model import Model
from chreode.module import Loss, Module
from chreode.nn.blocks import CategoryTable

LABELS = ch.Schema(counts="X", batch="obs/batch", label="obs/known")
SETS = ch.Schema(counts="X", perturbation="obs/guide", control="none")


class NamedModule(Module):
    """Logits of labels: linear in expression, moved by the batch."""

    def __init__(self, spec):
        super().__init__()
        n = len(spec.categories["label"])
        self.linear = nn.Linear(spec.n_features("counts"), n)
        self.shift = CategoryTable(spec.blocks["batch"], n, 0.01)

    def logits(self, batch):
        return self.linear(batch.log_expression()) + self.shift.table()[batch["batch"]]

    def loss(self, batch, step):
        known = batch["label"] >= 0
        own = F.cross_entropy(self.logits(batch), batch["label"], ignore_index=-1, reduction="sum")
        ridge = self.shift.table().square().sum()
        return Loss({"model": own / known.sum().clamp_min(1) + ridge})

    def classify(self, batch):
        return self.logits(batch).softmax(1)


@config
class Named(Model):
    """Toy."""

    needs: ClassVar = ("counts", "batch", "label")

    def build(self, spec):
        return NamedModule(spec)

    def phases(self):
        return [Phase(SGD(lr=0.01, max_epochs=1), data=Shuffled(64))]


@config
class Evenly(Named):
    """Toy."""

    needs: ClassVar = ("counts", "batch")
    uses: ClassVar = ("label",)

    def phases(self):
        return [Phase(SGD(lr=0.01, max_epochs=1), data=Balanced(64))]


@pytest.fixture(scope="module")
def _cells():
    cells = simulate_cells(100, 12, n_batches=2, seed=0)
    at = np.arange(100)
    cells.obs["known"] = pd.Series(np.where(at < 30, at % 2, np.nan), cells.obs_names).map(
        {0.0: "a", 1.0: "b"}
    )
    cells.obs["guide"] = np.where(at < 30, "KLF1", "none")
    return cells


@pytest.fixture
def cells(_cells):
    return _cells.copy()


def fit(model, cells, schema, **how):
    return model.fit(cells, schema, progress=False, **{"validation": 0, **how})


@pytest.mark.parametrize(
    ("model", "schema", "role"),
    [
        (Named(), LABELS, r"label \(obs/known\)"),
        (Additive(max_epochs=1), SETS, r"perturbation \(obs/guide\)"),
    ],
)
def test_what_no_cell_to_learn_from_has_is_refused(cells, model, schema, role):
    old, bare = fit(model, cells, schema), cells[30:].copy()
    said = f"No cell to learn from has a {role}, and {model.key} learns from"
    for how in (
        {"cells": bare},
        {"cells": bare, "from_": old},
        {"cells": cells, "rows": np.arange(30, 100)},
        {"cells": cells, "validation": np.arange(30)},
        {"cells": cells, "validation": np.arange(30), "from_": old},
    ):
        with pytest.raises(ch.DataError, match=said):
            fit(model, how.pop("cells"), schema, **how)
    fit(model, cells, schema, validation=np.arange(28))


def test_cells_of_a_new_batch_need_no_label_to_be_mapped(cells):
    old, query = fit(Named(), cells, LABELS), cells[30:].copy()
    query.obs["batch"] = "another"
    new = fit(Named(), query, LABELS, from_=old)
    assert new.module.linear.weight.equal(old.module.linear.weight)


def test_cells_are_drawn_by_a_label_only_if_some_have_one(cells):
    fit(Evenly(), cells, LABELS)
    with pytest.raises(ch.DataError, match="No cell to learn from has a label, by which"):
        fit(Evenly(), cells, LABELS, validation=np.arange(30))


class BothModule(Module):
    """The first counts, by every verb that reads cells."""

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1))

    def solve(self, batches, rng):
        pass

    def embed(self, batch):
        return batch["counts"][:, :2]

    def posterior(self, batch, n):
        return self.embed(batch).expand(n, -1, -1)

    def score(self, batch, n, exact):
        return self.embed(batch).sum(1)

    def classify(self, batch):
        return torch.ones(len(batch), 2) / 2

    def variance_explained(self, batch):
        return {"counts": torch.ones(3)}

    def reconstruct(self, batch, to):
        return batch["counts"]

    def predict(self, batch, to):
        return batch["counts"]


@config
class Both(Model):
    """Toy."""

    needs: ClassVar = ("counts", "protein")
    uses: ClassVar = ("label",)

    def build(self, spec):
        return BothModule()

    def phases(self):
        return [Phase(Exact())]


def joined(rna, adt):
    with mudata.set_options(pull_on_update=False):
        found = mudata.MuData({"rna": rna, "adt": adt})
    found.obs["t"] = ["a", "b"] * (found.n_obs // 2)
    return found


PARTS = ch.Schema(counts="rna:X", protein="adt:X", label="obs/t")


@pytest.fixture
def parts():
    rna = simulate_cells(20, 10, seed=0)
    return rna, ad.AnnData(np.ones((20, 3), "f4"), obs=rna.obs[[]].copy())


@pytest.mark.parametrize(
    "verb",
    ["embed", "posterior", "score", "classify", "variance_explained", "reconstruct", "predict"],
)
def test_every_verb_refuses_cells_of_which_none_can_be_used(parts, verb):
    rna, adt = parts
    fitted = fit(Both(), joined(rna, adt), PARTS)
    to = {"to": {}} if verb == "predict" else {}
    getattr(fitted, verb)(joined(rna, adt[10:].copy()), **to)
    with pytest.raises(ch.DataError, match="No cell has every modality that this both reads"):
        getattr(fitted, verb)(joined(rna[:10].copy(), adt[10:].copy()), **to)


def test_values_of_cells_that_are_not_read_are_not_judged(parts):
    rna, adt = parts
    adt.X[3, 0] = np.nan
    whole, rest = joined(rna, adt), np.arange(20) != 3
    with pytest.raises(ch.DataError, match="protein holds NaN"):
        fit(Both(), whole, PARTS)
    fitted = fit(Both(), whole, PARTS, rows=rest)
    with pytest.raises(ch.DataError, match="protein holds NaN"):
        fitted.embed(whole)
    found = fitted.embed(joined(rna[rest].copy(), adt))  # the fourth cell has no counts
    assert np.isnan(found).any(1).sum() == 1


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_values_of_features_that_are_not_read_are_not_judged(parts, form):
    rna, adt = parts
    fitted = fit(Both(), joined(rna, adt), PARTS)
    more = ad.AnnData(np.full((20, 4), np.nan, "f4"), obs=adt.obs)
    more.var_names = ["further", *adt.var_names]
    more.X[:, 1:] = adt.X
    more.X = form(more.X)
    assert np.isfinite(fitted.embed(joined(rna, more))).all()
    more.X[2, 3] = np.nan
    with pytest.raises(ch.DataError, match="protein holds NaN"):
        fitted.embed(joined(rna, more))


@pytest.mark.parametrize("held", ["absent", "text"])
def test_vectors_are_checked_though_no_model_reads_them(cells, held):
    cells.uns["text"] = "no table"
    schema = SETS.with_(vectors=f"uns/{held}")
    error = ch.SchemaError if held == "absent" else ch.DataError
    with pytest.raises(error, match=f"vectors.*uns/{held}"):
        fit(ch.PCA(n_latent=2), cells, schema)


@pytest.mark.parametrize("role", ["expression", "counts"])
def test_expression_is_measured_as_its_own_role_is(role):
    """Whatever was measured of other roles, and whichever cells lack it."""
    r = np.random.default_rng(0)
    for _ in range(20):
        known = {n: torch.from_numpy(r.random(k) < 0.6) for n, k in ((role, 3), ("protein", 4))}
        there = {n: torch.from_numpy(r.random(2) < 0.6) for n in known}
        values = {n: torch.ones(2, len(k)) * k * there[n][:, None] for n, k in known.items()}
        observed = {n: k for n, k in known.items() if r.random() < 0.7}
        present = {n: p for n, p in there.items() if r.random() < 0.7}
        batch = CellBatch(torch.arange(2), values, present, observed)
        x, mask = batch.measured_expression()
        assert torch.equal(x, batch.log_expression())
        wanted = torch.ones(2, 3) * observed.get(role, torch.ones(3))
        wanted = wanted * present.get(role, torch.ones(2))[:, None]
        assert torch.equal(mask.expand(2, 3), wanted)
        assert torch.equal(batch.measured(role)[1], mask)


def test_labels_keep_columns_of_their_own(parts):
    names = ["label", "label (probability)", "confidence", "plain"]
    rna, adt = parts
    whole = joined(rna, adt)
    whole.obs["t"] = names * 5

    class FourModule(BothModule):
        def classify(self, batch):
            return torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(len(batch), -1)

    @config
    class Four(Both):
        """Toy."""

        def build(self, spec):
            return FourModule()

    table = fit(Four(), whole, PARTS).classify(whole)
    assert table.columns.is_unique
    assert table["label"].iloc[0] == "plain"
    found = table.iloc[0, 2:].astype(float).round(6).to_dict()
    assert found == {
        "confidence (probability)": 0.1,
        "label (probability) (probability)": 0.2,
        "label (probability)": 0.3,
        "plain": 0.4,
    }
