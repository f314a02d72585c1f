"""L1: a neural ODE of small weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config, param
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .neuralode import Penalised


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

    strengths: tuple[float, ...] = param(
        (0.3, 1.0, 3.0, 10.0, 30.0),
        "Weights to choose from, each fit begun at the last one.",
        low=0,
    )

    def build(self, spec: Spec) -> SmallWeights:
        """Return the untrained tensors."""
        return SmallWeights(self, spec, self.field(self.width(spec)))
