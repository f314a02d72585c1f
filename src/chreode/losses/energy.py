"""A distance between clouds of cells that gradients can follow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def energy_distance(x: Float[Tensor, "*b m g"], y: Float[Tensor, "*b k g"]) -> Float[Tensor, "*b"]:
    """Return 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖, 0 where both are the same cloud.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics, Journal of Statistical Planning and Inference 143:1249.
    """
    within = sum(torch.cdist(c, c).mean((-2, -1)) for c in (x, y))
    return 2 * torch.cdist(x, y).mean((-2, -1)) - within
