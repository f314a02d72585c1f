"""L0: a neural ODE of few weights."""

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
    """Closes the gates of weights."""

    def penalty(self) -> Float[Tensor, ""]:
        """Return the expected share of open gates."""
        return sparsity.open_gates(self.field)


@config
class L0(Penalised):
    """A neural ODE whose weights have gates, of which as few as possible are open.

    References
    ----------
    Louizos, Welling and Kingma (2018), Learning Sparse Neural Networks through L0 Regularization, ICLR.
    """

    strengths: tuple[float, ...] = param(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "Weights to choose from, each fit begun at the last one.",
        low=0,
    )

    def build(self, spec: Spec) -> FewWeights:
        """Return the untrained tensors."""
        return FewWeights(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), activation=self.activation, gates="weights")
