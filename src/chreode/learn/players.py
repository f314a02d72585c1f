"""The optimisers of a fit: each player follows the gradient of its own objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..compute.processes import Group
from ..module import Module, Player, Step


class Players:
    """Adam for every player of a module.

    Parameters
    ----------
    module
        Whose players.
    options
        The learner (`SGD`): its lr, eps, clip, and whether weight decay is decoupled.
    weight_decay
        L2 penalty.
    group
        The processes that share every minibatch.
    """

    def __init__(self, module: Module, options: Any, weight_decay: float, group: Group) -> None:
        self.options, self.group = options, group
        named = {
            name: player if isinstance(player, Player) else Player(player)
            for name, player in module.players().items()
        }
        learning = {
            n: [p for p in player.parameters if p.requires_grad] for n, player in named.items()
        }
        # in query mapping some have nothing to learn
        self.parameters = {name: found for name, found in learning.items() if found}
        self.players = {name: named[name] for name in self.parameters}
        self.moved: list[str] = []
        kind = torch.optim.AdamW if options.decoupled else torch.optim.Adam
        self.optimisers = {
            name: kind(
                parameters, lr=options.lr, eps=options.eps, weight_decay=weight_decay, fused=True
            )
            for name, parameters in self.parameters.items()
        }

    def set_rate(self, factor: float) -> float:
        """Set the learning rates to a share of what they were at the start, and return the learner's."""
        lr = self.options.lr * factor
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = lr * self.players[name].lr
        return lr

    def gradients(self, objectives: Mapping[str, Tensor], step: Step, share: float) -> Tensor:
        """Give every player whose turn it is the gradient of its objective; return all objectives.

        Objectives are means over the cells of this process, which are a `share` of the minibatch. What is
        returned is their sum over the processes, as the gradients are.
        """
        moving = self._moving(step)
        for i, name in enumerate(moving):
            objective, parameters = objectives[name], self.parameters[name]
            found = torch.autograd.grad(
                objective, parameters, None if share == 1 else objective.new_tensor(share),
                retain_graph=i < len(moving) - 1, allow_unused=True,
            )  # fmt: skip
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = _laid_out_like(parameter, gradient)
        values = torch.stack([value.detach() for value in objectives.values()])
        self._share([p for name in moving for p in self.parameters[name]], values)
        return values

    def move(self, step: Step) -> None:
        """Let every player whose turn it is take a step."""
        self.moved = self._moving(step)
        for name in self.moved:
            if self.options.clip is not None:
                nn.utils.clip_grad_norm_(self.parameters[name], self.options.clip)
            self.optimisers[name].step()

    def rate(self, parameter: nn.Parameter) -> Tensor:
        """Return what Adam multiplied the mean gradient of each entry by; 0 where no player moved it."""
        for name in self.moved:
            optimiser = self.optimisers[name]
            if parameter in optimiser.state:
                group, state = optimiser.param_groups[0], optimiser.state[parameter]
                second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                rate: Tensor = group["lr"] / (second.sqrt() + group["eps"])
                return rate
        return torch.zeros_like(parameter)

    def state(self) -> dict[str, Tensor]:
        """Return the state of every optimiser, by player, parameter and name."""
        return {
            f"{name}/{i}/{what}": value
            for name, optimiser in self.optimisers.items()
            for i, state in optimiser.state_dict()["state"].items()
            for what, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""
        found: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self.optimisers}
        for key, value in tensors.items():
            name, i, what = key.split("/")
            found[name].setdefault(int(i), {})[what] = value
        for name, optimiser in self.optimisers.items():
            state: Any = {**optimiser.state_dict(), "state": found[name]}
            optimiser.load_state_dict(state)

    def _moving(self, step: Step) -> list[str]:
        return [n for n, player in self.players.items() if player.moves(step.index, step.progress)]

    def _share(self, parameters: list[nn.Parameter], objectives: Tensor) -> None:
        """Add up gradients and objectives over the processes.

        What no cell of this process has to do with may be moved by those of another: all send a gradient
        of every parameter, and whether it is one.
        """
        if self.group.alone:
            return
        found = objectives.new_tensor([p.grad is not None for p in parameters])
        sent = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.group.add([*sent, found, objectives])
        for parameter, gradient, anywhere in zip(parameters, sent, found.tolist(), strict=True):
            parameter.grad = gradient if anywhere else None


def _laid_out_like(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return the gradient in its parameter's memory layout: fused Adam takes that for granted."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
