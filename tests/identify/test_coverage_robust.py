"""Coverage does not depend on units, spares the user's data, and names groups that nobody can learn from."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.identify.readers import Readers

COUNTS = ch.Schema(counts="X")
pytestmark = pytest.mark.usefixtures("fewer")


@pytest.fixture
def data():
    """Return 150 cells of two types with a continuous programme, from three donors."""
    rng = np.random.default_rng(0)
    code, one = np.arange(150) % 2, rng.uniform(-1, 1, 150)
    rate = rng.lognormal(0, 1, (2, 80))[code] * np.exp(np.outer(one, rng.normal(0, 1, 80)))
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(3 * rate).astype("f4")))
    cells.obs_names = [f"cell {i}" for i in range(150)]
    cells.obs["type"] = pd.Categorical(np.array(["a", "b"])[code])
    cells.obs["one"] = one
    cells.obs["donor"] = pd.Categorical(np.array(["p", "q", "r"])[np.arange(150) // 50])
    for shift, scale in ((1e6, 1.0), (0.0, 1e25), (-3e8, 1e-3)):
        cells.obs[f"{shift:g} {scale:g}"] = shift + scale * one
    return cells


def halfway(cells, seed):
    """Return each cell, or a random other one in its place, without a note in the user's data."""
    rng = np.random.default_rng(seed)
    n = cells.n_obs
    return cells[np.where(rng.random(n) < 0.5, rng.integers(n, size=n), np.arange(n))]


def test_units_do_not_matter(data):
    names = ["one", "1e+06 1", "0 1e+25", "-3e+08 0.001"]
    found = ch.identify.coverage(halfway, data, names, schema=COUNTS, n_views=4).table()
    assert found["coverage"].notna().all()
    np.testing.assert_allclose(found["coverage"], found["coverage"].iloc[0], atol=1e-3)


def test_a_function_that_changes_its_cells_changes_no_other_cells(data):
    def thinned(cells, seed):
        cells.X.data *= np.random.default_rng(seed).random(cells.X.nnz) < 0.3
        return cells

    before = data.X.sum()
    given = {"bad": thinned, "mask": "mask"}
    both = ch.identify.coverage(given, data, "one", schema=COUNTS, n_views=2).table()
    assert data.X.sum() == before
    alone = ch.identify.coverage({"mask": "mask"}, data, "one", schema=COUNTS, n_views=2).table()
    assert both.loc["mask", "coverage"].tolist() == alone.loc["mask", "coverage"].tolist()


def test_a_factor_of_one_group_alone_is_told_beside_others(data):
    data.obs["score"] = data.obs["one"].where(data.obs["donor"] == "q")
    data.obs["donor"] = data.obs["donor"].astype(str)
    data.obs["well"] = np.where(data.obs["donor"] == "q", "q", data.obs_names.str[-1])
    found = ch.identify.coverage(
        halfway, data, ["score", "type"], schema=COUNTS, groups="well", n_views=2
    ).table()
    assert "known of too few cells outside of some groups" in found["note"]["score"]
    assert found["note"]["type"] == ""
    assert found["coverage"].notna().tolist() == [False, True]


def test_cells_of_a_backed_file_are_read(data, tmp_path):
    data.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found, expected = (
        ch.identify.coverage(halfway, cells, "type", schema=COUNTS, n_views=2).table()["coverage"]
        for cells in (backed, data)
    )
    assert found.tolist() == expected.tolist()


def test_columns_of_modalities_keep_their_names_and_functions_want_one(data):
    other = data.copy()
    other.var_names = [f"protein {name}" for name in data.var_names]
    with mudata.set_options(pull_on_update=False):
        cells = mudata.MuData({"rna": data, "prot": other})
    schema = ch.Schema(counts="rna:X")
    found = ch.identify.coverage(
        "mask", cells, ["rna:obs/type", "prot:obs/type"], schema=schema, n_views=2
    )
    assert found.table().index.tolist() == ["rna:type", "prot:type"]
    with pytest.raises(ch.CapabilityError, match="Give one modality of the cells"):
        ch.identify.coverage(halfway, cells, "rna:obs/type", schema=schema, n_views=2)


def test_readers_with_a_kernel_share_their_components(data):
    data.obs["square"] = data.obs["one"] ** 2
    sizes = {}
    learn = Readers.learn.__func__

    def spied(cls, x, factors, *rest):
        made = learn(cls, x, factors, *rest)
        sizes[len(factors)] = (
            made.table.shape[1],
            [half.shared for pair in made.halves for half in pair],
        )
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "learn", classmethod(spied))
        for names in (["square"], ["square", "one", "type"]):
            ch.identify.coverage(halfway, data, names, schema=COUNTS, n_views=2)
    (few, shared), (more, _) = sizes[1], sizes[3]
    if not all(shared):
        pytest.fail("no kernel was chosen, so nothing is tested")
    assert more - few <= 3 * len(shared)  # a number, and two classes, of each half


def test_a_class_of_one_group_is_told_so(data):
    data.obs["batch"] = np.where(data.obs["donor"] == "q", "second", "first")
    data.obs["well"] = data.obs["donor"].astype(str) + data.obs_names.str[-1]
    data.obs.loc[data.obs["donor"] == "q", "well"] = "q"
    found = ch.identify.coverage(
        halfway, data, ["batch", "type"], schema=COUNTS, groups="well", n_views=2
    ).table()
    assert "all cells of some classes of batch are in one group: second" in found["note"]["batch"]


@pytest.mark.parametrize(
    ("function", "error", "why"),
    [
        (lambda cells: cells, ch.ConfigError, r"called with \(cells, seed\)"),
        (lambda cells, seed: cells[:20], ch.DataError, "20 cells for 150"),
    ],
)
def test_a_wrong_function_is_told_before_readers_learn(data, function, error, why, monkeypatch):
    monkeypatch.setattr(Readers, "learn", None)
    with pytest.raises(error, match=why):
        ch.identify.coverage(function, data, "type", schema=COUNTS)


def test_no_augmentation_is_refused(data):
    with pytest.raises(ch.ConfigError, match="name an augmentation at least"):
        ch.identify.coverage([], data, "type", schema=COUNTS)
