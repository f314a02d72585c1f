"""LassoNet: a neural ODE whose networks can use an input only as far as its linear term allows."""

from __future__ import annotations

from typing import ClassVar

from ..config import config, param
from ..module import Step
from ..schema import Spec
from .dynamics import sparsity
from .dynamics.dynamics import Dynamics
from .dynamics.vectorfield import VectorField
from .neuralode import Penalised


class Skipped(Dynamics):
    """f(x) = skip · x + networks, whose first-layer weights from an input are at most `ratio` |skip|."""

    options: LassoNet

    def after_step(self, step: Step) -> None:
        """Take the proximal step, which stands for the penalty: the objective has none."""
        if self.strength:
            assert self.field.skip is not None
            shorter = self.strength * step.rate(self.field.skip) / self.field.n
            skip, first = sparsity.hierarchical(
                self.field.skip, self.field.weights[0], shorter, self.options.ratio
            )
            self.field.skip.data.copy_(skip)
            self.field.weights[0].data.copy_(first)


@config
class LassoNet(Penalised):
    """A neural ODE with one network for each gene and linear terms, which limit the genes that it can use.

    The penalty is Σ_ij |θ_ij| of the linear terms, under max |W¹_j[i, :]| ≤ M |θ_ij|, by hierarchical
    proximal steps. W¹_j[i, :] are the first-layer weights from gene i in the network of gene j. Training
    starts from a dense fit, and the strength of the penalty then rises.

    References
    ----------
    Lemhadri, Ruan, Abraham and Tibshirani (2021), LassoNet: A Neural Network with Feature Sparsity, JMLR.
    """

    per_output: ClassVar[bool] = True

    strengths: tuple[float, ...] = param(
        (0.03, 0.06, 0.12, 0.25, 0.5),
        "Penalty weights to try in rising order, each from the fit before; more are tried if the best is at "
        "an end.",
        low=0,
    )
    ratio: float = param(
        10.0,
        "M: largest first-layer weight of a network, as a multiple of the linear term of the same two genes.",
        low=0,
    )

    def build(self, spec: Spec) -> Skipped:
        """Return the untrained tensors."""
        return Skipped(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(
            n, self.widths(n), per_output=True, activation=self.activation, skip=True
        )
