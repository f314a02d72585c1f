"""Cells without RNA are no cells of zeros: for whom others are like, for programmes, and for views."""

from __future__ import annotations

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_citeseq
from chreode.learn.components import components
from chreode.learn.partners import BatchBalanced, MutualNeighbours, NearestNeighbours
from chreode.learn.phase import Session, Split
from chreode.models import claire

SCHEMA = ch.Schema(counts="rna:layers/counts", protein="adt:layers/counts", batch="obs/batch")
ROLES = ("counts", "protein", "batch")
ROWS = np.arange(300)
SPLIT = Split(ROWS[ROWS % 4 > 0], ROWS[ROWS % 4 == 0])
PARTNERS = {"nearest": NearestNeighbours, "mnn": MutualNeighbours, "bbknn": BatchBalanced}
NEVER = (
    "Cells of two batches are needed for {}: of {} cells to learn from, or held out together, {}"
)


def mosaic(rna=(), adt=(), n_batches=3):
    """Return cells of which batches lack RNA or proteins."""
    absent = {"rna": [f"batch_{i}" for i in rna], "adt": [f"batch_{i}" for i in adt]}
    return simulate_citeseq(300, 60, 10, n_types=3, n_batches=n_batches, absent=absent, seed=0)


def source_of(data):
    cells = Cells.of(data, SCHEMA)
    return open_source(cells, learn_spec(cells, ROLES, ROWS), ROLES, {})


@pytest.fixture(scope="module")
def source():
    return source_of(mosaic(rna=[2], adt=[1]))


@pytest.fixture(scope="module")
def placed(source):
    return components(6)(None, source, SPLIT, Session(Rng(0)))[0]


def test_components_are_those_of_the_cells_with_rna(source, placed):
    has, found = source.measured("counts"), placed.columns["components"]
    assert has.sum() == 200
    x = source.batch(ROWS).log_expression().double().numpy()
    train = SPLIT.train[has[SPLIT.train]]
    right = PCA(6, svd_solver="full").fit(x[train]).transform(x[has])
    np.testing.assert_allclose(np.abs(found[has]), np.abs(right), atol=1e-4)
    assert np.isnan(found[~has]).all()


@pytest.mark.parametrize("name", PARTNERS)
@pytest.mark.parametrize("part", ["train", "validation"])
def test_cells_without_rna_stand_for_themselves_and_change_no_other(placed, name, part):
    has, rows = placed.measured("counts"), getattr(SPLIT, part)
    with_rna = rows[has[rows]]
    assert 0 < len(with_rna) < len(rows)
    partner, alone = PARTNERS[name](4), PARTNERS[name](4)
    for seed in range(5):
        both = [
            some(placed, every, with_rna, np.random.default_rng(seed))
            for some, every in ((partner, rows), (alone, with_rna))
        ]
        np.testing.assert_array_equal(*both)
        assert has[both[0]].all()
        drawn = partner(placed, rows, rows, np.random.default_rng(seed)).reshape(len(rows), -1)
        lacking = ~has[rows]
        assert (drawn[lacking] == rows[lacking, None]).all()
        assert (drawn[~lacking] != rows[~lacking, None]).any(1).all()


def test_claire_pairs_cells_with_rna_alone(source):
    view = claire.Constructed(n_neighbours=5, n_mutual=4)
    seen, kept = view(None, source, SPLIT, Session(Rng(0)))
    has = source.measured("counts")
    only = Split(*(rows[has[rows]] for rows in (SPLIT.train, SPLIT.validation)))
    alone, same = view(None, source, only, Session(Rng(0)))
    assert len(kept.train) > 50
    np.testing.assert_array_equal(kept.train, same.train)
    np.testing.assert_array_equal(kept.validation, same.validation)
    assert has[kept.train].all()
    for column in ("near", "mutual"):
        table = seen.columns[column]
        np.testing.assert_array_equal(table, alone.columns[column])
        assert has[table[table >= 0]].all()


def test_programmes_are_learned_of_the_cells_with_rna(source):
    model, has = ch.SimCLR(augment=("programmes",), n_programmes=6), source.measured("counts")
    found = []
    for rows in (SPLIT.train, SPLIT.train[has[SPLIT.train]]):
        module = model.build(source.spec)
        module.prepare(source, rows, Rng(0))
        found.append(module.views.programmes)
    assert len(found[0].unique()) == 6
    assert torch.equal(*found)


