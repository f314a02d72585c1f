"""Probability paths from noise (t = 0) to data (t = 1), and the velocities that a network learns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def straight(
    noise: Float[Tensor, "b z"],
    data: Float[Tensor, "b z"],
    t: Float[Tensor, " b"],
    sigma: float = 0.0,
) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
    """Return the point at time `t` on the line between two points, and its velocity there.

    x_t = t x₁ + (1 − (1 − σ) t) x₀, hence velocity x₁ − (1 − σ) x₀.

    Parameters
    ----------
    noise, data
        The ends x₀ and x₁.
    t
        Time of each point, 0 to 1.
    sigma
        Width that is left of the noise at t = 1. 0: the linear path, which ends in the data
        (Liu et al. 2022); above: the conditional path of Lipman et al. (2023), equations 20 to 23.

    Examples
    --------
    >>> x, v = straight(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.25]))
    >>> float(x), float(v)
    (0.25, 1.0)
    """
    t, kept = t[:, None], 1.0 - sigma
    return t * data + (1.0 - kept * t) * noise, data - kept * noise


def stratified_times(n: int, device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """Return `n` times in random order, one drawn from each of n equal parts of [0, 1).

    Each is uniform; together they vary less than independent ones, and so does the loss.
    """
    times = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    return times[torch.randperm(n, device=device)].clamp_(max=1.0)
