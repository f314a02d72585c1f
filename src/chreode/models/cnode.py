"""C-NODE: a neural ODE whose inputs reach few outputs, by the L1 norm of paths."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .neuralode import Penalised


class PathNorm(Dynamics):
    """Makes paths of weights short."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the L1 norm of paths."""
        return sparsity.path_norm(self.field)


@config
class CNODE(Penalised):
    """A neural ODE with few strong paths from inputs to outputs.

    Penalty: mean_j Σ_i (|W¹| |W²| … |Wᴸ|)_ij. Paths become small, never 0.

    References
    ----------
    Aliee, Theis and Kilbertus (2021), Beyond Predictions in Neural ODEs, arXiv 2106.12430.
    """

    def build(self, spec: Spec) -> PathNorm:
        """Return the untrained tensors."""
        return PathNorm(self, spec, self.field(self.width(spec)))
