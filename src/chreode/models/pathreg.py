"""PathReg: a neural ODE in which few genes act on each gene, and all others have no effect."""

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
    """A penalty on the number of open paths and on their weights."""

    options: PathReg

    def penalty(self) -> Float[Tensor, ""]:
        """Return the norm of paths plus 0.1 times the share of open paths; published: over inputs too."""
        published = self.options.variant == "published"
        opened = sparsity.open_paths(self.field, self.field.masks if published else None)
        whole = sparsity.path_norm(self.field) + _OPEN * opened
        return whole / self.field.n if published else whole

    def velocity(
        self, gates: Gates = "sample"
    ) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return f for one solve; in training of the published form, gates are drawn at every evaluation."""
        if not (self.training and self.options.variant == "published"):
            return super().velocity(gates)

        def drawn(x: Tensor) -> Tensor:
            self.field.settle("sample")
            return self.field(x)

        return drawn


@config
class PathReg(Penalised):
    """A neural ODE with a gate on each pair of genes, so that few genes act on each gene.

    The penalty, with W the weights times their gates and P the probabilities that gates are open, is::

        mean_j Σ_i ((|W¹| |W²| … |Wᴸ|)_ij + 0.1 (P¹ P² … Pᴸ)_ij)

    The default has one network and linear terms for each gene, and a gate on each input of a network. A
    closed gate means that one gene has exactly no effect on the other. Gates are drawn at random once per
    solve of the ODE. They are not random while slopes are matched, nor in predictions.

    `variant="published"` is the released loss: a mean over inputs too, and gates on the inputs of every
    layer, the same for all outputs. Gates are drawn at every evaluation, and the penalty uses those drawn.

    References
    ----------
    Aliee et al. (2022), Sparsity in Continuous-Depth Neural Networks, NeurIPS; the released code.
    """

    per_output: ClassVar[bool] = True

    variant: Literal["default", "published"] = param(
        "default",
        "Form of loss and gates: a gate on each pair of genes (default), or as released by the authors.",
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
