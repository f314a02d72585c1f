"""Encoders of images of 32 x 32 pixels: ResNet-18, a vision transformer and a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .augment import SIDE


class _Block(nn.Module):
    """Two convolutions, and what came in added to what comes out."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.two = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n_out) for _ in range(2))
        self.short = nn.Sequential()
        if stride > 1 or n_in != n_out:
            self.short = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o y x"]:
        inner = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.norms[1](self.two(inner)) + self.short(x))


class ResNet(nn.Module):
    """ResNet-18 whose first layer suits 32 x 32 pixels: 3 x 3 pixels, and no pooling after it.

    Parameters
    ----------
    width
        Channels of the first stage. The last has eight times as many, which are what comes out.
    stride
        Step of the first layer; at 2, all that follows takes a quarter of the time.

    References
    ----------
    He et al. (2016), Deep residual learning for image recognition, CVPR, table 1. Chen et al. (2020), A
    simple framework for contrastive learning of visual representations, ICML, appendix B.9 (first layer).
    """

    def __init__(self, width: int = 64, stride: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 3, stride, padding=1, bias=False)
        stem = [first, nn.BatchNorm2d(width), nn.ReLU()]
        blocks, n_in = [], width
        for stage in range(4):
            n_out = width * 2**stage
            blocks += [_Block(n_in, n_out, 2 if stage else 1), _Block(n_out, n_out, 1)]
            n_in = n_out
        self.layers = nn.Sequential(*stem, *blocks)

    def forward(self, x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b z"]:
        """Return the means of the last channels over the image."""
        return self.layers(x).mean((2, 3))


class ViT(nn.Module):
    """Vision transformer on patches of 4 x 4 pixels; what comes out is read from the mean of its tokens.

    Parameters
    ----------
    width
        Length of a token, a multiple of `heads`.
    depth
        Number of layers.
    heads
        Heads of attention.
    mlp
        Hidden units of the perceptron in each layer.
    n_out
        Length of what comes out.

    References
    ----------
    Dosovitskiy et al. (2021), An image is worth 16x16 words, ICLR, equations 1 to 3.
    """

    def __init__(
        self, width: int = 384, depth: int = 6, heads: int = 6, mlp: int = 1536, n_out: int = 512
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // 4) ** 2, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, mlp, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_out))

    def forward(self, x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b z"]:
        """Return a linear map of the mean token."""
        tokens = self.patches(x).flatten(2).mT + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        return self.out[1](self.out[0](tokens).mean(1))


class MLP(nn.Module):
    """A perceptron of three hidden layers on all pixels: linear, batch norm, GELU, dropout.

    Parameters
    ----------
    width
        Units of a hidden layer.
    n_out
        Length of what comes out.
    dropout
        Chance that a hidden unit is set to 0 in training.
    """

    def __init__(self, width: int = 2048, n_out: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in in (3 * SIDE**2, width, width):
            layers += [
                nn.Linear(n_in, width),
                nn.BatchNorm1d(width),
                nn.GELU(),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(width, n_out))

    def forward(self, x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b z"]:
        """Return a linear map of the last hidden layer."""
        return self.layers(x)


ENCODERS: Mapping[str, Callable[..., nn.Module]] = {"resnet": ResNet, "vit": ViT, "mlp": MLP}
#: Options of the encoders by size: the paper's are the defaults, and small ones learn on a processor core.
SIZES: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "paper": {name: {} for name in ENCODERS},
    "small": {
        "resnet": {"width": 8, "stride": 2},
        "vit": {"width": 32, "depth": 2, "heads": 2, "mlp": 64, "n_out": 64},
        "mlp": {"width": 256, "n_out": 64},
    },
}
