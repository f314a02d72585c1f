"""PathReg: a neural ODE in which few inputs reach each output, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ..config import config, param
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .dynamics.vectorfield import Gates, VectorField
from .neuralode import Penalised

#: Weight of open paths beside that of their norm.
_OPEN = 0.1
#: Probability that a gate is closed at the start.
_CLOSED = (0.1, 0.5)


class Paths(Dynamics):
    """Makes paths few and short."""

    options: PathReg

    def penalty(self) -> Float[Tensor, ""]:
        """Return the norm of paths, and a tenth of the share of them that is open; published: per input."""
        published = self.options.variant == "published"
        opened = sparsity.open_paths(self.field, self.field.masks if published else None)
        whole = sparsity.path_norm(self.field) + _OPEN * opened
        return whole / self.field.n if published else whole

    def velocity(
        self, gates: Gates = "sample"
    ) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return f for one solve; as published, gates are drawn anew at every evaluation."""
        if not (self.training and self.options.variant == "published"):
            return super().velocity(gates)

        def drawn(x: Tensor) -> Tensor:
            self.field.settle("sample")
            return self.field(x)

        return drawn


@config
class PathReg(Penalised):
    """A neural ODE whose paths from inputs to outputs have gates.

    Penalty, W the weights behind their gates and P the probabilities that gates are open::

        mean_j Σ_i ((|W¹| |W²| … |Wᴸ|)_ij + 0.1 (P¹ P² … Pᴸ)_ij)

    The default has one network for each output and linear terms, and a gate on each of its inputs: of every
    pair of genes it is known whether one reaches the other, exactly. Gates are drawn once per solve, and
    where slopes are matched, without one, they are what they are without chance; predictions have none.

    `variant="published"` is the released loss: the mean over inputs too, gates on the inputs of every
    layer, the same for all outputs, drawn at every evaluation, and the drawn ones in the penalty.

    References
    ----------
    Aliee et al. (2022), Sparsity in Continuous-Depth Neural Networks, NeurIPS; the released code.
    """

    per_output: ClassVar[bool] = True

    variant: Literal["default", "published"] = param(
        "default", "Where gates sit, and when they are drawn."
    )

    def build(self, spec: Spec) -> Paths:
        """Return the untrained tensors."""
        return Paths(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        if self.variant == "published":  # no activation after the second layer
            return VectorField(
                n, (100, 100), activation="elu", gates="inputs", speed=1.0, linear_from=1
            )
        return VectorField(
            n, self.widths(n), per_output=True, activation=self.activation, gates="edges", closed=_CLOSED,
            skip=True,
        )  # fmt: skip
