"""Typing by a self-supervised model: by labels that it never learns from, and what is unlike all of them."""

from __future__ import annotations

import copy
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import chreode as ch
from chreode.data.simulate import simulate_cells
from chreode.metrics.classifiers import HeldOut, LinearProbe, NearestLabels
from chreode.model import Model
from chreode.models.selfsupervised import reference
from chreode.models.selfsupervised.reference import Labelled, evenly
from chreode.schema import Spec

SCHEMA = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type")
QUICK = {"n_latent": 8, "n_hidden": 32, "projector": (16, 8), "max_epochs": 4, "batch_size": 64}


@pytest.fixture(scope="module")
def cells():
    found = simulate_cells(400, 150, n_types=4, n_batches=3, depth=2000, seed=0)
    found.obs["cell_type"] = found.obs["cell_type"].astype(str)
    return found


def fit(cells, schema=SCHEMA, **options):
    return ch.SimCLR(**{**QUICK, **options}).fit(cells, schema, validation=0, progress=False)


@pytest.fixture(scope="module")
def fitted(cells):
    return fit(cells)


@pytest.mark.slow
def test_labels_are_read_by_the_reference_alone(cells, fitted):
    other = cells.copy()
    other.obs["cell_type"] = np.random.default_rng(0).permutation(other.obs["cell_type"])
    found, before = fit(other).module.state_dict(), fitted.module.state_dict()
    learned = [name for name in before if not name.startswith("labelled.")]
    assert len(learned) > 10
    assert all(found[name].equal(before[name]) for name in learned)
    assert not found["labelled.codes"].equal(before["labelled.codes"])
    bare = fit(cells, ch.Schema(counts="X", batch="obs/batch"))
    assert bare.module.state_dict()["network.encoders.counts.last.weight"].equal(
        before["network.encoders.counts.last.weight"]
    )


@pytest.mark.parametrize("method", ["neighbours", "linear"])
@pytest.mark.parametrize("grouped", [True, False])
def test_it_answers_as_the_classifiers_of_its_embedding(cells, fitted, method, grouped):
    one = fitted if grouped else fit(cells, ch.Schema(counts="X", label="obs/cell_type"))
    z = one.embed(cells.copy())
    codes = pd.Categorical(cells.obs["cell_type"]).codes.astype(np.int64)
    groups = cells.obs["batch"].to_numpy() if grouped else None
    by = {"neighbours": NearestLabels, "linear": LinearProbe}[method].fit(
        z, codes, 4, groups=groups
    )
    query = simulate_cells(60, 150, n_types=4, n_batches=3, depth=2000, seed=0)
    table = one.classify(query, method=method)
    probabilities, novelty = by.judge(one.embed(query))
    names = list(one.spec.categories["label"])
    assert table.columns.tolist() == ["label", "confidence", "novelty", *names]
    np.testing.assert_allclose(table[names], probabilities, atol=1e-3)
    np.testing.assert_allclose(table["novelty"], novelty, atol=0.02)
    np.testing.assert_allclose(table["confidence"], probabilities.max(1), atol=1e-3)
    for what in ("label", "confidence", "novelty"):
        written = query.obs[f"simclr_{what}"]
        assert written.equals(table[what].rename(f"simclr_{what}"))
        assert f"simclr_{what}" in query.uns["chreode"]
    if grouped:  # batches are of the calibration
        alone = type(by).fit(z, codes, 4)
        assert np.abs(alone.judge(z)[1] - by.judge(z)[1]).max() > 0.01


@pytest.fixture(scope="module")
def without_type_0():
    """A fit on half of the cells, without those of a type; the other half; and its types."""
    cells = simulate_cells(900, 300, n_types=5, n_batches=3, batch_strength=0.1, depth=2000, seed=1)
    types = cells.obs["cell_type"].astype(str).to_numpy()
    half = np.arange(900) % 2 == 0
    views = {"augment": ("mask", "noise", "swap", "crossover"), "temperature": 0.5}
    named = fit(cells[half & (types != "type_0")].copy(), max_epochs=15, **views)
    return named, cells[~half].copy(), types[~half]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neighbours", "linear"])
