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
    """Factor analysis of log-expression.

    Generative story, for cell n::

        z_n ~ N(0, I)
        x_n ~ N(W z_n + μ, diag ψ)     log1p counts per 10,000 of the features read, or `expression`

    Fitted by EM, on the covariance first and then on the cells. NaN in `expression` (not measured) is
    integrated out. New cells are projected exactly, whichever features they have.

    References
    ----------
    Rubin & Thayer (1982), Psychometrika 47:69; Liu, Rubin & Wu (1998), Biometrika 85:755.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    tolerates: ClassVar[tuple[str, ...]] = ("expression",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_factors: int = param(10, "Number of factors.", low=1)
    tol: float = param(
        1e-5, "Stop when an epoch adds less than this share of the gain so far.", low=0
    )
    max_epochs: int = param(500, "Passes of EM at most.", low=1)

    def build(self, spec: Spec) -> LinearGaussian:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return LinearGaussian(spec.n_features(role), self.n_factors, shared_noise=False)

    def phases(self) -> list[Phase]:
        """EM over all cells."""
        learner = EM(max_epochs=self.max_epochs, tol=self.tol)
        return [Phase(learner, name="FactorAnalysis", lasts="max_epochs")]
