"""A queue of keys: what was encoded in the last minibatches, to compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError, counted

#: Keys that a queue has room for if no number is named.
ROOM = 2048


class Queue(nn.Module):
    """The last keys, first in, first out; random ones of length 1 until it has been filled.

    Parameters
    ----------
    used
        Number of places that are used (None: all).

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

    def __init__(self, size: int, width: int, used: int | None = None) -> None:
        super().__init__()
        self.used = used or size
        self.register_buffer("keys", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @classmethod
    def among(cls, n_cells: int, width: int, size: int | None = None) -> Queue:
        """Return a queue for so many cells: of `size`, or (None) of 2,048 and at most half of the cells.

        A key then stays for less than an epoch, so that few cells meet an older key of their own. There is
        room for 2,048 in any case: a fit may go on with more cells.

        Raises
        ------
        ConfigError
            If there are fewer cells than `size`.

        Examples
        --------
        >>> [len(Queue.among(n, 8).held) for n in (100_000, 300)], len(Queue.among(300, 8, 64).held)
        ([2048, 150], 64)
        """
        if size is None:
            return cls(ROOM, width, used=max(1, min(ROOM, n_cells // 2)))
        if size > n_cells:
            raise ConfigError(
                f"queue={size}: {counted(n_cells, 'cell')} cannot fill a queue of {counted(size, 'key')} "
                "with one key each. Name fewer, or None for at most half as many as there are cells."
            )
        return cls(size, width)

    @property
    def held(self) -> Float[Tensor, "used d"]:
        """The keys to compare with."""
        return self.keys[: self.used]

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b d"]) -> None:
        """Put keys in the places of the oldest ones; after a step, as the step's gradient needs these.

        Where several processes share a minibatch, these are the keys of all (`Group.gather`).
        """
        last = keys[-self.used :]
        places = (self.at + torch.arange(len(last), device=self.at.device)) % self.used
        self.keys[places] = last.to(self.keys)
        self.at.copy_((self.at + len(last)) % self.used)
