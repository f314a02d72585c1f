"""What a contrastive loss strives for on the sphere: views of a cell meet, and all cells spread out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group


def alignment(
    one: Float[Tensor, "b d"], two: Float[Tensor, "b d"], power: float = 2.0
) -> Float[Tensor, ""]:
    """Return E‖f(x) − f(y)‖^α over positive pairs, scaled to length 1; mean over the rows given.

    Parameters
    ----------
    power
        α.

    References
    ----------
    Wang & Isola (2020), Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere, ICML, equation 3.

    Examples
    --------
    >>> import torch
    >>> round(alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item(), 4)
    2.0
    """
    apart = F.normalize(one, dim=1) - F.normalize(two, dim=1)
    return apart.norm(dim=1).pow(power).mean()


def uniformity(
    x: Float[Tensor, "b d"], scale: float = 2.0, group: Group = Group()
) -> Float[Tensor, ""]:
    """Return ln E exp(−t ‖f(x) − f(y)‖²) over pairs of different cells, scaled to length 1.

    It is a statistic of the whole minibatch: every process returns the same value. At its lowest, cells
    are spread evenly over the sphere: −4 + ln(sinh 4 / 4) ≈ −2.08 in three dimensions.

    Parameters
    ----------
    scale
        t.
    group
        The processes that share the minibatch.

    References
    ----------
    Wang & Isola (2020), as above, equation 4.

    Examples
    --------
    >>> import torch
    >>> uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).item()
    -8.0
    """
    every, _ = group.gather(F.normalize(x, dim=1))
    n = len(every)
    if n < 2:
        return every.sum() * 0  # a single cell has no pair
    squares = (2 - 2 * every @ every.T).clamp_min(0)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    pairs = (-scale * squares).masked_fill(itself, -torch.inf)
    return pairs.flatten().logsumexp(0) - math.log(n * (n - 1))
