"""Results replace nothing that they were made of, and have names that a file can hold."""

from __future__ import annotations

import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode.data.collect import copy_with, storable


@pytest.fixture(scope="module")
def some(_simulated):
    return _simulated[:80, :30].copy()


@pytest.fixture(scope="module")
def fitted(some, quick):
    schema = ch.Schema(counts="layers/counts", batch="obs/batch")
    return {
        "scvi": quick(ch.SCVI, max_epochs=1).fit(some, schema),
        "pca": ch.PCA(n_latent=2).fit(some, schema),
    }


@pytest.fixture(scope="module")
def moving(some, quick):
    return quick(ch.NeuralODE).fit(some, ch.Schema(counts="layers/counts", time="obs/day"))


@pytest.mark.parametrize("how", ["path", "open", "backed"])
@pytest.mark.parametrize(
    "verb", ["predict", "reconstruct", pytest.param("trajectory", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:.*are held at its end")
def test_no_verb_writes_over_the_cells_that_it_reads(some, fitted, verb, how, tmp_path, request):
    path = tmp_path / "a.h5ad"
    some.write_h5ad(path)
    before = path.read_bytes()
    data = {"path": str, "open": ch.open, "backed": lambda p: ad.read_h5ad(p, backed="r")}[how](
        path
    )
    model = request.getfixturevalue("moving") if verb == "trajectory" else fitted["scvi"]
    about = {"times": [1.0]} if verb == "trajectory" else {"to": {}}
    (tmp_path / "link.h5ad").symlink_to(path)
    for into in (path, tmp_path / "link.h5ad"):
        with pytest.raises(ch.ConfigError, match="read from"):
            getattr(model, verb)(data, into=into, **about)
    assert path.read_bytes() == before
    made = getattr(model, verb)(data, into=tmp_path / "b.h5ad", **about)
    assert ad.read_h5ad(made).n_obs == some.n_obs


def test_nor_over_files_of_any_name_or_of_one_modality(some, fitted, tmp_path):
    """A plus between blanks was taken for what parts the names of several files."""
    path, other = tmp_path / "a + b" / "x + y.h5ad", tmp_path / "c.h5ad"
    path.parent.mkdir()
    some.write_h5ad(path)
    more, protein = some.copy(), some[:, :3].copy()
    protein.var_names = ["p0", "p1", "p2"]
    more.obs_names = more.obs_names + "-2"
    more.write_h5ad(other)
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": ad.read_h5ad(path, backed="r"), "protein": protein})
    both.obs["batch"] = some.obs["batch"]
    parts = ch.Schema(counts="rna:layers/counts", batch="obs/batch")
    before = path.read_bytes()
    for data, schema in ((str(path), None), (ch.open([other, path]), None), (both, parts)):
        with pytest.raises(ch.ConfigError, match="read from"):
            fitted["scvi"].predict(data, to={}, into=path, schema=schema)
    assert path.read_bytes() == before
    with pytest.raises(ch.StoreError, match="is a folder"):
        fitted["scvi"].predict(some, to={}, into=path.parent.rename(tmp_path / "d.h5ad"))


def test_coordinates_are_of_the_cells_that_the_file_holds(some, tmp_path):
    path = tmp_path / "a.h5ad"
    some.write_h5ad(path)
    for other in (some[::-1], some[:40]):
        other.copy().write_h5ad(tmp_path / "new.h5ad")
        (tmp_path / "new.h5ad").replace(path)
        with pytest.raises(ch.StoreError, match="replaced while it was read"):
            copy_with(
                path, some.obs_names, tmp_path / "out.h5ad", {"obsm": {"X": np.zeros((80, 2))}}, {}
            )
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("name", ["a/b", ".", "..", "rna"])
def test_a_slot_has_a_name_that_a_file_can_hold(some, fitted, name):
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": some.copy()})
    schema = ch.Schema(counts="rna:layers/counts")
    with pytest.raises(ch.ConfigError, match=f"'{name}'"):
        fitted["pca"].embed(both, key_added=name, schema=schema)
    assert set(both.obsm) == {"rna"}


@pytest.mark.usefixtures("as_users_have_it")
def test_loadings_are_put_into_an_anndata_alone(some, fitted, tmp_path):
    some.write_h5ad(tmp_path / "a.h5ad")
    for odd in (ch.open(tmp_path / "a.h5ad"), str(tmp_path / "a.h5ad"), 3):
        with pytest.raises(ch.ConfigError, match="expected an AnnData in memory"):
            fitted["pca"].loadings(odd)


def test_names_of_columns_that_no_file_holds_are_changed_with_a_word(some, fitted, tmp_path):
    cells = some.copy()
    cells.obs[1], cells.obs["1"], cells.obs["_index"] = 1.0, 2.0, 3.0
    cells.obs["cell"] = 4.0
    cells.obs.index.name = "cell"
    with pytest.warns(UserWarning, match="'1' as '1_', '_index' as '_index_'"):
        path = fitted["scvi"].predict(cells, to={}, into=tmp_path / "b.h5ad")
    obs = ad.read_h5ad(path).obs
    assert obs[["1", "1_", "_index_", "cell"]].iloc[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert list(obs.index) == list(some.obs_names)
    with warnings.catch_warnings(action="error"):
        assert list(storable(pd.DataFrame({7: [1], "a": [2]}))) == ["7", "a"]


def test_a_column_s_name_is_no_path(some, fitted, tmp_path):
    """Such columns replaced the table of cells, and the codes of another column."""
    cells = some.copy()
    cells.obs["/obs"], cells.obs["batch/codes"], cells.obs["a/b"], cells.obs["a"] = (
        1.0,
        2.0,
        3.0,
        4.0,
    )
    with pytest.warns(UserWarning, match="'/obs' as '_obs', 'batch/codes' as 'batch_codes'"):
        path = fitted["scvi"].predict(cells, to={}, into=tmp_path / "b.h5ad")
    obs = ad.read_h5ad(path).obs
    assert obs[["_obs", "batch_codes", "a_b", "a"]].iloc[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert list(obs["batch"]) == list(some.obs["batch"])


def test_numbers_that_may_lack_and_empty_columns_are_written(some, fitted, tmp_path):
    cells = some.copy()
    n = cells.n_obs // 2
    cells.obs["nullable"] = pd.array([1.5, None] * n, dtype="Float64")
    cells.obs["sparse"] = pd.arrays.SparseArray([0, 1] * n)
    cells.obs["empty"] = pd.Series([None] * cells.n_obs, cells.obs_names, dtype=object)
    cells.obs.index = cells.obs.index.astype("string")
    obs = ad.read_h5ad(fitted["scvi"].predict(cells, to={}, into=tmp_path / "b.h5ad")).obs
    assert obs.index.equals(some.obs_names)
    assert obs["nullable"].iloc[:2].isna().tolist() == [False, True]
    assert obs["sparse"].iloc[:2].tolist() == [0, 1]
    assert obs["empty"].isna().all()


def test_a_column_may_have_any_name(some, quick):
    cells = some.copy()
    cells.obs["self"] = cells.obs["batch"]
    fitted = quick(ch.SCVI, max_epochs=1).fit(
        cells, ch.Schema(counts="layers/counts", batch="obs/self")
    )
    first = fitted.spec.categories["batch"][0]
    assert set(fitted.predict(cells, to={"self": first}).obs["self"]) == {first}


@pytest.mark.parametrize("odd", ["a\0b", "\ud800"])
def test_what_anndata_cannot_write_is_told(some, fitted, odd, tmp_path):
    cells = some.copy()
    cells.obs["text"] = odd
    with pytest.raises(ch.StoreError, match="no form"):
        fitted["scvi"].predict(cells, to={}, into=tmp_path / "b.h5ad")
    assert not any(tmp_path.iterdir())


# augmentation reads counts as a fit does


@pytest.fixture(scope="module")
def drawn(some, quick):
    schema = ch.Schema(counts="layers/counts", label="obs/cell_type")
    return quick(ch.CFGen, max_epochs=1, flow_epochs=1).fit(some, schema)


def halved(cells):
    cells.layers["counts"] = cells.layers["counts"] * 0.5


def lacking(cells):
    cells.layers["counts"] = np.where(np.eye(80, 30) == 1, np.nan, 1.0)


def twice(cells):
    cells.var_names = ["g", *cells.var_names[1:-1], "g"]


def doubled(cells):
    cells.obs = pd.concat([cells.obs, cells.obs[["plate"]]], axis=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (halved, "with decimals"),
        (lacking, "NaN"),
        (twice, "not unique"),
        (doubled, "several columns"),
    ],
)
def test_augmentation_refuses_what_are_no_counts(some, drawn, change, said):
    cells = some.copy()
    with warnings.catch_warnings(action="ignore"):
        change(cells)
        with pytest.raises((ch.DataError, ch.SchemaError), match=said):
            ch.augment(cells, drawn)
