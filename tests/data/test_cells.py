"""Data and schema as one object: every place is looked up once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.data import memory, places
from chreode.data.cells import Cells


@pytest.fixture
def looked_up(monkeypatch):
    """Count how often each place is looked up."""
    count: Counter[str] = Counter()
    for name in ("matrix", "column"):
        plain = getattr(places, name)

        def counted(data, place, role, plain=plain):
            count[str(place)] += 1
            return plain(data, place, role)

        monkeypatch.setattr(places, name, counted)
    return count


@pytest.mark.parametrize("cls", [ch.PCA, ch.SCVI, ch.CFGen])
def test_a_fit_and_a_verb_look_up_each_place_once(cls, quick, cells, schema, looked_up):
    fitted = quick(cls).fit(cells, schema, progress=False)
    assert looked_up == dict.fromkeys(
        ["layers/counts", "obs/batch", "obs/cell_type", "obs/plate", "obs/age"], 1
    )
    looked_up.clear()
    fitted.embed(cells)
    assert set(looked_up.values()) == {1}


def test_a_matrix_by_columns_is_turned_once(quick, cells, schema, monkeypatch):
    cells.layers["counts"] = sp.csc_matrix(cells.layers["counts"])
    turned, plain = [], memory.rows_of
    monkeypatch.setattr(memory, "rows_of", lambda *a, **k: (turned.append(1), plain(*a, **k))[1])
    quick(ch.PCA).fit(cells, schema)
    assert turned == [1]


def test_fewer_roles_share_what_was_looked_up(cells, schema, looked_up):
    whole = Cells(cells, schema)
    whole.matrix("counts"), whole.column("batch")
    few = whole.narrowed(["counts", "batch"])
    assert list(few.places) == ["counts", "batch"]
    assert few.matrix("counts").matrix is whole.matrix("counts").matrix
    few.column("batch")
    assert set(looked_up.values()) == {1}


def test_what_is_said_of_features_follows_their_names(cells, schema):
    cells.var["symbol"] = [f"s{i}" for i in range(cells.n_vars)]
    cells.var["kept"] = True
    names = [cells.var_names[3], "no such gene", cells.var_names[0]]
    var = Cells(cells, schema).var("counts", names)
    assert var.index.tolist() == names
    assert var["symbol"].tolist()[::2] == ["s3", "s0"]
    assert var["symbol"].isna().tolist() == [False, True, False]
    assert var["kept"].tolist()[0] is np.True_ or var["kept"].tolist()[0] is True
    in_obsm = ch.Schema(protein="obsm/adt")
    cells.obsm["adt"] = np.ones((cells.n_obs, 2))
    assert Cells(cells, in_obsm).var("protein", ["adt_0"]).shape == (1, 0)
