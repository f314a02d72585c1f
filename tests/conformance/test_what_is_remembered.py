"""What a fit remembers is what it saw: depths of rare batches, of old ones, and no zeros for absent genes."""

from __future__ import annotations

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conformance.test_every_model import needed

import chreode as ch
from chreode import models
from chreode.compute.rng import Rng
from chreode.data.align import MissingFeatures
from chreode.data.horizon import ForecastWarning
from chreode.data.remember import WEIGHT, joined, remember
from chreode.data.source import Source
from chreode.schema import Spec

KEYS = models.keys()


@pytest.fixture(params=KEYS)
def cls(request):
    return models.find(request.param)


@pytest.fixture
def roles(cls, schema):
    return schema.with_(**needed(cls))


def source(batch: np.ndarray) -> Source:
    """Cells of which the depth tells the batch."""
    counts = sp.csr_matrix((1 + batch)[:, None].astype(np.float32))
    spec = Spec(("counts", "batch"), {"counts": ("g",)})
    return Source(spec, np.arange(len(batch)), {"counts": counts}, columns={"batch": batch})


def test_every_combination_is_remembered_in_its_proportion():
    batch = np.repeat(np.arange(4), [6, 200, 30_000, 90_000])
    found = remember(source(batch), np.arange(len(batch)), Rng(0))
    assert set(found["batch"]) == {0, 1, 2, 3}
    assert (found["batch"] == 0).sum() == 6
    assert (found["batch"] == 1).sum() == 50
    assert len(found["batch"]) < 11_000
    stands = np.bincount(found["batch"], found[WEIGHT])
    np.testing.assert_allclose(stands, [6, 200, 30_000, 90_000])
    np.testing.assert_array_equal(found["library"], 1 + found["batch"])


def test_of_very_many_combinations_each_keeps_a_cell():
    batch = np.arange(60_000) // 2
    found = remember(source(batch), np.arange(len(batch)), Rng(0))
    assert len(found["batch"]) == 30_000
    assert len(set(found["batch"])) == 30_000


def test_rows_that_were_not_learned_from_are_not_remembered():
    batch = np.repeat(np.arange(2), 50)
    found = remember(source(batch), np.arange(10, 50), Rng(0))
    assert set(found["batch"]) == {0}
    assert found[WEIGHT].sum() == 40


def test_cells_of_two_fits_are_joined_by_combination():
    first = {
        "batch": np.array([0, 1]),
        WEIGHT: np.array([3.0, 4.0]),
        "library": np.array([1.0, 2.0]),
    }
    second = {
        "batch": np.array([1, 2]),
        WEIGHT: np.array([9.0, 8.0]),
        "library": np.array([7.0, 6.0]),
    }
    both = joined(first, second)
    assert both["batch"].tolist() == [0, 1, 2]
    assert both["library"].tolist() == [1, 2, 6]
    assert both[WEIGHT].tolist() == [3, 4, 8]
    with pytest.raises(ch.ConfigError, match="one lacks library"):
        joined(first, {k: v for k, v in second.items() if k != "library"})


def depth(made) -> float:
    return float(np.asarray(made.X.sum(1)).mean())


@pytest.mark.parametrize("key", ["scvi", "cfgen"])
def test_a_rare_batch_has_its_own_depth(quick, key):
    r = np.random.default_rng(0)
    x = r.poisson(2.0, (13_000, 10)) + 1.0
    x[:6] *= (
        50  # these are about 230 times too few for a draw of 10,000 cells to be sure to hold them
    )
    obs = pd.DataFrame(
        {"batch": ["rare"] * 6 + ["common"] * 12_994}, [f"c{i}" for i in range(13_000)]
    )
    cells = ad.AnnData(sp.csr_matrix(x, dtype=np.float32), obs)
    model = quick(models.find(key), max_epochs=1, batch_size=4096)
    fitted = model.fit(cells, ch.Schema(counts="X", batch="obs/batch"), validation=0)
    rare, common = (depth(fitted.generate(400, given={"batch": b})) for b in ("rare", "common"))
    assert 0.6 < rare / depth(cells[:6]) < 1.6
    assert 0.8 < common / depth(cells[6:]) < 1.25
    open_ = fitted.generate(2000)
    assert (open_.obs["batch"] == "rare").mean() < 0.01  # 6 of 13,000, although all six are kept


