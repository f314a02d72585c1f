"""C-NODE: a neural ODE with an L1 penalty on the paths through the network from gene to gene."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .neuralode import Penalised


class PathNorm(Dynamics):
    """A penalty on the products of weights along paths through the network."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the L1 norm of the paths from input to output."""
        return sparsity.path_norm(self.field)


@config
class CNODE(Penalised):
    """A neural ODE with a penalty on paths from gene to gene, so that few genes act strongly on each.

    The penalty is mean_j Σ_i (|W¹| |W²| … |Wᴸ|)_ij, with W the weights of the layers, i an input gene and
    j an output gene. Effects become small, but not exactly 0.

    References
    ----------
    Aliee, Theis and Kilbertus (2021), Beyond Predictions in Neural ODEs, arXiv 2106.12430.
    """

    def build(self, spec: Spec) -> PathNorm:
        """Return the untrained tensors."""
        return PathNorm(self, spec, self.field(self.width(spec)))
