"""How an epoch is summarised: means of objectives and terms, and what is wrong where one is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compute.processes import Group
from ..module import Loss


class EpochMean:
    """Means over the cells of an epoch, whichever process saw them.

    That of a term is over the minibatches that have it.
    """

    def __init__(self, prefix: str, group: Group) -> None:
        self.prefix, self.group = prefix, group
        self.sums: dict[str, Any] = {}
        self.cells: dict[str, int] = {}

    def add(self, loss: Loss, n: int) -> None:
        """Count the objectives and terms of a minibatch of `n` cells of this process."""
        named = {
            f"{p}_objective" if p != "model" else "objective": v for p, v in loss.objectives.items()
        }
        for name, value in {**named, **loss.terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach() * n
            self.cells[name] = self.cells.get(name, 0) + n

    def result(self) -> dict[str, float]:
        """Return the means, by name."""
        # a process may have seen no minibatch, or none with one of the terms
        names = self.group.union(self.sums)
        sums = self.group.add_numbers([float(self.sums.get(name, 0.0)) for name in names])
        cells = self.group.add_numbers([self.cells.get(name, 0) for name in names])
        return {
            f"{self.prefix}_{name}": total / n
            for name, total, n in zip(names, sums, cells, strict=True)
        }


def diagnosis(module: nn.Module, loss: Loss, where: str) -> str:
    """Describe what is not finite; `where` comes last, and names the cells."""
    terms = [k for k, v in {**loss.objectives, **loss.terms}.items() if not bool(torch.isfinite(v))]
    tensors = [
        name
        for name, p in module.named_parameters()
        if not bool(torch.isfinite(p).all())
        or (p.grad is not None and not bool(torch.isfinite(p.grad).all()))
    ]
    return (
        f"{', '.join(terms) or 'a gradient'} is not finite. "
        f"Tensors: {', '.join(tensors) or 'all parameters are still finite'}. {where}."
    )
