"""A queue of keys: what was encoded in the last minibatches, to compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Queue(nn.Module):
    """The last keys, first in, first out; random ones of length 1 until it has been filled.

    Attributes
    ----------
    keys
        Buffer, in no order.
    at
        Where the oldest key is.

    References
    ----------
    He et al. (2020), Momentum contrast for unsupervised visual representation learning, CVPR, section 3.2.
    """

    keys: Float[Tensor, "size d"]
    at: Int[Tensor, ""]

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b d"]) -> None:
        """Put keys in the places of the oldest ones; after a step, as the step's gradient needs these.

        Where several processes share a minibatch, these are the keys of all (`Group.gather`).
        """
        size = len(self.keys)
        last = keys[-size:]
        places = (self.at + torch.arange(len(last), device=self.at.device)) % size
        self.keys[places] = last.to(self.keys)
        self.at.copy_((self.at + len(last)) % size)
