"""Counts that do not fit in small integers: kept whole, or refused, and never wrapped."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.check import findings
from chreode.data.collect import collect_cells


def collected(block, into):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(block))])
    features = {"counts": pd.DataFrame(index=[f"g{i}" for i in range(block.shape[1])])}
    made = collect_cells([{"counts": block}], obs, features, {}, counts=True, into=into)
    return made if into is None else ad.read_h5ad(made)


@pytest.mark.parametrize("kept", ["memory", "file"])
@pytest.mark.parametrize("most", [3.0, 2.0**31, 2.0**32 + 2**12, 1e15, 2.0**62])
def test_new_counts_are_what_the_model_drew(kept, most, tmp_path):
    block = np.array([[0, most], [1, 0]], np.float32)
    cells = collected(block, tmp_path / "c.h5ad" if kept == "file" else None)
    assert cells.X.dtype == np.int64
    assert cells.X.toarray().astype(float).tolist() == block.astype(float).tolist()


@pytest.mark.parametrize("kept", ["memory", "file"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 2.0**63, 1e38])
def test_counts_that_no_integer_holds_are_refused(kept, wrong, tmp_path):
    with pytest.raises(ch.DataError, match="not finite"):
        collected(
            np.array([[0, wrong]], np.float32), tmp_path / "c.h5ad" if kept == "file" else None
        )
    assert not (tmp_path / "c.h5ad").exists()


@pytest.mark.filterwarnings("ignore::chreode.data.check.CountsWarning")
@pytest.mark.parametrize("verb", ["predict", "generate"])
@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_large_counts_stay_positive(cells, verb, likelihood):
    few = cells[:100, :20].copy()
    few.layers["counts"] = (few.layers["counts"].toarray().astype(np.int64) + 1) * 10**9
    fitted = ch.SCVI(max_epochs=1, likelihood=likelihood).fit(
        few, ch.Schema(counts="layers/counts")
    )
    new = fitted.predict(few, to={}) if verb == "predict" else fitted.generate(50)
    assert new.X.min() >= 0
    assert new.X.max() > 2**31


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(
    ("most", "level"), [(2**24, None), (2**24 + 1, "warning"), (1e39, "error")]
)
def test_check_says_what_float32_cannot_hold(form, most, level):
    a = ad.AnnData(form(np.array([[1.0, most], [2.0, 3.0]])))
    found = findings(Cells(a, ch.Schema(counts="X")))
    assert [f.level for f in found] == ([level] if level else [])


def test_the_limit_of_float32_is_told_of_normalised_values_too():
    x = np.random.default_rng(0).gamma(1.0, 1.0, (30, 20))
    a = ad.AnnData(1e9 * x / x.sum(1, keepdims=True))
    found = [f.text for f in findings(Cells(a, ch.Schema(counts="X", fractional=True)))]
    assert ["looks normalised" in text for text in found] == [True, False]
    assert "Models read them as float32" in found[1]


def test_expression_that_float32_makes_one_of_is_told():
    """A fit on such values learned from zeros alone."""
    x = np.random.default_rng(0).normal(size=(30, 20))
    for sign in (1, -1):
        found = findings(Cells(ad.AnnData(sign * 1e9 + x), ch.Schema(expression="X")))
        assert [f.level for f in found] == ["warning"]
        assert "differences below 60 are lost" in found[0].text


def test_sums_alike_tell_nothing_of_continuous_roles():
    x = np.random.default_rng(0).gamma(1.0, 1.0, (30, 20))
    a = ad.AnnData(x / x.sum(1, keepdims=True))
    assert findings(Cells(a, ch.Schema(expression="X"))) == []
