"""The Total of scSSL-Bench, which depends on what else is in the table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config.arguments import checked

#: Its metrics, of those of integration.
BIO = ("isolated_labels", "nmi_leiden", "ari_leiden", "silhouette_label", "clisi")
BATCH = ("graph_connectivity", "kbet", "ilisi", "pcr_comparison", "silhouette_batch")


@checked
def scaled_totals(scores: pd.DataFrame) -> pd.Series:
    """Return 0.6 bio + 0.4 batch of metrics that are scaled to 0 for the worst row and 1 for the best.

    A metric that is the same in every row, or that a row lacks, is left out. So is a row that lacks all.

    Parameters
    ----------
    scores
        Raw scores, methods x metrics, of those methods that are compared.

    Returns
    -------
    One per method; NaN where no metric of a kind is left.

    References
    ----------
    scSSL-Bench, ICML 2025, arXiv 2506.10031 (its protocol of batch correction).

    Examples
    --------
    >>> raw = pd.DataFrame({"clisi": [0.9, 1.0], "ilisi": [0.4, 0.1]}, index=["A", "B"])
    >>> scaled_totals(raw).to_dict()
    {'A': 0.4, 'B': 0.6}
    """
    table = scores.astype(float)
    table = table.dropna(how="all")  # a row that failed has none
    spread = table.max() - table.min()
    table = table.loc[:, table.notna().all() & (spread > 0)]
    scaled = (table - table.min()) / (table.max() - table.min())
    parts = [scaled[[key for key in keys if key in scaled]] for keys in (BIO, BATCH)]
    if any(part.shape[1] == 0 for part in parts):
        return pd.Series(np.nan, index=scores.index)
    totals = 0.6 * parts[0].mean(axis=1) + 0.4 * parts[1].mean(axis=1)
    return totals.reindex(scores.index)
