"""NT-Xent: every view of a cell finds its other view among those of all cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group


def nt_xent(
    one: Float[Tensor, "b d"],
    two: Float[Tensor, "b d"],
    temperature: float = 0.5,
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return the normalised, temperature-scaled cross-entropy of two views, in nats.

    A view's positive is the other view of its cell. Its negatives are both views of all other cells of
    the whole minibatch: 2 (N − 1) of N cells. It is the mean over both views of the cells of this process.

    Parameters
    ----------
    one, two
        The views, cell by cell; they are scaled to length 1.
    temperature
        τ, above 0.
    group
        The processes that share the minibatch.

    References
    ----------
    Chen et al. (2020), A simple framework for contrastive learning of visual representations, ICML,
    equation 1.

    Examples
    --------
    Two cells whose views agree and are opposite: ln(1 + 2 exp(−2 / τ)).

    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> round(nt_xent(z, z, temperature=1.0).item(), 4)
    0.2395
    """
    z = F.normalize(torch.stack([one, two], 1), dim=2)
    every, at = group.gather(z)
    found = []
    for view in (0, 1):
        other, same = (z[:, view] @ every[:, v].T / temperature for v in (1 - view, view))
        same = same.scatter(1, at[:, None], -torch.inf)  # no cell is its own negative
        found.append(F.cross_entropy(torch.cat([other, same], 1), at))
    return (found[0] + found[1]) / 2
