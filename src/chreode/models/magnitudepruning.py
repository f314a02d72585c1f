"""Magnitude pruning: a neural ODE without its smallest weights, trained again from earlier values."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import config, param
from ..schema import Spec
from .dynamics.dynamics import Dynamics
from .dynamics.gates import Kept
from .dynamics.vectorfield import VectorField
from .neuralode import Penalised


class Pruned(Dynamics):
    """The strength is the share of weights that are removed."""

    def __init__(self, options: MagnitudePruning, spec: Spec, field: VectorField) -> None:
        super().__init__(options, spec, field)
        self.early: list[Tensor] = []

    @torch.no_grad()
    def set_strength(self, value: float) -> None:
        """Remove the smallest weights of each layer, and reset the others to their values before pruning."""
        super().set_strength(value)
        parameters = [*self.field.weights, *self.field.biases]
        self.early = self.early or [p.to("cpu", copy=True) for p in parameters]
        for gate, w in zip(self.field.gates, self.field.weights, strict=True):
            assert isinstance(gate, Kept)
            size = w.abs() * gate.mask  # what was cut stays so
            cut = size.flatten().kthvalue(max(1, round(value * w.numel())))[0] if value else -1.0
            gate.mask.copy_(size > cut)
        for p, old in zip(parameters, self.early, strict=True):
            p.copy_(old)

    def next_strength(self, value: float, before: float) -> float | None:
        """Return the next share to remove; the shares that are kept then have even ratios."""
        found = 1 - (1 - value) ** 2 / (1 - before)
        return found if found >= 0 and found != value else None


@config
class MagnitudePruning(Penalised):
    """A neural ODE whose smallest weights are removed in rounds; the others are trained again.

    `strength` is the share of weights that are removed. In each round the weights that remain are first
    reset to their values before the first round (rewinding).

    References
    ----------
    Frankle, Dziugaite, Roy and Carbin (2020), Linear Mode Connectivity and the Lottery Ticket
    Hypothesis, ICML, algorithm 2.
    """

    strength: float | None = param(
        None,
        "Share of the weights to remove; None: chosen from `strengths` by the error on held-out "
        "trajectories.",
        low=0,
    )
    strengths: tuple[float, ...] = param(
        (0.0, 0.5, 0.75, 0.9, 0.97),
        "Shares of the weights to remove, to try in rising order; more are tried if the best is at an end.",
        low=0,
        high=0.999,
    )

    def build(self, spec: Spec) -> Pruned:
        """Return the untrained tensors."""
        return Pruned(self, spec, self.field(self.width(spec)))

    def field(self, n: int) -> VectorField:
        """Return the untrained velocity of `n` genes."""
        return VectorField(n, self.widths(n), activation=self.activation, gates="kept")
