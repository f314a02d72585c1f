"""Labels of some cells, a fit that starts from another model's, and `classify`.

The model is 32 lines: scVI with a linear classifier of its latent state, as in scANVI, learned from the cells
that have a label and started from a fit of `SCVI`. Cells: 3k PBMC with 9 types, of which 10 cells each have
their name.
"""

from __future__ import annotations

import json
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch.nn.functional as F
from torch import nn

import chreode as ch
from chreode.commands.app import main
from chreode.config import config, param
from chreode.data.align import MissingFeatures
from chreode.data.sampler import Shuffled
from chreode.learn import SGD, Phase
from chreode.model import Model
from chreode.models.scvi import SCVIModule
from chreode.module import Loss, Module

FILE = "pbmc3k/pbmc3k_2700.h5ad"
BARE = ch.Schema(counts="X")
ROLES = BARE.with_(label="obs/known")


class LabelledModule(Module):
    """scVI, and logits of labels that are linear in its latent mean."""

    def __init__(self, n_latent, spec):
        super().__init__()
        self.scvi = SCVIModule(ch.SCVI(n_latent=n_latent), spec)
        self.classifier = nn.Linear(n_latent, len(spec.categories["label"]))

    def prepare(self, source, rows, rng):
        self.scvi.prepare(source, rows, rng)

    def loss(self, batch, step):
        bound = self.scvi.loss(batch, step)
        # ninety names would bend a state that thousands of cells tell: they only read it
        logits, label = self.classifier(self.embed(batch).detach()), batch["label"]
        guess = F.cross_entropy(logits, label, ignore_index=-1, reduction="none")
        guess = step.mean(guess, label >= 0)
        return Loss({"model": bound.objectives["model"] + guess}, {"cross_entropy": guess})

    def embed(self, batch):
        return self.scvi.embed(batch)

    def classify(self, batch):
        return self.classifier(self.embed(batch)).softmax(1)


@config
class Labelled(Model):
    """Toy."""

    needs: ClassVar = ("counts", "label")
    uses: ClassVar = ("batch",)
    starts_from: ClassVar = {"scvi": "scvi"}
    n_latent: int = param(10, "Dimensions.")
    lr: float = param(1e-2, "Learning rate.")
    max_epochs: int = param(15, "Passes.")

    def build(self, spec):
        return LabelledModule(self.n_latent, spec)

    def phases(self):
        return [Phase(SGD(lr=self.lr, max_epochs=self.max_epochs), data=Shuffled(128))]


@pytest.fixture(scope="module")
def pbmc(real):
    """Return cells of known types with 500 variable genes; `known` names 10 cells of each type."""
    cells = ad.read_h5ad(real(FILE))
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells = cells[~cells.obs["cell_type"].isin(["", "nan"])].copy()
    x = cells.X.toarray()
    spread = np.log1p(x * 1e4 / x.sum(1, keepdims=True)).var(0)
    cells = cells[:, np.sort(spread.argsort()[-500:])].copy()
    r = np.random.default_rng(0)
    order = pd.Series(r.permutation(cells.n_obs), cells.obs_names)
    rank = order.groupby(cells.obs["cell_type"].to_numpy()).rank()
    cells.obs["known"] = cells.obs["cell_type"].where(rank <= 10).astype("category")
    return cells


@pytest.fixture(scope="module")
def scvi(pbmc):
    return ch.SCVI(max_epochs=25).fit(pbmc, BARE, validation=0)


@pytest.fixture(scope="module")
def fitted(pbmc, scvi):
    return Labelled().fit(pbmc, ROLES, from_=scvi, validation=0)


