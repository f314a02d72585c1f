"""How latents become data: functions that are fixed, injective, and unknown to the encoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError, near

#: Turns of the spiral from one pole to the other, slices of the patches, highest power of the monomials.
N_TURNS, N_SLICES, N_POWERS = 2, 4, 7
#: Data dimensions per latent of the linear mixing: S² into R⁷, S⁹ into R⁷⁰.
_WIDER = {3: 7, 10: 70}
#: Square matrices of which the best conditioned one is taken.
_DRAWN = 200


class Identity(nn.Module):
    """x = z."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = n

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the data of latents."""
        return z


class Linear(nn.Module):
    """x = A z into more dimensions, with a random A of full rank."""

    matrix: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = _WIDER.get(n, 2 * n)
        self.register_buffer("matrix", torch.randn(self.n_data, n) / math.sqrt(n))

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Return the data of latents."""
        return z @ self.matrix.T


class InvertibleMLP(nn.Module):
    """Three square layers with leaky ReLU between them, each as well conditioned as drawn matrices are."""

    matrices: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = n
        self.register_buffer("matrices", torch.stack([_well_conditioned(n) for _ in range(3)]))

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the data of latents."""
        x = z @ self.matrices[0].T
        for matrix in self.matrices[1:]:
            x = F.leaky_relu(x, 0.2) @ matrix.T
        return x


def _well_conditioned(n: int) -> Float[Tensor, "n n"]:
    drawn = F.normalize(torch.randn(_DRAWN, n, n), dim=1)
    return drawn[torch.linalg.cond(drawn).argmin()]


class Spiral(nn.Module):
    """The first two coordinates are turned by an angle that rises with the third one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = n

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the data of latents."""
        return turned(z, N_TURNS * math.pi * z[:, 2])


class Patches(nn.Module):
    """The first two coordinates are turned by a right angle more in each slice of the third one, twice.

    In between, the sphere is pitched by a right angle, so that the second slices cut across the first.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = n

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the data of latents."""
        return _sliced(pitched(_sliced(z)))


def _sliced(z: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
    slices = ((z[:, 2] + 1) * N_SLICES / 2).floor().clamp(0, N_SLICES - 1)
    return turned(z, slices * math.pi / 2)


def pitched(z: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
    """Turn the third coordinate into the first, and the first into minus the third."""
    return torch.stack([z[:, 2], z[:, 1], -z[:, 0]], 1)


class Monomials(nn.Module):
    """Each coordinate and its powers up to the seventh."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n_data = N_POWERS * n

    def forward(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Return the data of latents."""
        return torch.cat([z**power for power in range(1, N_POWERS + 1)], 1)


def turned(z: Float[Tensor, "b n"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b n"]:
    """Turn the first two coordinates of each row by an angle of its own, in radians."""
    cos, sin = angle.cos(), angle.sin()
    x, y = z[:, 0] * cos - z[:, 1] * sin, z[:, 0] * sin + z[:, 1] * cos
    return torch.cat([torch.stack([x, y], 1), z[:, 2:]], 1)


MIXINGS: dict[str, Callable[[int], nn.Module]] = {
    "identity": Identity, "linear": Linear, "mlp": InvertibleMLP, "patches": Patches,
    "spiral": Spiral, "monomials": Monomials,
}  # fmt: skip
#: Those whose turns are about the third of three coordinates.
_IN_THREE = ("patches", "spiral")


def require_mixing(name: str, n: int) -> None:
    """Refuse a mixing that there is not.

    Raises
    ------
    ConfigError
        If there is none of this name, or it is not defined for `n` coordinates.
    """
    if name not in MIXINGS:
        raise ConfigError(f"There is no mixing {name!r}.{near(name, MIXINGS)}")
    if name in _IN_THREE and n != 3:
        raise ConfigError(f"mixing={name!r} is defined for n_latent=3; got n_latent={n}.")


def mixing_of(name: str, n: int) -> nn.Module:
    """Return a mixing of latents with `n` coordinates; random ones draw from torch's global generator.

    Raises
    ------
    ConfigError
        As `require_mixing`.
    """
    require_mixing(name, n)
    return MIXINGS[name](n).requires_grad_(requires_grad=False)
