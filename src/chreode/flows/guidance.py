"""Conditions of a flow: left out at random in training, weighted in generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Velocity of points at a time (one number), given which attributes of each it is conditioned on.
Field = Callable[
    [Float[Tensor, "b z"], Float[Tensor, ""], Bool[Tensor, "b k"]], Float[Tensor, "b z"]
]


def drop_conditions(present: Bool[Tensor, "b k"], p: float) -> Bool[Tensor, "b k"]:
    """Return which attributes each cell keeps, drawn cell by cell (Ho & Salimans 2021).

    All are dropped in a share `p` of the cells; in the others every one by itself in a share `p`. A
    network so trained knows the velocity given no attribute, each of them, and any combination.
    """
    b, k = present.shape
    whole = torch.rand(b, 1, device=present.device) >= p
    each = torch.rand(b, k, device=present.device) >= p
    return present & whole & (each if k > 1 else True)


def drop_as_published(present: Bool[Tensor, "b k"], p: float) -> Bool[Tensor, "b k"]:
    """Return the same for all cells, drawn by minibatch (the released code of Palma et al. 2025).

    No attribute is kept in a share `p` of the minibatches, else one drawn at random.
    """
    kept = torch.zeros_like(present)
    if torch.rand(()) >= p:
        kept[:, torch.randint(present.shape[1], ())] = True
    return present & kept


def guided(
    field: Field,
    terms: Sequence[tuple[Bool[Tensor, " k"], float]],
) -> Callable[[Float[Tensor, "b z"], Float[Tensor, ""]], Float[Tensor, "b z"]]:
    """Return the velocity v∅ + Σ ω_i (v_i − v∅) as a function of point and time.

    One term with all attributes is classifier-free guidance (Ho & Salimans 2021); a term per
    attribute composes them, which is exact where attributes are independent given the point (Liu et
    al. 2022; CFGen, equation 9). All velocities come from one call of the network, and those of
    weight 0 are not computed: a single term of weight 1 costs no more than no guidance.

    Parameters
    ----------
    terms
        Which attributes a velocity v_i is conditioned on, and its weight ω_i; at least one.
    """
    weights = [weight for _, weight in terms]
    parts = [(mask, weight) for mask, weight in terms if weight]
    rest = 1.0 - sum(weights)
    if abs(rest) > 1e-12 or not parts:
        parts.append((torch.zeros_like(terms[0][0]), rest))
    masks = torch.stack([mask for mask, _ in parts])
    weight = torch.tensor([w for _, w in parts])

    def velocity(x: Float[Tensor, "b z"], t: Float[Tensor, ""]) -> Float[Tensor, "b z"]:
        b = len(x)
        v = field(x.repeat(len(parts), 1), t, masks.repeat_interleave(b, dim=0))
        return torch.einsum("p,pbz->bz", weight.to(v), v.view(len(parts), b, -1))

    return velocity
