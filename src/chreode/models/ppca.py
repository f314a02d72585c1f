"""Probabilistic principal component analysis: PCA with a likelihood, and with entries missing."""

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
    """Probabilistic principal component analysis of log-expression.

    Generative story, for cell n::

        z_n ~ N(0, I)
        x_n ~ N(W z_n + μ, σ² I)     log1p counts per 10,000 of the features read, or `expression`

    Solved in closed form; NaN in `expression` (not measured) is integrated out, by EM. New cells are
    projected exactly, whichever features they have: ``embed = E[z | observed entries]``.

    References
    ----------
    Tipping & Bishop (1999), JRSS B 61:611, Eq. 7 and 8; missing entries: Ilin & Raiko (2010), JMLR
    11:1957.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    tolerates: ClassVar[tuple[str, ...]] = ("expression",)
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"

    n_latent: int = param(10, "Dimensions of the latent space.", low=1)
    tol: float = param(
        1e-5, "Stop EM when an epoch adds less than this share of the gain so far.", low=0
    )
    max_epochs: int = param(500, "Passes of EM at most; three where nothing is missing.", low=1)

    def build(self, spec: Spec) -> LinearGaussian:
        """Return the untrained tensors."""
        role = spec.either("expression", "counts")
        return LinearGaussian(spec.n_features(role), self.n_latent, shared_noise=True)

    def phases(self) -> list[Phase]:
        """EM from the closed form.

        Whether entries are missing is seen in the data alone, so one phase serves both cases: the
        module's `prepare` solves the closed form, and EM goes on from there. Where nothing is
        missing that is its fixed point, and it stops after the passes that show it.
        """
        learner = EM(max_epochs=self.max_epochs, tol=self.tol)
        return [Phase(learner, name="PPCA", lasts="max_epochs")]
