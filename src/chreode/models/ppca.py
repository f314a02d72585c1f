"""Probabilistic principal component analysis: PCA with a likelihood, also with missing values."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..config import config, param
from ..learn.em import EM
from ..learn.phase import Phase
from ..model import Model
from ..schema import Spec
from .parts.linear_gaussian import LinearGaussian


@config
class PPCA(Model):
    """Probabilistic principal component analysis: PCA with a likelihood, also for missing values.

    Generative story, for cell n::

        z_n ~ N(0, I)
        x_n ~ N(W z_n + μ, σ² I)     log1p counts per 10,000 of the features read, or `expression`

    The fit is in closed form. If `expression` holds NaN (not measured), EM goes on from there and
    integrates the missing entries out. The projection of a new cell is exact, whichever features it
    has: ``embed = E[z | observed entries]``.

    References
    ----------
    Tipping & Bishop (1999), JRSS B 61:611, Eq. 7 and 8; missing entries: Ilin & Raiko (2010), JMLR
    11:1957.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    tolerates: ClassVar[tuple[str, ...]] = ("expression",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_latent: int = param(10, "Number of dimensions of the latent space.", low=1)
    tol: float = param(
        1e-5,
        "Convergence threshold: EM stops when two passes in a row each raise the log-likelihood by less "
        "than this share of its rise so far.",
        low=0,
    )
    max_epochs: int = param(
        500,
        "Largest number of EM passes over the cells; three are made if no value is missing.",
        low=1,
    )

    def build(self, spec: Spec) -> LinearGaussian:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return LinearGaussian(spec.n_features(role), self.n_latent, shared_noise=True)

    def phases(self) -> list[Phase]:
        """Return the one phase of a fit: EM, started at the closed form.

        Only the data tell whether entries are missing, so one phase serves both cases. The module's
        `prepare` solves the closed form, and EM goes on from there. If nothing is missing, the closed
        form is a fixed point of EM, and EM stops after the passes that show this.
        """
        learner = EM(max_epochs=self.max_epochs, tol=self.tol)
        return [Phase(learner, name="PPCA", lasts="max_epochs")]
