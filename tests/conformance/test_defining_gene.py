"""A type of cells that one gene defines keeps it, in whatever generates or predicts counts."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.data.simulate import simulate_cells

MODELS = {
    "scvi, nb": (ch.SCVI(likelihood="nb", max_epochs=150), 0.2),
    "scvi, zinb": (ch.SCVI(max_epochs=150), 0.3),
    "cfgen": (ch.CFGen(max_epochs=60, flow_epochs=60), 0.2),
}


@pytest.fixture(scope="module")
def cells() -> tuple[anndata.AnnData, np.ndarray]:
    """Return cells of which 60 have a gene at a mean of 1,000 that no other cell has."""
    data = simulate_cells(1500, 200, n_types=5, n_batches=2, depth=1500, seed=0)
    rng = np.random.default_rng(1)
    x, mine = data.layers["counts"].toarray(), np.zeros(1500, bool)
    mine[rng.permutation(1500)[:60]] = True
    x[:, 0] = 0
    x[mine, 0] = rng.poisson(rng.gamma(2.5, 400, 60)) + 1
    data.layers["counts"] = sp.csr_matrix(x.astype("f4"))
    data.obs["type"] = np.where(mine, "erythroid", data.obs["cell_type"].astype(str))
    return data, mine


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_type_that_one_gene_defines_keeps_it(name, cells):
    (data, mine), (model, most) = cells, MODELS[name]
    roles = {"label": "obs/type"} if "label" in model.uses else {"batch": "obs/batch"}
    schema = ch.Schema(counts="layers/counts", **roles)
    fitted = model.fit(data, schema, seed=0, progress=False)
    drawn = {"predict": fitted.predict(data[mine].copy(), to={}, seed=0)}
    if "label" in model.uses:
        drawn["generate"] = fitted.generate(300, given={"label": "erythroid"}, seed=0)
    real = np.median(data.layers["counts"][mine][:, [0]].toarray())
    for verb, found in drawn.items():
        gene = sp.csr_matrix(found.X)[:, [0]].toarray()[:, 0]
        assert (gene == 0).mean() < most, verb
        assert real / 4 < np.median(gene) < real * 4, verb
        assert gene.max() < 100 * real, verb