def test_mapping_a_query_leaves_the_depths_of_the_reference(cls, quick, cells, roles, fitted_once):
    model = quick(cls)
    if not cls.extends or cls.scale != "counts" or "lr" not in names(cls):
        pytest.skip("maps no query, or has no depth")
    fitted = fitted_once(cls, roles)
    query = cells[:200].copy()
    query.layers["counts"] = query.layers["counts"] * 5
    query.obs["batch"] = "query"
    mapped = model.fit(query, roles, from_=fitted)
    for batch in sorted(set(cells.obs["batch"])):
        before, after = (depth(f.generate(400, given={"batch": batch})) for f in (fitted, mapped))
        assert 0.8 < after / before < 1.25
    assert depth(mapped.generate(400, given={"batch": "query"})) > 3 * before


def test_a_combination_never_seen_is_drawn_from_cells_that_agree_in_part(quick, cells, schema):
    deep = (cells.obs["batch"] == "batch_0").to_numpy()
    times(cells, 1 + 9 * deep[:, None])
    kept = cells[~(deep & (cells.obs["plate"] == "plate1"))].copy()
    fitted = quick(ch.SCVI).fit(
        kept, ch.Schema(counts="layers/counts", batch="obs/batch", categorical=("obs/plate",))
    )
    drawn = depth(fitted.generate(600, given={"batch": "batch_0", "plate": "plate1"}))
    inside = depth(ad.AnnData(kept[kept.obs["batch"] == "batch_0"].layers["counts"]))
    outside = depth(ad.AnnData(kept[kept.obs["plate"] == "plate1"].layers["counts"]))
    assert outside < drawn < inside


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_a_library_to_scale_to_is_what_rows_sum_to(quick, cells, schema, likelihood):
    cells.obs["sf"] = np.asarray(cells.layers["counts"].sum(1)).ravel() / 1000
    for more in ({}, {"size_factor": "obs/sf"}):
        fitted = quick(ch.SCVI, likelihood=likelihood).fit(cells, schema.with_(**more))
        scaled = fitted.reconstruct(cells, library=1e4).X
        np.testing.assert_allclose(scaled.sum(1), 1e4, rtol=1e-3)


@pytest.mark.parametrize(
    ("key", "options"),
    [("scvi", {}), ("scvi", {"latent_library": True}), ("cfgen", {})],
)
def test_of_a_batch_that_is_held_out_it_is_said_that_nothing_was_learned(
    quick, cells, schema, key, options
):
    """A donor for validation is a common choice; its library had no prior, so that its cells were NaN."""
    held_out = (cells.obs["batch"] == "batch_0").to_numpy()
    with pytest.warns(UserWarning, match="of batch batch_0 all cells are held out"):
        fitted = quick(models.find(key), **options).fit(cells, schema, validation=held_out)
    assert "batch_0" in fitted.provenance["notes"][0]
    curve = fitted.history["validation_objective"].dropna()
    assert len(curve)
    assert np.isfinite(curve).all()
    with pytest.warns(UserWarning, match="no training cell is of it"):
        made = fitted.generate(20, given={"batch": "batch_0"})
    assert 0.2 < depth(made) / depth(ad.AnnData(cells.layers["counts"])) < 5
    with pytest.warns(UserWarning, match="no training cell is of it"):
        fitted.predict(cells[:5].copy(), to={"batch": "batch_0"})


def test_of_a_batch_that_fell_out_by_chance_it_is_said_what_to_do(
    quick, cells, schema, monkeypatch
):
    """To hold out a share is what had been done."""
    rows = np.arange(cells.n_obs)
    apart = (cells.obs["batch"] == "batch_0").to_numpy()
    monkeypatch.setattr("chreode.model.hold_out", lambda *_: (rows[~apart], rows[apart]))
    with pytest.warns(UserWarning, match="Set validation=0, or name cells"):
        quick(ch.SCVI).fit(cells, schema)


