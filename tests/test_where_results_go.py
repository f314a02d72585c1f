"""Results replace nothing that they were made of, and have names that a file can hold."""

from __future__ import annotations

import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode.collect import copy_with, storable


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


def test_coordinates_are_of_the_cells_that_the_file_holds(some, tmp_path):
    path = tmp_path / "a.h5ad"
    some.write_h5ad(path)
    for other in (some[::-1], some[:40]):
        other.copy().write_h5ad(tmp_path / "new.h5ad")
        (tmp_path / "new.h5ad").replace(path)
        with pytest.raises(ch.StoreError, match="replaced while it was read"):
            copy_with(path, some.obs_names, tmp_path / "out.h5ad", {"X": np.zeros((80, 2))}, {})
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
    [(halved, "not whole"), (lacking, "NaN"), (twice, "not unique"), (doubled, "several columns")],
)
def test_augmentation_refuses_what_are_no_counts(some, drawn, change, said):
    cells = some.copy()
    with warnings.catch_warnings(action="ignore"):
        change(cells)
        with pytest.raises((ch.DataError, ch.SchemaError), match=said):
            ch.augment(cells, drawn)
