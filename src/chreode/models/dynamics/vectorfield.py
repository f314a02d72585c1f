"""Velocities as functions of a state: one network of all outputs, or one network for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .gates import HardConcrete, Kept

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
}
#: How gates are taken: a method of theirs.
Gates: TypeAlias = Literal["sample", "estimated", "settled", "ones"]


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
    skip
        Add linear terms, which the gates of edges close too.
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
        skip: bool = False,
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
        self.skip = nn.Parameter(torch.zeros(n, widths[0])) if skip else None
        self.masks: list[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the gates of the last solve, which belong to its gradients: a copy fixes its own."""
        return {**self.__dict__, "masks": None}

    def settle(self, how: Gates = "settled") -> None:
        """Fix the gates for the calls that follow, by one of their methods."""
        self.masks = [getattr(gate, how)() for gate in self.gates]

    def effective(self) -> list[Float[Tensor, "k a b"]]:
        """Return the weights behind their gates."""
        masks = self.masks or [gate.settled() for gate in self.gates]
        gated = [w * m for w, m in zip(self.weights, masks, strict=False)]
        return [*gated, *list(self.weights)[len(gated) :]]

    def linear(self) -> Float[Tensor, "n i"] | None:
        """Return the linear terms behind the gates of edges, if there are any."""
        if self.skip is None or not self.gates:
            return self.skip
        masks = self.masks or [gate.settled() for gate in self.gates]
        return self.skip * masks[0][..., 0]

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s n"]:
        """Return the velocity of each state."""
        velocity: Float[Tensor, "s n"] = self.as_function()(x)
        return velocity

    def as_function(self) -> Callable[[Float[Tensor, "s i"]], Float[Tensor, "s n"]]:
        """Return the velocity under the gates as they stand: weights are laid out once for many calls."""
        weights, biases = self.effective(), list(self.biases)
        if not self.per_output:
            flat = [(w[0], b[0]) for w, b in zip(weights, biases, strict=True)]
            networks = partial(self._one_network, flat)
        else:  # what all networks read is one product of matrices
            first = weights[0].transpose(0, 1).flatten(1), biases[0].flatten()
            networks = partial(
                self._network_per_output, first, list(zip(weights[1:], biases[1:], strict=True))
            )
        linear = self.linear()
        return networks if linear is None else lambda x: torch.addmm(networks(x), x, linear.T)

    def _one_network(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        for layer, (w, b) in enumerate(layers):
            x = torch.addmm(b, x, w)
            if layer < self.linear_from:
                x = self.activation(x)
        return x

    def _network_per_output(
        self, first: tuple[Tensor, Tensor], layers: list[tuple[Tensor, Tensor]], x: Tensor
    ) -> Tensor:
        w, b = first
        h = torch.addmm(b, x, w).unflatten(1, (self.n, -1))  # s n h
        for layer, (w, b) in enumerate(layers):
            if layer < self.linear_from:
                h = self.activation(h)
            if w.shape[2] == 1:
                h = (h * w[..., 0]).sum(2, keepdim=True) + b[:, 0]
            else:
                h = torch.baddbmm(b, h.transpose(0, 1), w).transpose(0, 1)
        return h[..., 0]

    def paths(self, weights: Sequence[Tensor]) -> Float[Tensor, "i n"]:
        """Return, for each input and output, the product of such `weights` summed over all paths."""
        product = weights[0]
        for w in weights[1:]:
            product = product @ w
        return product[..., 0].T if self.per_output else product[0]

    def reach(self) -> Float[Tensor, "i n"]:
        """Return Σ |W¹| |W²| … over all paths from each input to each output, 0 where there is none."""
        paths = self.paths([w.abs() for w in self.effective()])
        linear = self.linear()
        return paths if linear is None else paths + linear.abs().T

    def opened(self) -> list[Float[Tensor, "k a b"]]:
        """Return the probability that each weight's gate is open; 1 where there is none."""
        found = [g.opened().expand_as(w) for g, w in zip(self.gates, self.weights, strict=False)]
        return [*found, *[torch.ones_like(w) for w in self.weights[len(found) :]]]


def mean_jacobian(f: Callable[[Tensor], Tensor], at: Float[Tensor, "q i"]) -> Float[Tensor, "i n"]:
    """Return the mean of ∂f_j/∂x_i, row i, over states."""
    of_one = torch.func.jacrev(lambda x: f(x[None])[0])
    parts = [torch.func.vmap(of_one)(part).detach().sum(0) for part in at.split(8)]
    return torch.stack(parts).sum(0).T / len(at)
