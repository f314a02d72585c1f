"""Proteins that were not measured: every model that fills them in, against the answer by hand."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pytest

import chreode as ch
from chreode import models
from chreode.data.simulate import simulate_citeseq
from chreode.models.selfsupervised.options import Encoding

KEYS = [key for key in models.keys() if issubclass(models.find(key), Encoding)]  # noqa: SIM118
SCHEMA = ch.Schema(counts="rna:X", protein="adt:X", batch="obs/batch")
HELD_OUT = np.arange(0, 200, 7)


@pytest.fixture(scope="module")
def cells():
    """200 cells, of which those of one batch lack proteins, and others some of them."""
    found = simulate_citeseq(200, 40, 8, n_batches=3, absent={"adt": ["batch_1"]}, seed=0)
    parts = {name: part.copy() for name, part in found.mod.items()}
    x = np.asarray(parts["adt"].layers["counts"].toarray(), np.float32)
    x[::3, ::2] = np.nan
    parts["adt"] = ad.AnnData(x, parts["adt"].obs, parts["adt"].var)
    with mudata.set_options(pull_on_update=False):
        whole = mudata.MuData(parts)
    whole.obs = parts["rna"].obs.reindex(whole.obs_names)
    return whole


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # measured in none of the five: NaN
@pytest.mark.parametrize("key", KEYS)
def test_a_protein_is_its_mean_in_the_five_nearest_training_cells_with_it(cells, quick, key):
    """Nearest by the cosine of what expression alone is embedded at; cells held out are no neighbours."""
    model = quick(models.find(key), max_epochs=1, fusion="concat")
    fitted = model.fit(cells, SCHEMA, validation=HELD_OUT, progress=False)
    z = fitted.embed(cells, progress=False)[:, :5]  # expression comes first
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    adt = cells["adt"]
    known = ~np.isin(adt.obs_names, cells.obs_names[HELD_OUT])
    keys = z[cells.obs_names.get_indexer(adt.obs_names[known])]
    nearest = np.argsort(-(z @ keys.T), axis=1)[:, :5]
    expected = np.nanmean(adt.X[known][nearest], axis=1)
    found = fitted.predict(cells["rna"].copy(), schema=ch.Schema(counts="X"), progress=False)
    at = found.obs_names.get_indexer(cells.obs_names)
    np.testing.assert_allclose(found.X[at], expected, rtol=1e-4)
    assert found.var_names.tolist() == adt.var_names.tolist()
