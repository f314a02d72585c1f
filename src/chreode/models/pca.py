"""Principal component analysis of log-expression: the baseline in every table of the bench."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch
from ..learn.exact import Batches, Exact, principal
from ..learn.phase import Phase
from ..model import Model
from ..module import Module
from ..schema import Spec


class PCAModule(Module):
    """Mean, axes and variances."""

    mean: Tensor
    axes: Tensor
    variance: Tensor

    def __init__(self, n_features: int, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("axes", torch.zeros(n_features, n_latent))
        self.register_buffer("variance", torch.zeros(n_latent))

    def solve(self, batches: Batches, rng: Rng) -> bool:
        """Take the leading eigenvectors of the covariance."""
        found = principal(batches, self.axes.shape[1], rng)
        for name, value in (("mean", found.mean), ("axes", found.axes), ("variance", found.values)):
            getattr(self, name).copy_(value)
        return found.converged

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Project centred log-expression on the axes; a feature that a query lacks is set to its mean."""
        x = batch.log_expression() - self.mean
        for observed in batch.observed.values():
            x = x * observed
        return x @ self.axes

    def reconstruct(self, batch: CellBatch, to: CellBatch) -> Float[Tensor, "b g"]:  # noqa: ARG002 (no conditions)
        """Return the projection, mapped back to the features."""
        return self.embed(batch) @ self.axes.T + self.mean

    def loadings(self) -> Float[Tensor, "g z"]:
        """Return the axes."""
        return self.axes

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return how much of the variance of the components comes from each feature."""
        weight = self.axes.square() @ self.variance
        return {"counts": weight, "expression": weight}


@config
class PCA(Model):
    """Principal component analysis of log1p counts per 10,000, or of `expression` if the schema names it.

    ``embed = (x − mean) W``, with W the leading eigenvectors of the covariance C. They are exact for up
    to 3,000 features (one pass over the cells) or up to 2,000 cells. For more of both, each axis v of
    variance λ is found to ‖C v − λ v‖ ≤ 0.001 λ, in about twenty passes. Cells are read in chunks. A
    matrix of cells x features is never held in memory, nor one of features x features above 3,000.

    Counts per 10,000 are computed from the features that the model reads, not from all counts of the
    cell. If genes were selected, a cell in which they are rare is scaled up. To avoid this, compute
    log-expression from all genes and name it as `expression`.

    References
    ----------
    Pearson (1901), Philosophical Magazine 2:559; Jolliffe, *Principal Component Analysis*, §1.1.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_latent: int = param(50, "Number of principal components.", low=1)

    def build(self, spec: Spec) -> PCAModule:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return PCAModule(spec.n_features(role), self.n_latent)

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: a closed form."""
        return [Phase(Exact(), name="PCA")]
