"""Loadings of one view, several views, several kinds of factors; how much of a view a factor explains."""

from __future__ import annotations

import json
from typing import ClassVar

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from contract.factors import Factors, simulated
from contract.test_views import CLL, joined, patients  # noqa: F401 (a fixture)

import chreode as ch
from chreode.config import config
from chreode.data import source as source_
from chreode.learn import Exact, Phase
from chreode.model import Model
from chreode.module import Module


@pytest.fixture(scope="module")
def fitted(patients):  # noqa: F811 (a fixture)
    return Factors(n_factors=5, max_epochs=30).fit(joined(patients), CLL)


def test_one_table_is_as_it_was(cells, schema):
    fitted = ch.PCA(n_latent=4).fit(cells, schema)
    table = fitted.loadings(cells)
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["pca_0", "pca_1", "pca_2", "pca_3"]
    np.testing.assert_array_equal(table, fitted.module.loadings())
    np.testing.assert_array_equal(cells.varm["pca_loadings"], table.to_numpy(np.float32))
    assert json.loads(cells.uns["chreode"]["pca_loadings"])["model"] == "pca"


@pytest.mark.slow
def test_every_view_has_its_table_and_its_slot(fitted, patients):  # noqa: F811
    """Modalities stand in another order here, and so do the features of one, of which some are new."""
    other = patients["Drugs"].iloc[:, ::-1].assign(new=0.0)
    turned = {name: patients[name] for name in ("mRNA", "Drugs", "Mutations", "Methylation")}
    data = joined({**turned, "Drugs": other})
    found = fitted.loadings(data)
    assert list(found) == ["Drugs", "Methylation", "mRNA", "Mutations"]
    for (name, table), view in zip(found.items(), fitted.module.views, strict=True):
        assert list(table.index) == list(patients[name].columns)
        assert list(table.columns) == [f"factors_{i}" for i in range(5)]
        np.testing.assert_array_equal(table, view.w)
        assert "factors_loadings" in data.mod[name].varm
        assert "factors_loadings" in data.mod[name].uns["chreode"]
    written = data.mod["Drugs"].varm["factors_loadings"]
    np.testing.assert_allclose(written[:-1], found["Drugs"].to_numpy()[::-1], rtol=1e-6)
    assert np.isnan(written[-1]).all()
    assert list(fitted.loadings()) == list(found)


def test_nothing_is_written_where_a_view_has_no_place(fitted, patients):  # noqa: F811
    data = joined({k: t for k, t in patients.items() if k != "Mutations"})
    with pytest.raises(ch.SchemaError, match="no modality 'Mutations'"):
        fitted.loadings(data)
    assert not any("factors_loadings" in view.varm for view in data.mod.values())
    with pytest.raises(ch.SchemaError, match="the data is an AnnData"):
        fitted.loadings(data.mod["mRNA"])


def test_views_of_one_object_have_slots_of_their_own():
    cells, _ = simulated(80, 20)
    cells.layers["twice"], cells.obsm["more"] = 2 * cells.X, cells.X[:, :7].copy()
    schema = ch.Schema(views=("X", "layers/twice", "obsm/more"))
    found = Factors(n_factors=3, max_epochs=5).fit(cells, schema).loadings(cells)
    assert {name: t.shape for name, t in found.items()} == {
        "views/X": (20, 3), "views/layers/twice": (20, 3), "views/obsm/more": (7, 3),
    }  # fmt: skip
    assert set(cells.varm) == {"factors_views_X_loadings", "factors_views_layers_twice_loadings"}


class KindsModule(Module):
    """Two kinds of factors of the same genes: 13 lines, with its model."""

    def __init__(self, g):
        super().__init__()
        self.register_buffer("axes", torch.zeros(g, 5))

    def solve(self, batches, rng):
        self.axes.copy_(torch.arange(self.axes.numel()).view_as(self.axes))

    def loadings(self):
        return {"shared": self.axes[:, :3], "age": self.axes[:, 3:]}


