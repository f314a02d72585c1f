"""Encoders: a network that could be anything, and others that are made like the inverse of a mixing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError, listed
from .mixings import N_SLICES, N_TURNS, pitched, turned


class Network(nn.Module):
    """Low bias: layers of Linear, ReLU and batch normalisation, then a linear one.

    Parameters
    ----------
    hidden
        Widths of the layers; the paper's are 128, 256, 256, 256 and 128.
    sphere
        Whether outputs are scaled to length 1.
    """

    def __init__(
        self, n_data: int, n_latent: int, hidden: Sequence[int], *, sphere: bool = True
    ) -> None:
        super().__init__()
        widths = [n_data, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_latent))
        self.sphere = sphere

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Return what is recovered of the latents."""
        found = self.layers(x)
        return F.normalize(found, dim=1) if self.sphere else found


class LinearInverse(nn.Module):
    """High bias, for the identity and for linear mixings: a linear layer."""

    def __init__(self, n_data: int, n_latent: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n_data, n_latent, bias=False)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Return unit vectors."""
        return F.normalize(self.layer(x), dim=1)


class SpiralInverse(nn.Module):
    """High bias, for the spiral: a network of 64 and 32 units tells how far each row is to be turned back."""

    def __init__(self, n_data: int, n_latent: int) -> None:  # noqa: ARG002 (as all encoders)
        super().__init__()
        self.control = _small(n_data)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Return unit vectors."""
        return F.normalize(turned(x, -N_TURNS * math.pi * self.control(x)[:, 0]), dim=1)


class PatchesInverse(nn.Module):
    """High bias, for the patches: a network tells the slice, softly, and each is turned back, twice."""

    def __init__(self, n_data: int, n_latent: int) -> None:  # noqa: ARG002 (as all encoders)
        super().__init__()
        self.second, self.first = _SlicesInverse(n_data), _SlicesInverse(n_data)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
        """Return unit vectors."""
        back = self.second(x)
        for _ in range(3):  # three right angles more are none
            back = pitched(back)
        return F.normalize(self.first(back), dim=1)


class _SlicesInverse(nn.Module):
    def __init__(self, n_data: int) -> None:
        super().__init__()
        self.control = _small(n_data)
        self.log_sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
        place = self.control(x).tanh()
        middles = (2 * torch.arange(N_SLICES, device=x.device) + 1) / N_SLICES - 1
        share = (-self.log_sharpness.exp() * (place - middles) ** 2).softmax(1)
        back = [turned(x, x.new_full((len(x),), -i * math.pi / 2)) for i in range(N_SLICES)]
        return torch.einsum("bs,sbn->bn", share, torch.stack(back))


def _small(n_data: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_data, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )


#: Encoders made like the inverse of a mixing. The paper has none for the invertible MLP.
INVERSES: dict[str, Callable[[int, int], nn.Module]] = {
    "identity": LinearInverse, "linear": LinearInverse, "patches": PatchesInverse,
    "spiral": SpiralInverse,
}  # fmt: skip


def require_inverse(mixing: str) -> None:
    """Refuse a mixing for which there is no encoder made like its inverse.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if mixing not in INVERSES:
        raise ConfigError(
            f"encoder='inverse': there is none for mixing={mixing!r}, only for {listed(INVERSES)}. "
            "Use encoder='mlp'."
        )


def inverse_of(mixing: str, n_data: int, n_latent: int) -> nn.Module:
    """Return an encoder made like the inverse of a mixing.

    Raises
    ------
    ConfigError
        If there is none.
    """
    require_inverse(mixing)
    return INVERSES[mixing](n_data, n_latent)