def test_a_type_that_was_left_out_is_unseen(without_type_0, method):
    """More often than others are; how often depends on where the embedding puts what it never saw."""
    named, query, truth = without_type_0
    query = query.copy()
    table = named.classify(query, method=method, unseen=0.95)
    assert roc_auc_score(truth == "type_0", table["novelty"]) > 0.8
    new = (table["label"] == "unseen").to_numpy()
    assert new[truth == "type_0"].mean() > 0.15
    assert new[truth != "type_0"].mean() < 0.08
    known = (truth != "type_0") & ~new
    assert (table["label"].astype(str).to_numpy() == truth)[known].mean() > 0.9
    never = named.classify(query, method=method, unseen=1.0)
    assert "unseen" not in set(never["label"])
    assert table["confidence"].equals(never["confidence"])
    always = named.classify(query, method=method, unseen=0)
    assert (always["label"] == "unseen").equals(always["novelty"] > 0)


def test_cells_without_a_label_are_learned_from_and_not_compared_with(cells):
    some = cells.copy()
    some.obs.loc[some.obs_names[::3], "cell_type"] = np.nan
    one = fit(some)
    assert int((one.module.labelled.codes >= 0).sum()) == 266
    assert one.provenance["cells"] == 400
    table = one.classify(some.copy())
    truth = cells.obs["cell_type"].to_numpy()
    assert (table["label"].astype(str).to_numpy() == truth)[::3].mean() > 0.7


def test_a_label_that_is_called_unseen_keeps_its_name(cells):
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].replace(
        {"type_0": "unseen", "type_1": "novelty"}
    )
    table = fit(other).classify(other, unseen=0.5)
    assert table.columns.is_unique
    assert {"unseen", "unseen (new)", "novelty (probability)"} <= {
        *table.columns, *table["label"].cat.categories
    }  # fmt: skip
    marked = table["label"] == "unseen (new)"
    assert marked.equals(table["novelty"] > 0.5)
    assert (table["label"] == "unseen").any()


@pytest.mark.parametrize("method", ["neighbours", "linear"])
@pytest.mark.parametrize("wide", [2.0, 0.5])
def test_of_many_cells_novelty_is_a_rank_among_all_that_have_a_label(monkeypatch, method, wide):
    """Though as many of each type are kept, and the common one spreads otherwise."""
    monkeypatch.setattr(reference, "LARGEST", 1000)
    rng = np.random.default_rng(0)

    def draw():
        codes = rng.choice(10, 8000, p=[0.82] + [0.02] * 9)
        spread = np.where(codes == 0, wide, 1)[:, None]
        return (8 * np.eye(10)[codes] + spread * rng.normal(size=(8000, 10))).astype("f4"), codes

    kept = Labelled(Spec(("label",), {}, {"label": tuple("abcdefghij")}, n_cells=8000), 10)
    kept.keep(*draw(), None, np.random.default_rng(0))
    assert int((kept.codes >= 0).sum()) == 1000
    novelty = kept.judge(draw()[0], method)[1]
    # 113 of the common type are kept, which tells 0.1 to 0.03; drawn evenly it would be over 0.4 or 0.02
    assert np.mean(novelty > 0.9) == pytest.approx(0.1, abs=0.05)
    assert np.mean(novelty > 0.5) == pytest.approx(0.5, abs=0.15)


def test_of_many_cells_rare_types_are_whole_and_shares_stay_true(monkeypatch):
    monkeypatch.setattr(reference, "LARGEST", 120)
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat([0, 1, 2, -1], [20, 180, 800, 50]))
    x = (0.7 * codes[:, None] + rng.normal(size=(1050, 3))).astype(np.float32)
    kept = Labelled(Spec(("label",), {}, {"label": tuple("abc")}, n_cells=1050), 3)
    kept.keep(x, codes, None, np.random.default_rng(0))
    assert np.bincount(kept.codes).tolist() == [20, 50, 50]
    for method in ("neighbours", "linear"):
        found = kept.judge(x[codes >= 0], method)[0]
        np.testing.assert_allclose(found.sum(1), 1)
        np.testing.assert_allclose(found.mean(0), [0.02, 0.18, 0.8], atol=0.03)
    again = Labelled(Spec(("label",), {}, {"label": tuple("abc")}, n_cells=1050), 3)
    again.keep(x, codes, None, np.random.default_rng(0))
    assert all(a.equal(b) for a, b in zip(kept.buffers(), again.buffers(), strict=True))


