"""SimCLR on images, without a projection head: the loss sees the embedding that is used afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...compute.rng import Rng
from ...errors import FitError
from ...losses.ntxent import nt_xent
from .augment import Augmentation, Images, two_views

#: Images that are embedded in one go.
_CHUNK = 1024


@dataclass(frozen=True)
class Training:
    """How an encoder learns; the defaults of the last three are those of the paper, or of its code.

    Attributes
    ----------
    epochs
        How often every image is seen.
    batch_size
        Images of a minibatch, at the least; fewer images than that are one minibatch.
    lr
        Learning rate of Adam.
    weight_decay
        L2 penalty of Adam.
    temperature
        τ of NT-Xent.
    """

    epochs: int
    batch_size: int
    lr: float = 3e-4
    weight_decay: float = 1e-4
    temperature: float = 0.5


def train(
    encoder: nn.Module,
    x: Images,
    augmentations: Sequence[Augmentation],
    how: Training,
    seed: int,
) -> list[float]:
    """Train an encoder, in place, to find the other view of each image; return the loss of every epoch.

    Raises
    ------
    FitError
        If the loss leaves the finite numbers.
    """
    adam = torch.optim.Adam(encoder.parameters(), how.lr, weight_decay=how.weight_decay)
    n_batches, losses = max(1, len(x) // how.batch_size), []
    encoder.train()
    with Rng(seed).scope("simclr"):
        for epoch in range(how.epochs):
            total = 0.0
            for rows in torch.randperm(len(x)).tensor_split(n_batches):
                one, two = two_views(x[rows.to(x.device)], augmentations)
                both = encoder(torch.cat([one, two]))
                loss = nt_xent(both[: len(one)], both[len(one) :], how.temperature)
                adam.zero_grad()
                loss.backward()
                adam.step()
                total += loss.item() * len(rows) / len(x)
            if not math.isfinite(total):
                raise FitError(
                    f"The loss is {total} in epoch {epoch + 1}: lower the learning rate (lr)."
                )
            losses.append(total)
    return losses


@torch.no_grad()
def embed(encoder: nn.Module, x: Images) -> Float[Tensor, "b z"]:
    """Return the embedding of images as they are, without augmentation or dropout."""
    encoder.eval()
    return torch.cat([encoder(some) for some in x.split(_CHUNK)])
