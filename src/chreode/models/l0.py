"""L0: a neural ODE with few non-zero weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..config import config, param
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .dynamics.vectorfield import VectorField
from .neuralode import Penalised


class FewWeights(Dynamics):
    """A penalty on the number of weights whose gate is open."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the expected share of gates that are open."""
        return sparsity.open_gates(self.field)


@config
class L0(Penalised):
    """A neural ODE with a gate on each weight and a penalty on the share of open gates.

    References
    ----------
    Louizos, Welling and Kingma (2018), Learning Sparse Neural Networks through L0 Regularization, ICLR.
    """

    strengths: tuple[float, ...] = param(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "Penalty weights to try in rising order, each from the fit before; more are tried if the best is at "
        "an end.",
        low=0,
    )

    def build(self, spec: Spec) -> FewWeights:
        """Return the untrained tensors."""
        return FewWeights(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), activation=self.activation, gates="weights")
