"""PathReg: a neural ODE in which few inputs reach each output, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ..config import config, param
from ..losses import sparsity
from ..nn.vectorfield import VectorField
from ..schema import Spec
from .neuralode import Dynamics, Penalised

#: Weight of open paths beside that of their norm.
_OPEN = 0.1


class Paths(Dynamics):
    """Makes paths few and short."""

    options: PathReg

    def penalty(self) -> Float[Tensor, ""]:
        """Return the norm of paths, and a tenth of the share of them that is open."""
        masks = self.field.masks if self.options.variant == "published" else None
        return sparsity.path_norm(self.field) + _OPEN * sparsity.open_paths(self.field, masks)

    def velocity(self) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return f for one solve; as published, gates are drawn anew at every evaluation."""
        if not (self.training and self.options.variant == "published"):
            return super().velocity()

        def drawn(x: Tensor) -> Tensor:
            self.field.settle(random=True)
            return self.field(x)

        return drawn


@config
class PathReg(Penalised):
    """A neural ODE whose paths from inputs to outputs have gates.

    Penalty, W the weights behind their gates and P the probabilities that gates are open::

        mean_ij (|W¹| |W²| … |Wᴸ|)_ij + 0.1 mean_ij (P¹ P² … Pᴸ)_ij

    The default has one network for each output, and a gate on each of its inputs: of every pair of genes
    it is known whether one reaches the other, exactly. Gates are drawn once per solve; predictions have no
    chance in them.

    `variant="published"` is the released loss: gates on the inputs of every layer, the same for all
    outputs, drawn at every evaluation, and the drawn ones in the penalty.

    References
    ----------
    Aliee et al. (2022), Sparsity in Continuous-Depth Neural Networks, NeurIPS; the released code.
    """

    variant: Literal["default", "published"] = param(
        "default", "Where gates sit, and when they are drawn."
    )
    hidden: tuple[int, ...] = param((16,), "Widths of the network of each output.", low=1)

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
            n, self.hidden, per_output=True, activation=self.activation, gates="edges"
        )
