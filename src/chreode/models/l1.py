"""L1: a neural ODE of small weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config
from ..losses import sparsity
from ..schema import Spec
from .neuralode import Dynamics, Penalised


class SmallWeights(Dynamics):
    """Makes every weight small."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the mean absolute weight."""
        return sparsity.l1(self.field)


@config
class L1(Penalised):
    """A neural ODE whose weights are drawn to 0 by their absolute values.

    References
    ----------
    Tibshirani (1996), Regression shrinkage and selection via the lasso, JRSS B 58:267.
    """

    def build(self, spec: Spec) -> SmallWeights:
        """Return the untrained tensors."""
        return SmallWeights(self, spec, self.field(self.width(spec)))