def test_a_number_that_is_the_same_in_all_cells_is_asked_for_alone(quick, cells, schema):
    cells.obs["age"] = 30.0
    fitted = quick(ch.SCVI).fit(cells, schema)
    fitted.generate(5, given={"age": 30.0})
    with pytest.raises(ch.ConfigError, match="age=31, and all training cells have age=30"):
        fitted.generate(5, given={"age": 31.0})


def names(cls) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def without(cells: ad.AnnData, gene: int) -> ad.AnnData:
    return cells[:, np.arange(cells.n_vars) != gene].copy()


def loudest(cells: ad.AnnData) -> int:
    return int(np.asarray(cells.layers["counts"].sum(0)).argmax())


def times(cells: ad.AnnData, factor) -> None:
    counts = cells.layers["counts"].multiply(factor)
    cells.layers["counts"] = sp.csr_matrix(counts, dtype=np.float32)


def test_a_gene_that_a_query_lacks_is_not_scored_as_zero(cls, cells, roles, fitted_once):
    fitted = fitted_once(cls, roles)
    if "score" not in fitted.verbs:
        pytest.skip("has no score")
    gene, silenced = loudest(cells), cells.copy()
    times(silenced, np.arange(300) != gene)
    with pytest.warns(MissingFeatures):
        lacking = fitted.score(without(cells, gene)).mean()
    assert lacking > fitted.score(silenced).mean() + 0.5


def test_a_fit_does_not_go_on_without_genes_that_it_knows(cls, quick, cells, roles, fitted_once):
    model = quick(cls)
    if "lr" not in names(cls):
        pytest.skip("goes on from no other fit")
    fitted = fitted_once(cls, roles)
    with pytest.warns(MissingFeatures), pytest.raises(ch.DataError, match="without 1 of the"):
        model.fit(without(cells, 0), roles, from_=fitted)


@pytest.mark.slow
def test_mapping_learns_nothing_of_a_gene_that_the_query_lacks(quick, cells, schema):
    model = quick(ch.SCVI, max_epochs=40, lr=0.02)
    fitted = model.fit(cells, schema)
    gene, query = loudest(cells), cells[:200].copy()
    query.obs["batch"] = "query"
    with pytest.warns(MissingFeatures):
        mapped = model.fit(without(query, gene), schema, from_=fitted)
    before = fitted.reconstruct(query, to={"batch": "batch_0"}, library=1e4).X[:, gene].mean()
    after = mapped.reconstruct(query, library=1e4).X[:, gene].mean()
    assert 0.5 < after / before < 2


@pytest.mark.slow
@pytest.mark.parametrize("key", ["scvi", "cfgen"])
def test_numbers_far_from_any_training_cell_are_told(quick, cells, schema, key):
    """Ages of the cells are 20 to 49."""
    fitted = quick(models.find(key)).fit(cells, schema)
    for verb in (
        lambda age: fitted.generate(5, given={"age": age}),
        lambda age: fitted.predict(cells[:5].copy(), to={"age": age}),
    ):
        verb(51.0)
        with pytest.warns(
            ForecastWarning, match=r"age=55, and training cells have age from 20 to 49"
        ):
            verb(55.0)
        for far in (300.0, -15.0):
            with pytest.raises(ch.ConfigError, match="times that span beyond its end"):
                verb(far)


@pytest.mark.slow
def test_paths_of_cells_that_lack_a_gene_begin_at_its_average(quick, cells, schema):
    timed = schema.with_(time="obs/day", trajectory="obs/donor")
    fitted = quick(ch.PathReg).fit(cells, timed)
    gene = loudest(cells)
    day = float(cells.obs["day"].iloc[0])
    with pytest.warns(MissingFeatures):
        path = fitted.trajectory(without(cells[:1], gene), times=[day])
    average = float(fitted.module.frame.centre[gene])
    assert path.X[0, gene] == pytest.approx(average, rel=1e-4)
