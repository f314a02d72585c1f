"""The Total of scSSL-Bench: by hand, and how it depends on other rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from chreode.metrics import METRICS
from chreode.metrics.scaled import BATCH, BIO, scaled_totals


def table(n=4, seed=0):
    rng = np.random.default_rng(seed)
    keys = [m.key for m in METRICS]
    return pd.DataFrame(rng.uniform(size=(n, len(keys))), list("ABCDEF")[:n], keys)


def test_it_is_the_mean_of_scaled_metrics_of_the_paper():
    raw = table()
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    expected = 0.6 * scaled[list(BIO)].mean(axis=1) + 0.4 * scaled[list(BATCH)].mean(axis=1)
    np.testing.assert_allclose(scaled_totals(raw), expected)
    assert len(BIO) == len(BATCH) == 5
    kinds = {m.key: m.kind for m in METRICS}
    assert {kinds[key] for key in BIO} == {"bio"}
    assert {kinds[key] for key in BATCH} == {"batch"}
    assert not {"bras", "nmi_kmeans", "ari_kmeans"} & {*BIO, *BATCH}


def test_another_row_changes_it_and_may_turn_an_order():
    raw = pd.DataFrame({"clisi": [0.9, 0.8], "ilisi": [0.1, 0.5]}, ["A", "B"])
    alone = scaled_totals(raw)
    assert alone.idxmax() == "A"
    more = pd.concat([raw, pd.DataFrame({"clisi": [0.0], "ilisi": [0.4]}, ["C"])])
    assert scaled_totals(more)[["A", "B"]].idxmax() == "B"


def test_what_all_share_or_one_lacks_is_left_out():
    raw = table()
    flat = raw.assign(clisi=0.5)
    np.testing.assert_allclose(scaled_totals(flat), scaled_totals(raw.drop(columns="clisi")))
    gap = raw.copy()
    gap.loc["A", "kbet"] = np.nan
    np.testing.assert_allclose(scaled_totals(gap), scaled_totals(raw.drop(columns="kbet")))
    assert scaled_totals(raw[list(BIO)]).isna().all()