@pytest.mark.parametrize("augment", ["crossover", "noise", "swap"])
def test_no_view_holds_genes_or_proteins_of_cells_that_have_none(source, augment):
    module = ch.SimCLR(augment=(augment,), chance=1.0, crossover=1.0, swap=1.0).build(source.spec)
    batch = source.batch(ROWS)
    torch.manual_seed(0)
    view, plain = module.views.draw(batch), module.views.plain(batch)
    for role in ("counts", "protein"):
        values, before = view.values[role], plain.values[role]
        values, before = (x if isinstance(x, torch.Tensor) else x.dense() for x in (values, before))
        has = batch.present[role]
        assert 0 < int(has.sum()) < len(has)
        assert (values[~has] == 0).all()
        assert (values[has] != before[has]).any(1).float().mean() > 0.9
        if augment == "crossover":
            came = torch.cdist(values[has].double(), before[has].double()).argmin(1)
            torch.testing.assert_close(values[has], before[has][came])
            assert (values[has] != 0).any(1).all()
            assert len(came.unique()) == int(has.sum())


def test_nothing_is_mixed_into_what_a_cell_lacks(source):
    module = ch.SimCLR(augment=("mnn",), chance=1.0, mix=0.5).build(source.spec)
    (has_both,), lacks = (
        np.nonzero(source.measured("counts") & source.measured("protein")),
        np.flatnonzero(~source.measured("protein")),
    )
    (batch,) = source.minibatches([np.r_[lacks[:9], has_both[:18]]])
    for view in module.two_views(batch):
        assert (view.values["protein"].dense() == 0).all()
        assert (view.values["counts"].dense() != 0).any(1).all()


# what is refused


@pytest.fixture
def no_compute(monkeypatch):
    for model in (ch.SimCLR, ch.CLAIRE):
        monkeypatch.setattr(model, "_learn", lambda *_: pytest.fail("compute began"))


@pytest.mark.usefixtures("no_compute")
def test_a_batch_without_rna_is_no_batch():
    data = mosaic(rna=[1], n_batches=2)
    those = "those with expression come from 'batch_0' alone"
    for what in ("mnn", "bbknn"):
        with pytest.raises(ch.DataError, match=NEVER.format(what, 270, those)):
            ch.SimCLR(augment=(what,)).fit(data, SCHEMA)
    with pytest.raises(ch.DataError, match=NEVER.format("CLAIRE", 270, those)):
        ch.CLAIRE().fit(data, SCHEMA)
    data = mosaic(rna=[2])
    for one, of in ((["batch_0", "batch_2"], those), (["batch_2"], "none has expression")):
        held_out = np.flatnonzero(data.obs["batch"].isin(one))[::2]
        with pytest.raises(ch.DataError, match=NEVER.format("mnn", len(held_out), of)):
            ch.SimCLR(augment=("mnn",)).fit(data, SCHEMA, validation=held_out)


@pytest.mark.usefixtures("no_compute")
def test_nothing_is_asked_of_proteins_that_no_cell_with_rna_has():
    with pytest.raises(ch.DataError, match="has both expression and protein.*Leave protein out"):
        ch.CLAIRE().fit(mosaic(rna=[2], adt=[0, 1]), SCHEMA)


@pytest.mark.usefixtures("no_compute")
def test_a_single_cell_has_no_programmes():
    data = mosaic(rna=[1, 2])
    rows = np.flatnonzero(data.obs["batch"] != "batch_0")[:40]
    rows = np.r_[np.flatnonzero(data.obs["batch"] == "batch_0")[:1], rows]
    with pytest.raises(ch.DataError, match="Fewer than two .* have expression.*leave programmes"):
        ch.SimCLR(augment=("programmes",)).fit(
            data, SCHEMA.with_(batch=None), rows=rows, validation=0
        )


