"""NNCLR: the nearest of earlier cells stands in for a view."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group
from .infonce import among_keys


def nearest(x: Float[Tensor, "b d"], bank: Float[Tensor, "m d"]) -> Float[Tensor, "b d"]:
    """Return the row of the bank that makes the smallest angle with each row of `x`, without gradient.

    Examples
    --------
    >>> import torch
    >>> nearest(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([[1., 0.]])
    """
    closeness = F.normalize(x.detach(), dim=1) @ F.normalize(bank, dim=1).T
    return bank[closeness.argmax(1)].detach()


def nnclr(
    one: Float[Tensor, "b d"],
    two: Float[Tensor, "b d"],
    predicted_one: Float[Tensor, "b d"],
    predicted_two: Float[Tensor, "b d"],
    bank: Float[Tensor, "m d"],
    temperature: float = 0.5,
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return how badly the nearest neighbour of one view finds what is predicted of the other, in nats.

    −log[ exp(NN(z_i)·p_i⁺/τ) / Σ_k exp(NN(z_i)·p_k⁺/τ) ], mean over both views of the cells of this
    process. Predictions are those of the whole minibatch. No gradient flows to the neighbours.

    Parameters
    ----------
    one, two
        Projections z of the views.
    predicted_one, predicted_two
        What the predictor makes of them.
    bank
        Earlier projections, among which neighbours are sought.

    References
    ----------
    Dwibedi et al. (2021), With a little help from my friends: nearest-neighbor contrastive learning of
    visual representations, ICCV, equations 2 to 4.
    """
    forth = among_keys(nearest(one, bank), predicted_two, temperature, group)
    back = among_keys(nearest(two, bank), predicted_one, temperature, group)
    return (forth + back) / 2
