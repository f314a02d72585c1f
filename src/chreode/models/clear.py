"""CLEAR: MoCo on cells, with four augmentations of expression."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from .moco import MoCo
from .selfsupervised.options import scssl


@config
class CLEAR(MoCo):
    """CLEAR: an augmented cell finds its other augmentation among keys of earlier cells.

    It is `MoCo` with augmentations of expression (genes are masked, get noise, swap values, or take those
    of another cell), and with constants of its own.

    References
    ----------
    Han et al. (2022), Self-supervised contrastive learning for integrative single cell RNA-seq data
    analysis, Briefings in Bioinformatics 23:bbac377; the loss is that of He et al. (2020), Momentum
    contrast for unsupervised visual representation learning, CVPR, equation 1.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl()

    augment: tuple[str, ...] = param(
        ("mask", "noise", "swap", "crossover"),
        "Augmentations, which act in this order: thin (counts), mnn or bbknn, programmes, mask, swap, "
        "crossover, noise.",
    )
    noise_scale: float = param(0.5, "noise: standard deviation, in units of log-expression.", low=0)
    batch_size: int = param(512, "Number of cells per minibatch.", low=3)
    temperature: float = param(0.2, "Temperature τ of the loss.", low=1e-3)
    momentum: float = param(
        0.999, "Momentum of the slow copy at the start; it rises to 1 as a cosine.", low=0, high=1
    )
