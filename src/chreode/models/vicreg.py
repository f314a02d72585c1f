"""VICReg: views of a cell are near, every dimension spreads, and no two dimensions covary."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.vicreg import vicreg
from ..module import Loss, Step
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.options import SelfSupervised, scssl


class VICRegModule(Embedder):
    """An encoder and a projector."""

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the three terms of the projections of two views, weighed."""
        (embedded, one), (_, two) = map(self.network, self.two_views(batch))
        terms = vicreg(one, two, step.group)._asdict()
        objective = sum(getattr(self.options, name) * term for name, term in terms.items())
        return self.logged(objective, embedded, step, **terms)


@config
class VICReg(SelfSupervised):
    """VICReg: views of a cell are near, every dimension spreads, and no two dimensions covary.

    For the projections z, z' of both views, d dimensions wide::

        λ mean (z − z')²  +  μ ½ Σ_views mean_j max(0, 1 − √(Var z_j + 10⁻⁴))
                          +  ν Σ_views Σ_j≠k Cov(z_j, z_k)² / d

    with variances and covariances over the cells of a minibatch.

    References
    ----------
    Bardes et al. (2022), VICReg: variance-invariance-covariance regularization for self-supervised
    learning, ICLR, equations 1 to 6, scaled as in the code that its authors released.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(
        projector=(64, 256), invariance=5.0, variance=5.0, covariance=1.0
    )

    projector: tuple[int, ...] = param(
        (64, 256), "Widths of the projector, through which the loss sees the embedding.", low=1
    )
    invariance: float = param(5.0, "Weight λ of the difference between the views.", low=0)
    variance: float = param(5.0, "Weight μ of dimensions that spread too little.", low=0)
    covariance: float = param(1.0, "Weight ν of dimensions that covary.", low=0)

    def build(self, spec: Spec) -> VICRegModule:
        """Return the untrained tensors."""
        return VICRegModule(self, spec)
