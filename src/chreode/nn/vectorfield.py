"""Velocities as functions of a state: one network of all outputs, or one network for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .gates import HardConcrete, Kept

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
}


class VectorField(nn.Module):
    """A perceptron g → g, as one network (k = 1) or one for each output (k = g).

    Parameters
    ----------
    n
        Outputs: dimensions of the state.
    hidden
        Widths of the hidden layers, of each network.
    per_output
        One network for each output: an edge i → j is then the first layer's weights from input i in
        network j.
    inputs
        Inputs, if not as many.
    gates
        Where gates sit: on every weight, on every input of each network (an edge, with `per_output`),
        on the inputs of every layer (as published for PathReg), or nowhere. ``"kept"``: on every weight,
        but set from outside, not learned.
    closed
        Probability at the start that a gate is closed: of the first layer's, and of the others'.
    speed
        Of the gates (see `HardConcrete`).
    linear_from
        Layers after which no activation follows, from this one on (published: 1).
    """

    def __init__(
        self,
        n: int,
        hidden: Sequence[int],
        *,
        per_output: bool = False,
        inputs: int | None = None,
        activation: Literal["elu", "tanh", "silu"] = "silu",
        gates: Literal["weights", "edges", "inputs", "kept"] | None = None,
        closed: tuple[float, float] = (0.2, 0.5),
        speed: float = 10.0,
        linear_from: int | None = None,
    ) -> None:
        super().__init__()
        k, widths = n if per_output else 1, [inputs or n, *hidden, 1 if per_output else n]
        self.n, self.per_output = n, per_output
        self.activation = _ACTIVATIONS[activation]
        self.linear_from = len(hidden) if linear_from is None else linear_from
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gates: Any = nn.ModuleList()  # of `HardConcrete` or `Kept`
        for layer, (a, b) in enumerate(pairwise(widths)):
            self.weights.append(nn.Parameter(torch.empty(k, a, b)))
            self.biases.append(nn.Parameter(torch.zeros(k, 1, b)))
            # the last layer starts small: a field that is nearly still solves quickly
            nn.init.normal_(self.weights[-1], std=(0.1 if layer == len(hidden) else 1.0) / a**0.5)
            shape = {"weights": (k, a, b), "edges": (k, a, 1), "inputs": (k, a, 1)}.get(gates or "")
            if shape and (gates != "edges" or layer == 0):
                self.gates.append(HardConcrete(*shape, closed=closed[min(layer, 1)], speed=speed))
            if gates == "kept":
                self.gates.append(Kept(k, a, b))
        self.masks: list[Tensor] | None = None

    def settle(self, *, random: bool) -> None:
        """Fix the gates for the calls that follow: drawn, or without chance."""
        self.masks = [gate.sample() if random else gate.settled() for gate in self.gates]

    def effective(self) -> list[Float[Tensor, "k a b"]]:
        """Return the weights behind their gates."""
        masks = self.masks or [gate.settled() for gate in self.gates]
        gated = [w * m for w, m in zip(self.weights, masks, strict=False)]
        return [*gated, *list(self.weights)[len(gated) :]]

    def forward(
        self, x: Float[Tensor, "s i"], weights: list[Tensor] | None = None
    ) -> Float[Tensor, "s n"]:
        """Return the velocity of each state; `weights`: of `effective`, to make them once per solve."""
        weights = self.effective() if weights is None else weights
        if not self.per_output:
            for layer, (w, b) in enumerate(zip(weights, self.biases, strict=True)):
                x = torch.addmm(b[0], x, w[0])
                if layer < self.linear_from:
                    x = self.activation(x)
            return x
        h = (x @ weights[0].transpose(0, 1).flatten(1)).view(len(x), self.n, -1).transpose(0, 1)
        h = h + self.biases[0]
        for layer, (w, b) in enumerate(zip(weights[1:], list(self.biases)[1:], strict=True)):
            if layer < self.linear_from:
                h = self.activation(h)
            h = torch.baddbmm(b, h, w)
        return h[..., 0].T

    def paths(self, weights: Sequence[Tensor]) -> Float[Tensor, "i n"]:
        """Return, for each input and output, the product of such `weights` summed over all paths."""
        product = weights[0]
        for w in weights[1:]:
            product = product @ w
        return product[..., 0].T if self.per_output else product[0]

    def opened(self) -> list[Float[Tensor, "k a b"]]:
        """Return the probability that each weight's gate is open; 1 where there is none."""
        found = [g.opened().expand_as(w) for g, w in zip(self.gates, self.weights, strict=False)]
        return [*found, *[torch.ones_like(w) for w in self.weights[len(found) :]]]
