"""Group lasso: a neural ODE with one network for each output, and few inputs to each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..config import config, param
from ..module import Step
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .dynamics.vectorfield import VectorField
from .neuralode import Penalised


class Groups(Dynamics):
    """Makes the weights of an edge 0 together."""

    adaptive: Tensor

    def __init__(self, options: GroupLasso, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        self.register_buffer("adaptive", torch.ones(field.n, field.n))

    def strengthen(self, value: float) -> None:
        """Set the weight of the penalty; first of all weigh edges by what they are without one."""
        if not self.strength and value:  # adaptive lasso: Zou 2006, with γ = 1
            length = self.field.weights[0].detach().norm(dim=2)
            self.adaptive.copy_(length.mean() / length.clamp(min=1e-3 * float(length.mean())))
        super().strengthen(value)

    def after_step(self, step: Step) -> None:
        """Take the proximal step: the penalty is no part of the objective."""
        if self.strength:
            rate = step.rate(self.field.weights[0]).mean(2)
            sparsity.shrink_groups(self.field, self.strength * rate * self.adaptive / len(rate))


@config
class GroupLasso(Penalised):
    """A neural ODE with one network for each output, whose first-layer weights per input are a group.

    Penalty: Σ_ij a_ij ‖W¹_j[i, :]‖₂, adaptive weights a, by proximal steps: edges are exactly 0.

    References
    ----------
    Bellot, Branson and van der Schaar (2022), Neural graphical modelling in continuous-time, ICLR.
    """

    per_output: ClassVar[bool] = True

    strengths: tuple[float, ...] = param(
        (0.0005, 0.001, 0.002, 0.004, 0.008),
        "Weights to choose from, each fit begun at the last one.",
        low=0,
    )

    def build(self, spec: Spec) -> Groups:
        """Return the untrained tensors."""
        return Groups(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), per_output=True, activation=self.activation)
