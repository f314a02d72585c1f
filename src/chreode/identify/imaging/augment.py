"""Augmentations of images of 32 x 32 pixels, whole minibatches at once.

Images are (b, c, 32, 32) with values in [0, 1], and so is what comes back. A function changes images by
parameters that it is given, one set per image; a class of the same name draws them from torch's global
generator, which a fit seeds (`chreode.compute.rng`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Pixels of a side.
SIDE = 32
#: Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

Images: TypeAlias = Float[Tensor, "b c 32 32"]
#: Rectangles: first row, first column, height, width, in pixels.
Boxes: TypeAlias = Int[Tensor, "b 4"]
#: Returns new images, each changed in a random way of its own; those given stay as they are.
Augmentation: TypeAlias = Callable[[Images], Images]


def two_views(x: Images, augmentations: Sequence[Augmentation]) -> tuple[Images, Images]:
    """Return two views of every image, both augmented, each with random parameters of its own."""
    views = torch.cat([x, x])
    for augmentation in augmentations:
        views = augmentation(views)
    return views[: len(x)], views[len(x) :]


# what draws


@dataclass(frozen=True)
class Crop:
    """Cut out a random box and resize it to the whole image (random resized crop).

    The box has the share `area` of the image, and `ratio` of height to width, log-uniform among those at
    which it fits in. Sides are rounded to whole pixels.

    Attributes
    ----------
    area
        Lowest and highest share of the image.
    ratio
        Lowest and highest ratio of height to width.

    References
    ----------
    Szegedy et al. (2015), Going deeper with convolutions, CVPR, section 6 (areas and ratios of boxes).
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, x: Images) -> Images:
        """Return the resized boxes."""
        return crop(x, _boxes(len(x), self.area, self.ratio, x.device))


@dataclass(frozen=True)
class Erase:
    """Set a random box of each image to 0 (random erasing); boxes are drawn as those of `Crop`.

    Attributes
    ----------
    area
        Lowest and highest share of the image.
    ratio
        Lowest and highest ratio of height to width.

    References
    ----------
    Zhong et al. (2020), Random erasing data augmentation, AAAI, algorithm 1.
    """

    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, x: Images) -> Images:
        """Return the images with holes."""
        return erase(x, _boxes(len(x), self.area, self.ratio, x.device))


@dataclass(frozen=True)
class Jitter:
    """Change brightness, contrast, saturation and hue, in an order that is random for each image.

    Attributes
    ----------
    brightness, contrast, saturation
        Factors are uniform within so much of 1.
    hue
        Shifts are uniform within so much of 0, in turns of the colour circle.
    chance
        That an image is changed.

    References
    ----------
    Chen et al. (2020), A simple framework for contrastive learning of visual representations, ICML,
    appendix A (colour distortion).
    """

    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    chance: float = 0.8

    def __call__(self, x: Images) -> Images:
        """Return the images in other colours."""
        n, out = len(x), x.clone()
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        by = (2 * torch.rand(n, 4, device=x.device) - 1) * x.new_tensor(strengths)
        by[:, :3] += 1
        changed = _coins(self.chance, x)
        order = torch.rand(n, 4, device=x.device).argsort(1)
        for place in range(4):
            for k, change in enumerate((brighten, contrast, saturate, turn)):
                rows = (changed & (order[:, place] == k)).nonzero()[:, 0]
                out[rows] = change(out[rows], by[rows, k])
        return out


@dataclass(frozen=True)
class Flip:
    """Mirror images, left to right.

    Attributes
    ----------
    chance
        That an image is mirrored.
    """

    chance: float = 0.5

    def __call__(self, x: Images) -> Images:
        """Return the images, some of them mirrored."""
        return _where(_coins(self.chance, x), flip(x), x)


@dataclass(frozen=True)
class Grey:
    """Take the colours away.

    Attributes
    ----------
    chance
        That an image becomes grey.
    """

    chance: float = 0.2

    def __call__(self, x: Images) -> Images:
        """Return the images, some of them grey."""
        return _where(_coins(self.chance, x), grey(x), x)


@dataclass(frozen=True)
class Blur:
    """Blur with a Gaussian kernel of 3 x 3 pixels.

    Attributes
    ----------
    sigma
        Lowest and highest standard deviation, in pixels; uniform between them.
    """

    sigma: tuple[float, float] = (0.1, 2.0)

    def __call__(self, x: Images) -> Images:
        """Return the blurred images."""
        return blur(x, _between(self.sigma, len(x), x.device))


# what changes


def crop(x: Images, boxes: Boxes) -> Images:
    """Return each image's box, resized to the whole image by bilinear interpolation.

    Examples
    --------
    >>> x = torch.rand(1, 3, 32, 32)
    >>> torch.equal(crop(x, torch.tensor([[0, 0, 32, 32]])), x)
    True
    """
    top, left, height, width = boxes.T
    rows, columns = _resizing(top, height), _resizing(left, width)
    resized = torch.einsum("brh,bchw,bsw->bcrs", rows.to(x), x, columns.to(x))
    return resized.clamp(0, 1)


def erase(x: Images, boxes: Boxes) -> Images:
    """Return the images with 0 in the boxes."""
    top, left, height, width = boxes.T
    rows, columns = _within(top, height), _within(left, width)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def flip(x: Images) -> Images:
    """Return the images mirrored left to right."""
    return x.flip(3)