def test_novelty_is_a_rank_among_the_cells_that_the_fit_validates_on(cells):
    n, named = cells.n_obs, np.arange(0, cells.n_obs, 3)
    s = ch.Schema(counts="X", label="obs/cell_type")
    own, none = (ch.SimCLR(max_epochs=2).fit(cells, s, validation=v) for v in (named, 0))
    assert none.module.labelled.n_compared == n
    assert own.module.labelled.n_compared == len(named)
    x = own.embed(cells.copy())
    train = np.delete(x, named, axis=0)
    mean = NearestNeighbors(n_neighbors=11, algorithm="brute").fit(train).kneighbors(x)[0].mean(1)
    expected = (mean[named] < mean[:, None]).sum(1) / (len(named) + 1)
    found = own.classify(cells.copy())["novelty"].to_numpy()[named]
    np.testing.assert_allclose(found, expected[named], atol=1.5 / len(named))
    told = cells.copy()
    own.classify(told, method="linear", unseen=0.5)
    record = json.loads(told.uns["chreode"]["simclr_label"])
    assert (record["method"], record["unseen"]) == ("linear", 0.5)
    # of few cells held out little can be said: training cells stand in for them
    few = ch.SimCLR(max_epochs=2).fit(cells, s, validation=named[:19])
    assert few.module.labelled.n_compared == n - 19


def test_cells_held_out_are_compared_with_those_of_other_batches():
    cells = simulate_cells(300, 50, n_batches=3, seed=0)
    s, named = ch.Schema(counts="X", batch="obs/batch", label="obs/cell_type"), np.arange(0, 300, 3)
    fitted = ch.SimCLR(max_epochs=2).fit(cells, s, validation=named)
    x, codes = fitted.embed(cells.copy()), pd.Categorical(cells.obs.cell_type).codes
    batch, train = cells.obs.batch.astype(str).to_numpy(), np.delete(np.arange(300), named)
    expected = NearestLabels.fit(
        x[train], codes[train], 5, groups=batch[train],
        held_out=HeldOut(x[named], codes[named], batch[named]),
    ).spacing  # fmt: skip
    found = fitted.module.labelled.near_spacing.numpy()
    np.testing.assert_allclose(found[found >= 0], expected, rtol=1e-4)


def test_of_many_cells_held_out_as_many_are_compared_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(reference, "LARGEST", 60)
    x, codes = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 3
    kept = Labelled(Spec(("label",), {}, {"label": tuple("abc")}, n_cells=200), 3)
    kept.keep(x[:200], codes[:200], None, np.random.default_rng(0), HeldOut(x[200:], codes[200:]))
    assert kept.n_compared == 60


@pytest.mark.parametrize("most", [1, 7, 40, 99, 100, 1000])
def test_drawing_evenly_fills_types_up_to_the_same_size(most):
    codes = np.random.default_rng(0).choice(4, 100, p=[0.02, 0.08, 0.2, 0.7])
    rows = evenly(codes, most, np.random.default_rng(0))
    assert len(np.unique(rows)) == len(rows) == min(most, 100)
    taken, sizes = (np.bincount(c, minlength=4) for c in (codes[rows], codes))
    fullest = taken.max()
    assert (taken >= np.minimum(sizes, fullest - 1)).all()
    assert (np.diff(rows) > 0).all()


def test_what_cannot_be_asked_is_said(cells, fitted):
    for wrong in ("linea", 3):
        with pytest.raises(ch.ConfigError, match=f"method={wrong!r}: there is no such classifier"):
            fitted.classify(cells.copy(), method=wrong)
    for wrong in (-0.1, 1.5, "much", True, np.nan):
        with pytest.raises(ch.ConfigError, match="expected a number from 0 to 1"):
            fitted.classify(cells.copy(), unseen=wrong)
    bare = fit(cells, ch.Schema(counts="X"))
    assert bare.verbs == ["embed"]
    with pytest.raises(
        ch.CapabilityError, match=r"cannot classify; it offers embed\. Name the label"
    ):
        bare.classify(cells.copy())


@pytest.mark.parametrize(("n", "few"), [(19, True), (20, False)])
def test_too_few_labelled_cells_to_call_any_unseen_are_told_before_compute(cells, fitted, n, few):
    kept, x = copy.deepcopy(fitted), np.random.default_rng(0).normal(size=(n, 8))
    kept.module.labelled.keep(x, np.arange(n) % 4, None, np.random.default_rng(0))
    far = kept.module.labelled.judge(np.full((1, 8), 1e6), "neighbours")[1]
    assert (far <= 0.95).all() == few
    for unseen in (1, 0.94):  # 1 asks for none
        kept.classify(cells.copy(), unseen=unseen)
    if not few:
        kept.classify(cells.copy())
        return
    kept.module.embed = lambda _: pytest.fail("compute began")
    said = (
        r"unseen=0.95: no cell can be called unseen, because novelty is a rank among 19 labelled "
        r"cells, 0.95 at the most\. Give a lower unseen"
    )
    with pytest.raises(UserWarning, match=said):  # here warnings are errors
        kept.classify(cells.copy())


