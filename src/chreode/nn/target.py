"""Target networks: copies that follow a network slowly."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn


def rising(momentum: float, progress: float) -> float:
    """Return the momentum at a share of the run: it rises from its start to 1, as a cosine.

    References
    ----------
    Grill et al. (2020), Bootstrap your own latent, NeurIPS, section 3.2 (τ).

    Examples
    --------
    >>> [rising(0.9, progress) for progress in (0.0, 0.5, 1.0)]
    [0.9, 0.95, 1.0]
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2


class Target(nn.Module):
    """A copy of a network that takes no gradient and follows it by momentum.

    Parameters
    ----------
    online
        The network, as it is to begin with.
    statistics
        What batch norms of the copy normalise by while it learns. ``"own"``: its minibatch, and it keeps
        running statistics of its own, as published for BYOL and MoCo. ``"followed"``: the running
        statistics of the network, which are followed as weights are, from the first step's on.

    References
    ----------
    Grill et al. (2020), Bootstrap your own latent, NeurIPS, section 3.1; He et al. (2020), Momentum
    contrast for unsupervised visual representation learning, CVPR, equation 2.
    """

    begun: Tensor

    def __init__(self, online: nn.Module, statistics: Literal["own", "followed"] = "own") -> None:
        super().__init__()
        self.network = copy.deepcopy(online).requires_grad_(False)
        self.own = statistics == "own"
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def train(self, mode: bool = True) -> Target:  # noqa: FBT001, FBT002 (torch's)
        """Let it learn statistics of its own, if it does."""
        return super().train(mode and self.own)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Return what the copy makes of its arguments."""
        return self.network(*args)

    @torch.no_grad()
    def follow(self, online: nn.Module, momentum: float) -> None:
        """Set every weight to ``momentum * weight + (1 - momentum) * online``, after a step."""
        share, first = 1 - momentum, not bool(self.begun)
        for slow, fast in zip(self.network.modules(), online.modules(), strict=True):
            weights = slow.parameters(recurse=False), fast.parameters(recurse=False)
            for weight, new in zip(*weights, strict=True):
                weight.lerp_(new, share)
            if self.own and isinstance(slow, nn.BatchNorm1d):
                continue
            buffers = slow.buffers(recurse=False), fast.buffers(recurse=False)
            for kept, current in zip(*buffers, strict=True):
                if first or not kept.is_floating_point():
                    kept.copy_(current)
                else:
                    kept.lerp_(current, share)
        self.begun.fill_(True)
