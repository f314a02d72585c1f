"""L1: a neural ODE with small weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config, param
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .neuralode import Penalised


class SmallWeights(Dynamics):
    """A penalty on the absolute values of all weights."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the mean absolute weight."""
        return sparsity.l1(self.field)


@config
class L1(Penalised):
    """A neural ODE with an L1 penalty, which makes all weights small.

    References
    ----------
    Tibshirani (1996), Regression shrinkage and selection via the lasso, JRSS B 58:267.
    """

    strengths: tuple[float, ...] = param(
        (0.3, 1.0, 3.0, 10.0, 30.0),
        "Penalty weights to try in rising order, each from the fit before; more are tried if the best is at "
        "an end.",
        low=0,
    )

    def build(self, spec: Spec) -> SmallWeights:
        """Return the untrained tensors."""
        return SmallWeights(self, spec, self.field(self.width(spec)))
