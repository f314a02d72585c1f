"""Gates that are open or closed, and can be learned by gradients."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Hard concrete: stretched to (γ, ζ) at temperature β, then clipped to [0, 1].
GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
_EPS = 1e-6


class HardConcrete(nn.Module):
    """Random gates z in [0, 1], 0 and 1 with positive probability.

    ::

        u ~ U(0, 1),  s = σ((log u − log(1 − u) + log α) / β),  z = min(1, max(0, s (ζ − γ) + γ))
        P(z ≠ 0) = σ(log α − β log(−γ / ζ))

    log α is `speed` times a parameter: at the pace at which Adam moves weights a gate takes hundreds of
    steps to close, in which a penalty has long made the weights behind it small instead.

    References
    ----------
    Louizos, Welling and Kingma (2018), Learning Sparse Neural Networks through L0 Regularization,
    equations 10 to 13.
    """

    def __init__(self, *shape: int, closed: float = 0.5, speed: float = 10.0) -> None:
        super().__init__()
        start = math.log(1 - closed) - math.log(closed)
        self.speed = speed
        self.slow = nn.Parameter((start + 0.01 * torch.randn(shape)) / speed)

    @property
    def log_alpha(self) -> Float[Tensor, "*shape"]:
        """Log odds of a gate, before it is stretched."""
        return self.speed * self.slow

    def sample(self) -> Float[Tensor, "*shape"]:
        """Draw every gate."""
        u = torch.empty_like(self.slow).uniform_(_EPS, 1 - _EPS)
        s = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def opened(self) -> Float[Tensor, "*shape"]:
        """Return the probability that each gate is not 0."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA))

    def ones(self) -> Float[Tensor, "*shape"]:
        """Return every gate open."""
        return torch.ones_like(self.slow)

    def estimated(self) -> Float[Tensor, "*shape"]:
        """Return the gates without chance (equation 13), in which gradients see how to close them."""
        return (torch.sigmoid(self.log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def settled(self) -> Float[Tensor, "*shape"]:
        """Return the gates without chance, exactly 0 where 0 is the likelier."""
        return self.estimated() * (self.opened() > 0.5)


class Kept(nn.Module):
    """Gates that are set, not learned."""

    mask: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape))

    def sample(self) -> Float[Tensor, "*shape"]:
        """Return the gates."""
        return self.mask

    opened = estimated = settled = ones = sample
