"""Where latents live, and how they are spread there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Space(Protocol):
    """A space of latents with its marginal distribution; draws come from torch's global generator."""

    @property
    def n(self) -> int:
        """Number of coordinates."""
        ...

    def draw(self, size: int) -> Float[Tensor, "b n"]:
        """Return latents from the marginal."""
        ...


@dataclass(frozen=True)
class Sphere:
    """The unit sphere of R^n with the uniform marginal.

    Examples
    --------
    >>> z = Sphere(3).draw(5)
    >>> bool(torch.allclose(z.norm(dim=1), torch.ones(5)))
    True
    """

    n: int

    def draw(self, size: int) -> Float[Tensor, "b n"]:
        """Return points on the sphere, all alike probable."""
        return F.normalize(torch.randn(size, self.n), dim=1)


@dataclass(frozen=True)
class Box:
    """The box [0, 1]^n with the uniform marginal."""

    n: int

    def draw(self, size: int) -> Float[Tensor, "b n"]:
        """Return points in the box, all alike probable."""
        return torch.rand(size, self.n)


@dataclass(frozen=True)
class Euclidean:
    """R^n with independent coordinates of density ∝ exp(−|z|^p).

    Attributes
    ----------
    power
        p: 1 is Laplace's distribution, 2 the normal one with variance ½.
    """

    n: int
    power: float = 2.0

    def draw(self, size: int) -> Float[Tensor, "b n"]:
        """Return points of R^n."""
        return generalised_normal(size, self.n, self.power)


def generalised_normal(
    size: int, n: int, power: float, device: torch.device | str = "cpu"
) -> Float[Tensor, "b n"]:
    """Return numbers of density ∝ exp(−|x|^p): a gamma variable to the power 1/p, with a random sign."""
    shape = torch.tensor(1 / power, device=device)
    length = torch.distributions.Gamma(shape, torch.ones_like(shape)).sample((size, n))
    return length.pow(1 / power) * (2.0 * torch.randint(2, (size, n), device=device) - 1)