def grey(x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 3 32 32"]:
    """Return images of which all channels are the brightness, by the weights `LUMA`."""
    return _luma(x).expand_as(x)


def brighten(x: Float[Tensor, "b 3 32 32"], by: Float[Tensor, " b"]) -> Float[Tensor, "b 3 32 32"]:
    """Return the images times a factor each, cut at 1."""
    return _blend(x, torch.zeros_like(x), by)


def contrast(x: Float[Tensor, "b 3 32 32"], by: Float[Tensor, " b"]) -> Float[Tensor, "b 3 32 32"]:
    """Return images with other contrast: away from their mean brightness by a factor each."""
    return _blend(x, _luma(x).mean((2, 3), keepdim=True), by)


def saturate(x: Float[Tensor, "b 3 32 32"], by: Float[Tensor, " b"]) -> Float[Tensor, "b 3 32 32"]:
    """Return images with other saturation: away from their grey image by a factor each."""
    return _blend(x, _luma(x), by)


def turn(x: Float[Tensor, "b 3 32 32"], by: Float[Tensor, " b"]) -> Float[Tensor, "b 3 32 32"]:
    """Return images of other hue, turned on the colour circle by so many turns each.

    References
    ----------
    Smith (1978), Color gamut transform pairs, SIGGRAPH (the hexcone model: hue, saturation, value).
    """
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    red, green, blue = x.unbind(1)
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    sixth = torch.where(
        value == red, (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # fmt: skip
    sixth = sixth + 6 * by[:, None, None]
    channels = []
    for start in (5.0, 3.0, 1.0):  # where red, green and blue begin to fall, in sixths of a turn
        at = (sixth + start) % 6
        channels.append(value - chroma * torch.minimum(at, 4 - at).clamp(0, 1))
    return torch.stack(channels, 1).clamp(0, 1)


def blur(x: Images, sigma: Float[Tensor, " b"]) -> Images:
    """Return images convolved with a Gaussian of 3 x 3 pixels; beyond its edge an image is mirrored."""
    beside = torch.exp(-0.5 / sigma**2)[:, None, None, None]
    beside = beside / (1 + 2 * beside)
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    x = (1 - 2 * beside) * x[:, :, 1:-1] + beside * (x[:, :, :-2] + x[:, :, 2:])
    x = (1 - 2 * beside) * x[..., 1:-1] + beside * (x[..., :-2] + x[..., 2:])
    return x.clamp(0, 1)


# helpers


def _between(limits: tuple[float, float], n: int, device: torch.device) -> Float[Tensor, " n"]:
    low, high = limits
    return low + (high - low) * torch.rand(n, device=device)


def _coins(chance: float, x: Images) -> Bool[Tensor, " b"]:
    return torch.rand(len(x), device=x.device) < chance


def _where(chosen: Bool[Tensor, " b"], changed: Images, x: Images) -> Images:
    return torch.where(chosen[:, None, None, None], changed, x)


def _boxes(
    n: int, area: tuple[float, float], ratio: tuple[float, float], device: torch.device
) -> Boxes:
    """Draw boxes inside the image; see `Crop`."""
    share = _between(area, n, device)
    # a side would be longer than the image's at a ratio below the area, or above one over it
    low, high = share.clamp_min(ratio[0]).log(), (1 / share).clamp_max(ratio[1]).log()
    drawn = torch.exp(low + (high - low) * torch.rand(n, device=device))
    sides = SIDE * torch.stack([(share * drawn).sqrt(), (share / drawn).sqrt()], 1)
    sides = sides.round().long().clamp(1, SIDE)
    starts = torch.rand(n, 2, device=device) * (SIDE - sides + 1)
    return torch.cat([starts.long().minimum(SIDE - sides), sides], 1)


def _resizing(start: Int[Tensor, " b"], length: Int[Tensor, " b"]) -> Float[Tensor, "b 32 32"]:
    """Return, for every pixel of a resized side, the weights of the pixels that it was cut from."""
    pixel = torch.arange(SIDE, device=start.device)
    at = (pixel + 0.5) * (length[:, None] / SIDE) - 0.5  # the centres of pixels, in the box
    at = start[:, None] + at.clamp_min(0).minimum(length[:, None] - 1)
    return (1 - (at[:, :, None] - pixel).abs()).clamp_min(0)


def _within(start: Int[Tensor, " b"], length: Int[Tensor, " b"]) -> Bool[Tensor, "b 32"]:
    pixel = torch.arange(SIDE, device=start.device)
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def _luma(x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 1 32 32"]:
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _blend(x: Images, other: Tensor, by: Float[Tensor, " b"]) -> Images:
    return torch.lerp(other.expand_as(x), x, by[:, None, None, None]).clamp(0, 1)


JITTER, CROP, FLIP, GREY, BLUR, ERASE = Jitter(), Crop(), Flip(), Grey(), Blur(), Erase()
#: Augmentations of each regime, in order. "no flip" is for images that a mirror turns into something else.
REGIMES: dict[str, tuple[Augmentation, ...]] = {
    "all": (JITTER, CROP, FLIP, GREY, BLUR, ERASE),
    "crop": (CROP,),
    "no crop": (JITTER, FLIP, GREY, BLUR, ERASE),
    "no flip": (JITTER, CROP, GREY, BLUR, ERASE),
}