@pytest.mark.parametrize("augment", [("mnn",), ("bbknn",), ("programmes", "crossover")])
def test_a_mosaic_is_learned_from(augment):
    model = ch.SimCLR(augment=augment, n_programmes=5, max_epochs=2, batch_size=64)
    assert np.isfinite(
        model.fit(mosaic(rna=[2], adt=[1]), SCHEMA, progress=False)
        .history["train_objective"]
        .dropna()
    ).all()


def test_batches_without_rna_do_not_hide_that_the_others_are_labels():
    """Cells without RNA are mixed with none, so that their batch may hold what it likes."""
    data = mosaic(rna=[2])
    kind = data.obs["batch"].astype(str).str.replace("batch", "label").to_numpy(copy=True)
    kind[(data.obs["batch"] == "batch_2").to_numpy() & (ROWS % 2 == 0)] = "label_0"
    data.obs["kind"] = kind
    with pytest.raises(
        ch.ConfigError, match="every batch holds one label, alone or nearly so: batch 'batch_0'"
    ):
        ch.CLAIRE().fit(data, SCHEMA.with_(label="obs/kind"), progress=False)


def test_cells_whose_proteins_are_all_nan_have_none():
    """A batch that was not stained is a batch without proteins."""
    data = mosaic(adt=[1])
    cells, stained = data["rna"].copy(), data["adt"]
    cells.obs = data.obs.loc[cells.obs_names]
    values = pd.DataFrame(np.nan, cells.obs_names, stained.var_names)
    values.loc[stained.obs_names] = stained.layers["counts"].toarray()
    cells.obsm["protein"] = values
    schema = ch.Schema(counts="layers/counts", protein="obsm/protein", batch="obs/batch")
    model = ch.SimCLR(fusion="mean", max_epochs=2, n_latent=6, n_hidden=12)
    one, two = model.fit(data, SCHEMA, progress=False), model.fit(cells, schema, progress=False)
    names = data.obs_names.get_indexer(cells.obs_names)
    np.testing.assert_allclose(two.embed(cells), one.embed(data)[names], atol=1e-5)
    filled = two.predict(cells[cells.obs["batch"] == "batch_1"].copy())
    assert np.isfinite(filled.X).all()


def test_cells_of_which_nothing_was_measured_are_not_learned_from():
    """They stand among the proteins, which are all NaN there, and have no RNA."""
    data = mosaic(rna=[2])
    rna, adt = data["rna"].copy(), data["adt"].copy()
    counts = adt.layers["counts"].toarray().astype(np.float32)
    counts[(adt.obs["batch"] == "batch_2").to_numpy()] = np.nan
    adt.layers["counts"] = counts
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": rna, "adt": adt})
    both.obs["batch"] = data.obs["batch"]
    left = (data.obs["batch"] != "batch_2").to_numpy()
    assert (Cells.of(both, SCHEMA).measured() == left).all()
    fitted = ch.SimCLR(max_epochs=1).fit(both, SCHEMA, validation=0, progress=False)
    assert fitted.provenance["cells"] == left.sum() == 200
    assert (np.isfinite(fitted.embed(both)).all(1) == left).all()


def test_no_cell_that_is_stained_is_left_out():
    cells = mosaic()["rna"].copy()
    values = np.random.default_rng(0).poisson(3.0, (300, 5)).astype(float)
    values[::2, 1:] = np.nan
    cells.obsm["protein"] = values
    roles = ch.Schema(counts="layers/counts", protein="obsm/protein")
    assert Cells.of(cells, roles).rows("protein") is None
    values[7] = np.nan
    at = Cells.of(cells, roles).rows("protein")
    assert np.flatnonzero(at != np.arange(300)).tolist() == [7]
    assert at[7] == -1


def test_a_cell_that_alone_has_rna_has_no_neighbours(placed):
    lacking, one = np.flatnonzero(~placed.measured("counts"))[:4], np.array([0])
    rng, partner = np.random.default_rng(0), NearestNeighbours(4)
    with pytest.raises(ch.DataError, match="Of 5 cells to learn from.*a single one has expression"):
        partner(placed, np.union1d(one, lacking), one, rng)
    with pytest.raises(ch.DataError, match="Of 4 cells to learn from.*none has expression"):
        partner(placed, lacking, lacking, rng)
    with pytest.raises(ch.DataError, match="A single cell has no neighbours"):
        partner(placed, one, one, rng)