def test_one_label_is_refused_before_compute(cells, monkeypatch):
    monkeypatch.setattr(Model, "_learn", lambda *_: pytest.fail("compute began"))
    few = cells.copy()
    few.obs["cell_type"] = pd.Series(np.nan, few.obs_names, dtype=object)
    few.obs.iloc[3, few.obs.columns.get_loc("cell_type")] = "B"
    with pytest.raises(
        ch.DataError, match="Fewer than two of the cells to learn from have a label"
    ):
        fit(few)


def test_a_type_that_is_held_out_whole_has_no_probability(cells):
    rows = np.flatnonzero(cells.obs["cell_type"] == "type_3")
    model = ch.SimCLR(**QUICK)
    with pytest.warns(UserWarning, match="of label type_3 all cells are held out"):
        one = model.fit(cells, SCHEMA, validation=rows, progress=False)
    for method in ("neighbours", "linear"):
        table = one.classify(cells.copy(), method=method)
        assert (table["type_3"] == 0).all()
        np.testing.assert_allclose(table[[f"type_{i}" for i in range(3)]].sum(1), 1, rtol=1e-5)


def test_a_saved_fit_answers_alike_and_a_damaged_one_never_crashes(cells, tmp_path):
    one = fit(cells)
    loaded = ch.load(one.save(tmp_path / "whole"))
    for method in ("neighbours", "linear"):
        expected = one.classify(cells.copy(), method=method)
        assert loaded.classify(cells.copy(), method=method).equals(expected)
    kept = one.module.labelled
    kept.codes[:100], kept.codes[100:200] = 10**9, -(10**9)
    for method in ("neighbours", "linear"):  # such rows are not used
        table = ch.load(one.save(tmp_path / "codes")).classify(cells.copy(), method=method)
        assert table["confidence"].between(0, 1).all()
    kept.codes.fill_(4)
    with pytest.raises(ch.DataError, match="keeps no labelled cells"):
        ch.load(one.save(tmp_path / "none")).classify(cells.copy())
    kept.x[0, 0] = torch.nan
    with pytest.raises(ch.StoreError, match=r"labelled\.x holds what is no finite number"):
        ch.load(one.save(tmp_path / "nan"))


def test_a_file_of_two_cells_of_one_type(cells):
    two = cells[:40].copy()
    two.obs["cell_type"] = pd.Series(["B", "B"] + [np.nan] * 38, two.obs_names, dtype=object)
    one = fit(two, ch.Schema(counts="X", label="obs/cell_type"))
    for method in ("neighbours", "linear"):
        with pytest.warns(UserWarning, match="no cell can be called unseen"):
            table = one.classify(ad.AnnData(cells.X[40:80], var=cells.var), method=method)
        assert (table["label"] == "B").all()
        assert (table["B"] == 1).all()


@pytest.mark.parametrize("n", [100, 150, 240])
def test_a_fit_goes_on_with_other_cells_and_keeps_these_alone(cells, n):
    stained = cells.copy()
    stained.obsm["protein"] = np.random.default_rng(0).poisson(9, (400, 5)).astype(float)
    schema = SCHEMA.with_(protein="obsm/protein")
    first = fit(stained[:150].copy(), schema)
    others = stained[150 : 150 + n].copy()
    others.obs.loc[others.obs_names[60:], "cell_type"] = None
    still = ch.SimCLR(**QUICK, lr=0.0)
    on = still.fit(others, schema, from_=first, validation=0, progress=False)
    for name, weight in on.module.named_parameters():
        assert weight.equal(first.module.get_parameter(name)), name
    kept = on.module.labelled
    assert sorted(kept.codes[kept.codes >= 0].tolist()) == sorted(
        pd.Categorical(others.obs["cell_type"][:60], categories=on.spec.categories["label"]).codes
    )
    assert np.array_equal(on.module.paired.proteins.numpy(), others.obsm["protein"])


def test_what_a_model_keeps_of_its_cells_must_be_named(cells, monkeypatch):
    first = fit(cells[:150].copy())
    monkeypatch.setattr(type(first.module), "of_cells", ())
    with pytest.raises(ch.CapabilityError, match="cannot learn categories"):
        first.model.fit(cells[:100].copy(), SCHEMA, from_=first, progress=False)
