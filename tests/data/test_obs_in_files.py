"""Columns of obs that have no form in a file are written as text, by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import chreode as ch

UNWRITABLE = {
    "period": lambda n: pd.PeriodIndex(pd.to_datetime(np.arange(n), unit="D"), freq="D"),
    "date": lambda n: pd.to_datetime(np.arange(n), unit="D"),
    "zone": lambda n: pd.to_datetime(np.arange(n), unit="D", utc=True),
    "span": lambda n: pd.to_timedelta(np.arange(n), unit="D"),
    "interval": lambda n: pd.cut(np.arange(n), 3),
    "mixed": lambda n: np.resize(np.array([1, "a", None], object), n),
    "lists": lambda n: pd.Series([[1, 2]] * n).to_numpy(),
    "sets": lambda n: pd.Series([{"a"}] * n).to_numpy(),
    "flags": lambda n: np.resize(np.array([True, None], object), n),
    "complex": lambda n: np.arange(n) * 1j,
    "bytes": lambda n: np.resize(np.array([b"a"], object), n),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("verb", ["reconstruct", "predict"])
def test_obs_that_no_file_holds_is_written_as_text(kind, verb, cells, schema, quick, tmp_path):
    cells = cells[:60].copy()
    fitted = quick(ch.SCVI).fit(cells, schema)
    cells.obs["when"] = UNWRITABLE[kind](60)
    cells.obs[7] = 1.0
    with pytest.warns(UserWarning, match="'when' written as text"):
        out = getattr(fitted, verb)(cells, to={}, into=tmp_path / "out.h5ad")
    read = ad.read_h5ad(out).obs
    assert list(read.index) == list(cells.obs_names)
    assert read["when"].dropna().astype(object).map(lambda v: isinstance(v, str)).all()
    assert "7" in read
