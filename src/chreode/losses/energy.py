"""A distance between clouds of cells that gradients can follow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def energy_distance(
    x: Float[Tensor, "*b m g"],
    y: Float[Tensor, "*b k g"],
    of_x: Float[Tensor, "*b m"] | None = None,
    of_y: Float[Tensor, "*b k"] | None = None,
) -> Float[Tensor, "*b"]:
    """Return 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖, estimated without bias: 0 on average of one cloud.

    Pairs within a cloud are of two different cells. With each cell beside itself, whose distance is 0,
    clouds of few cells would come closest where they are too narrow. A cloud of one cell has no such pair,
    and that term is 0.

    Parameters
    ----------
    of_x, of_y
        1 for cells that are there, 0 for what only fills up the tensor (default: all are).

    References
    ----------
    Székely and Rizzo (2013), Energy statistics, Journal of Statistical Planning and Inference 143:1249.
    Gretton et al. (2012), A Kernel Two-Sample Test, JMLR 13:723, lemma 6 (the same estimator).
    """
    of_x = x.new_ones(x.shape[:-1]) if of_x is None else of_x
    of_y = y.new_ones(y.shape[:-1]) if of_y is None else of_y

    # far from the origin, matrix products would lose the digits in which cells differ
    centre = torch.einsum("...kg,...k->...g", y, of_y / of_y.sum(-1, keepdim=True).clamp(min=1))
    centre = centre.detach()[..., None, :]
    x, y = x - centre, y - centre

    def within(z: Tensor, mask: Tensor) -> Tensor:
        n = mask.sum(-1)
        itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
        distance = torch.cdist(z, z).masked_fill(itself, 0)
        return _sum(distance, mask, mask) / (n * (n - 1)).clamp(min=1)

    across = _sum(torch.cdist(x, y), of_x, of_y) / (of_x.sum(-1) * of_y.sum(-1)).clamp(min=1)
    return 2 * across - within(x, of_x) - within(y, of_y)


def _sum(distance: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    return torch.einsum("...mk,...m,...k->...", distance, of_x, of_y)
