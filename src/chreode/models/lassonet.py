"""LassoNet: a neural ODE whose networks see an input only as far as a linear term does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import config, param
from ..losses import sparsity
from ..module import Step
from ..nn.vectorfield import VectorField
from ..schema import Spec
from .neuralode import Dynamics, Penalised


class Skipped(Dynamics):
    """f(x) = skip · x + networks, whose first weights from an input are at most `ratio` |skip|."""

    options: LassoNet

    def __init__(self, options: LassoNet, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        self.skip = nn.Parameter(0.1 * torch.randn(field.n, field.n) / field.n**0.5)

    def velocity(self) -> Callable[[Float[Tensor, "s n"]], Float[Tensor, "s n"]]:
        """Return f for one solve."""
        networks = super().velocity()
        return lambda x: networks(x) + x @ self.skip.T

    def after_step(self, step: Step) -> None:
        """Take the proximal step: the penalty is no part of the objective."""
        if self.strength:
            shorter = float(self.strength) * step.lr
            skip, first = sparsity.hierarchical(
                self.skip, self.field.weights[0], shorter, self.options.ratio
            )
            self.skip.data.copy_(skip)
            self.field.weights[0].data.copy_(first)


@config
class LassoNet(Penalised):
    """A neural ODE with one network for each output and linear terms, which decide what the networks see.

    Penalty: Σ_ij |θ_ij| of the linear terms, under max |W¹_j[i, :]| ≤ M |θ_ij|, by hierarchical proximal
    steps; strengths rise from a dense fit.

    References
    ----------
    Lemhadri, Ruan, Abraham and Tibshirani (2021), LassoNet: A Neural Network with Feature Sparsity, JMLR.
    """

    hidden: tuple[int, ...] = param((16,), "Widths of the network of each output.", low=1)
    ratio: float = param(10.0, "M: how much larger network weights may be than linear ones.", low=0)

    def build(self, spec: Spec) -> Skipped:
        """Return the untrained tensors."""
        return Skipped(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.hidden, per_output=True, activation=self.activation)