@pytest.mark.slow
def test_ten_labels_a_type_name_the_other_cells(pbmc, fitted):
    cells = pbmc.copy()
    table = fitted.classify(cells)
    hidden = pbmc.obs["known"].isna().to_numpy()
    assert (~hidden).sum() == 10 * pbmc.obs["cell_type"].nunique()
    truth = pbmc.obs["cell_type"].to_numpy()[hidden]
    right = (table["label"].to_numpy()[hidden] == truth).mean()
    majority = pd.Series(truth).value_counts(normalize=True).max()
    assert majority < 0.3
    assert right > 0.7

    names = list(fitted.spec.categories["label"])
    assert table.columns.tolist() == ["label", "confidence", *names]
    assert table.index.equals(cells.obs_names)
    np.testing.assert_allclose(table[names].sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(table["confidence"], table[names].max(axis=1))
    assert (table[names].idxmax(axis=1) == table["label"].astype(str)).all()
    assert cells.obs["labelled_label"].cat.categories.tolist() == names
    assert cells.obs["labelled_label"].tolist() == table["label"].tolist()
    assert cells.obs["labelled_confidence"].dtype == np.float32
    for slot in ("labelled_label", "labelled_confidence"):
        assert json.loads(cells.uns["chreode"][slot])["model"] == "labelled"


@pytest.mark.slow
def test_labels_that_are_asked_for_are_never_read(pbmc, fitted):
    """Neither by `classify`, nor by a fit from cells that are not among its rows."""
    bare, wrong = pbmc.copy(), pbmc.copy()
    del bare.obs["known"]
    wrong.obs["known"] = wrong.obs["cell_type"].to_numpy()[::-1]
    found = fitted.classify(pbmc.copy())
    for cells in (bare, wrong):
        assert fitted.classify(cells).equals(found)
    rows = pbmc.obs["known"].notna().to_numpy() | (np.arange(pbmc.n_obs) % 2 == 0)
    beyond = pbmc.copy()
    beyond.obs["known"] = beyond.obs["known"].where(rows, wrong.obs["known"].to_numpy()[0])
    assert beyond.obs["known"].notna().sum() > pbmc.obs["known"].notna().sum()
    fits = [Labelled(max_epochs=1).fit(c, ROLES, rows=rows, validation=0) for c in (pbmc, beyond)]
    one, other = (f.module.state_dict() for f in fits)
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_it_starts_from_the_weights_of_another_model_and_says_which(pbmc, scvi):
    """At a learning rate of nothing, the part is the old model; the classifier is new."""
    still = Labelled(lr=1e-12, max_epochs=1).fit(pbmc, ROLES, from_=scvi, validation=0)
    old = scvi.module.state_dict()
    new = still.module.scvi.state_dict()
    for name in ("encoder.mean.weight", "head.weight", "log_theta.blocks.0"):
        if name in old:
            np.testing.assert_allclose(new[name], old[name], atol=1e-6)
    np.testing.assert_allclose(new["head.weight"], old["head.weight"], atol=1e-6)
    n = len(old)
    assert still.provenance["notes"][0] == (
        f"started from a fitted scvi, with {n} of its {n} tensors; "
        "fresh are classifier.weight, classifier.bias"
    )
    assert still.spec.features == scvi.spec.features
    shuffled = pbmc[:, ::-1].copy()  # features follow the older fit
    same = Labelled(lr=1e-12, max_epochs=1).fit(shuffled, ROLES, from_=scvi, validation=0)
    assert same.spec == still.spec
    with (
        pytest.warns(MissingFeatures),
        pytest.raises(ch.DataError, match="without 1 of the"),
    ):
        Labelled().fit(pbmc[:, 1:].copy(), ROLES, from_=scvi)


@pytest.mark.slow
def test_what_it_cannot_start_from_is_refused(pbmc, scvi):
    few = pbmc[::5].copy()
    pca = ch.PCA(n_latent=3).fit(few, BARE)
    with pytest.raises(
        ch.ConfigError,
        match="a fitted pca, this is labelled, which starts from fits of its own and of scvi",
    ):
        Labelled().fit(few, ROLES, from_=pca)
    with pytest.raises(ch.ConfigError, match=r"a fitted pca, this is scvi\."):
        ch.SCVI().fit(few, BARE, from_=pca)
    few.obs["lane"] = [f"l{i % 2}" for i in range(few.n_obs)]
    with_batch = ch.SCVI(max_epochs=1).fit(few, BARE.with_(batch="obs/lane"))
    with pytest.raises(ch.ConfigError, match="from_ reads batch, which this fit does not"):
        Labelled().fit(few, ROLES, from_=with_batch)
    with pytest.warns(UserWarning, match=r"encoder.mean.weight.*\(128 x 10 there, 128 x 4 here\)"):
        other = Labelled(n_latent=4, max_epochs=1).fit(few, ROLES, from_=scvi)
    assert "of its" in other.provenance["notes"][0]
    few.obs["known"] = np.nan
    with pytest.raises(ch.DataError, match=r"No cell to learn from has a label \(obs/known\)"):
        Labelled().fit(few, ROLES)


@pytest.mark.slow
def test_a_batch_may_be_new_to_the_older_fit(pbmc, scvi):
    """All weights learn then, not those of the new batch alone."""
    few = pbmc[::3].copy()
    few.obs["lane"] = [f"l{i % 2}" for i in range(few.n_obs)]
    roles = BARE.with_(batch="obs/lane")
    old = ch.SCVI(max_epochs=1).fit(few[few.obs["lane"] == "l0"].copy(), roles)
    named = roles.with_(label="obs/known")
    new = Labelled(max_epochs=1).fit(few, named, from_=old, validation=0)
    assert new.spec.blocks["batch"] == (1, 1)
    moved = new.module.scvi.head.weight != old.module.head.weight
    assert bool(moved.any())
    again = Labelled(max_epochs=1).fit(few, named, from_=new, validation=0)
    assert again.spec == new.spec


@pytest.mark.slow
def test_the_command_writes_columns_into_a_copy(pbmc, fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("chreode.commands.use.load_model", lambda *_: fitted)
    monkeypatch.chdir(tmp_path)
    query = pbmc[::20].copy()
    del query.obs["known"]
    query.write_h5ad("query.h5ad")
    assert main(["classify", "run", "query.h5ad", "-o", "named.h5ad", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["keys"] == ["labelled_label", "labelled_confidence"]
    named = ad.read_h5ad("named.h5ad")
    table = fitted.classify(query)
    assert named.obs["labelled_label"].tolist() == table["label"].tolist()
    np.testing.assert_array_equal(named.obs["labelled_confidence"], table["confidence"])
    assert named.obs["cell_type"].tolist() == query.obs["cell_type"].tolist()
    assert sum(told["labels"].values()) == query.n_obs
    assert main(["classify", "run", "named.h5ad", "--in-place"]) == 0  # a second time
    twice = ad.read_h5ad("named.h5ad")
    assert twice.obs.columns.tolist() == named.obs.columns.tolist()
    assert json.loads(twice.uns["chreode"]["labelled_label"])["model"] == "labelled"


@pytest.mark.slow
def test_a_model_without_labels_cannot_classify(pbmc, scvi):
    with pytest.raises(ch.CapabilityError, match="SCVI cannot classify"):
        scvi.classify(pbmc)