@config
class Kinds(Model):
    """Toy."""

    needs: ClassVar = ("counts",)

    def build(self, spec):
        return KindsModule(spec.n_features("counts"))

    def phases(self):
        return [Phase(Exact())]


def test_kinds_of_factors_have_tables_by_name(cells):
    found = Kinds().fit(cells, ch.Schema(counts="layers/counts")).loadings(cells)
    assert {name: list(t.columns) for name, t in found.items()} == {
        "shared": ["kinds_shared_0", "kinds_shared_1", "kinds_shared_2"],
        "age": ["kinds_age_0", "kinds_age_1"],
    }
    np.testing.assert_array_equal(found["age"].to_numpy()[:, 0], 3 + 5 * np.arange(300))
    written = {slot for slot in cells.varm if slot.startswith("kinds")}
    assert written == {"kinds_shared_loadings", "kinds_age_loadings"}
    assert list(found["age"].index) == list(cells.var_names)


def test_a_written_file_keeps_them(fitted, patients, tmp_path):  # noqa: F811
    data = joined(patients)
    found = fitted.loadings(data)
    with mudata.set_options(pull_on_update=False):
        data.write_h5mu(tmp_path / "a.h5mu")
        again = mudata.read_h5mu(tmp_path / "a.h5mu")
    np.testing.assert_allclose(
        again.mod["mRNA"].varm["factors_loadings"], found["mRNA"], rtol=1e-6, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [16, 4096])
def test_variance_explained_is_that_of_whole_matrices(fitted, patients, monkeypatch, chunk):  # noqa: F811
    """1 − Σ(x − x̂)² / Σ(x − mean)² in NumPy, over what was measured, however cells are streamed."""
    monkeypatch.setattr(source_, "CHUNK_VALUES", 300 * chunk)
    data = joined(patients)
    found = fitted.variance_explained(data)
    assert list(found.index) == [*(f"factors_{i}" for i in range(5)), "all"]
    assert list(found.columns) == ["Drugs", "Methylation", "mRNA", "Mutations"]
    z = pd.DataFrame(fitted.embed(data).astype("f8"), index=data.obs_names)
    for name, view in zip(found, fitted.module.views, strict=True):
        x = patients[name].to_numpy(np.float32) - view.centre.numpy()
        here, w = z.loc[patients[name].index].to_numpy(), view.w.numpy()
        for row, factors in enumerate([*([k] for k in range(5)), list(range(5))]):
            left = np.nansum((x - here[:, factors] @ w[:, factors].T) ** 2)
            assert found[name].iloc[row] == pytest.approx(1 - left / np.nansum(x**2), abs=1e-5)
    assert found.loc["all", "Drugs"] > 0.3
    assert (found.loc["all"] >= found.iloc[:-1].max() - 1e-6).all()


def test_a_factor_of_one_view_explains_that_one_alone():
    """The truth is put into the module: noise leaves 0.09 of each feature's variance, 1.09 with it."""
    rng = np.random.default_rng(0)
    z, signs = rng.normal(size=(3000, 2)), {"a": np.ones((30, 1)), "b": np.ones((20, 1))}
    x = {
        k: z[:, [i]] @ w.T + 0.3 * rng.normal(size=(3000, len(w)))
        for i, (k, w) in enumerate(signs.items())
    }
    both = joined({k: pd.DataFrame(t).add_prefix(k).rename(index=str) for k, t in x.items()})
    fitted = Factors(n_factors=2, max_epochs=1).fit(both, ch.Schema(views=("a:X", "b:X")))
    for i, view in enumerate(fitted.module.views):
        view.w.zero_()
        view.w[:, i], view.s[:], view.tau[0], view.tau[1] = 1.0, 1e-9, 1.0, 0.09
    found = fitted.variance_explained(both)
    expected = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * (1 - 0.09 / 1.09)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert found.loc["factors_0", "b"] == 0


def test_models_without_it_say_so(cells, schema):
    fitted = ch.PCA(n_latent=4).fit(cells, schema)
    assert "variance_explained" not in fitted.verbs
    with pytest.raises(ch.CapabilityError, match="has no variance_explained; it offers embed"):
        fitted.variance_explained(cells)
