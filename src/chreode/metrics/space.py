"""A space of log-expression that is fitted on some cells, and where others are in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.decomposition import PCA

from ..config.arguments import Sparse, checked
from ..errors import ConfigError, DataError, counted

Cloud = Float[np.ndarray, "_ _"]  # cells x dimensions, as many in all that are compared


@checked
def log_cp10k(counts: Sparse) -> sp.csr_matrix:
    """Return log1p of counts per 10,000; a cell without counts stays empty."""
    if counts.nnz and not (counts.data.min() >= 0 and np.isfinite(counts.data).all()):
        raise DataError("Counts are negative, NaN or infinite: expected raw counts.")
    total = np.asarray(counts.sum(1)).ravel()
    scaled = sp.csr_matrix(sp.diags_array(1e4 / np.maximum(total, 1)) @ counts)
    scaled.data = np.log1p(scaled.data)
    return scaled


def most_variable(x: sp.csr_matrix, n: int) -> Int[np.ndarray, " k"]:
    """Return the features that vary most, in their order."""
    square, mean = x.multiply(x).mean(0), x.mean(0)
    variance = np.asarray(square).ravel() - np.asarray(mean).ravel() ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:n])


@dataclass(frozen=True, eq=False)
class Space:
    """Where clouds are compared: principal components of real cells, centred by their mean.

    Attributes
    ----------
    genes
        Genes that enter.
    pca
        Fitted on log1p counts per 10,000 of real cells. In components that were fitted on a cloud it is wider
        than others like it: fit them on cells of neither side.
    """

    genes: Int[np.ndarray, " k"]
    pca: PCA

    @classmethod
    def of(cls, counts: Sparse, n_genes: int = 2000, n_components: int = 30) -> Space:
        """Fit on raw counts of real cells, of the genes whose log-expression varies most.

        Raises
        ------
        DataError
            If there are fewer than two cells, or two features: a share of the only one never differs.
        ConfigError
            If fewer than two genes or one component are asked for.
        """
        if min(counts.shape) < 2:
            raise DataError(
                f"Got {counted(counts.shape[0], 'cell')} and {counted(counts.shape[1], 'feature')}: expected "
                "two of each at least."
            )
        if min(n_genes - 1, n_components) < 1:
            raise ConfigError(
                f"n_genes={n_genes}, n_components={n_components}: expected two genes and one component "
                "at the least."
            )
        x = log_cp10k(counts)
        genes = most_variable(x, n_genes)
        n = min(n_components, len(genes) - 1, x.shape[0] - 1)
        solver = "covariance_eigh" if x.shape[0] > len(genes) else "full"  # the smaller side
        return cls(genes, PCA(n, svd_solver=solver).fit(x[:, genes].toarray()))

    def place(self, counts: Sparse) -> Cloud:
        """Return coordinates of cells, real or generated."""
        return self.pca.transform(log_cp10k(counts)[:, self.genes].toarray())
