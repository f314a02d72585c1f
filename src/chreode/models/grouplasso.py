"""Group lasso: a neural ODE with one network for each gene, and few input genes to each."""

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
    """A penalty that sets all first-layer weights of an edge to 0 together."""

    adaptive: Tensor

    def __init__(self, options: GroupLasso, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        self.register_buffer("adaptive", torch.ones(field.n, field.n))

    def set_strength(self, value: float) -> None:
        """Set the weight of the penalty; the first time, also the weights of edges, from the dense fit."""
        if not self.strength and value:  # adaptive lasso: Zou 2006, with γ = 1
            length = self.field.weights[0].detach().norm(dim=2)
            self.adaptive.copy_(length.mean() / length.clamp(min=1e-3 * float(length.mean())))
        super().set_strength(value)

    def after_step(self, step: Step) -> None:
        """Take the proximal step, which stands for the penalty: the objective has none."""
        if self.strength:
            rate = step.rate(self.field.weights[0]).mean(2)
            sparsity.shrink_groups(self.field, self.strength * rate * self.adaptive / len(rate))


@config
class GroupLasso(Penalised):
    """A neural ODE with one network for each gene and a group-lasso penalty on the inputs of each network.

    The penalty is Σ_ij a_ij ‖W¹_j[i, :]‖₂. W¹_j[i, :] are the first-layer weights from gene i in the
    network of gene j, and a are adaptive weights. Proximal steps set edges to exactly 0.

    References
    ----------
    Bellot, Branson and van der Schaar (2022), Neural graphical modelling in continuous-time, ICLR.
    """

    per_output: ClassVar[bool] = True

    strengths: tuple[float, ...] = param(
        (0.0005, 0.001, 0.002, 0.004, 0.008),
        "Penalty weights to try in rising order, each from the fit before; more are tried if the best is at "
        "an end.",
        low=0,
    )

    def build(self, spec: Spec) -> Groups:
        """Return the untrained tensors."""
        return Groups(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), per_output=True, activation=self.activation)
