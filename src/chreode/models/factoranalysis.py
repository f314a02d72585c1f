"""Factor analysis: probabilistic PCA with a noise variance for each feature."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..config import config, param
from ..learn.em import EM
from ..learn.phase import Phase
from ..model import Model
from ..schema import Spec
from .parts.linear_gaussian import LinearGaussian


@config
class FactorAnalysis(Model):
    """Factor analysis of log-expression: a few factors, and a noise variance for each gene.

    Generative story, for cell n::

        z_n ~ N(0, I)
        x_n ~ N(W z_n + μ, diag ψ)     log1p counts per 10,000 of the features read, or `expression`

    The fit is by EM, first on the covariance and then on the cells. NaN in `expression` (not measured)
    is integrated out. The projection of a new cell is exact, whichever features it has.

    References
    ----------
    Rubin & Thayer (1982), Psychometrika 47:69; Liu, Rubin & Wu (1998), Biometrika 85:755.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    tolerates: ClassVar[tuple[str, ...]] = ("expression",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_factors: int = param(10, "Number of factors.", low=1)
    tol: float = param(
        1e-5,
        "Convergence threshold: EM stops when two passes in a row each raise the log-likelihood by less "
        "than this share of its rise so far.",
        low=0,
    )
    max_epochs: int = param(500, "Largest number of EM passes over the cells.", low=1)

    def build(self, spec: Spec) -> LinearGaussian:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return LinearGaussian(spec.n_features(role), self.n_factors, shared_noise=False)

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: EM over all cells."""
        learner = EM(max_epochs=self.max_epochs, tol=self.tol)
        return [Phase(learner, name="FactorAnalysis", lasts="max_epochs")]
