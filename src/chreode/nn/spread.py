"""Whether an embedding uses its dimensions, or all cells have one place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def spread(h: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return how far directions of cells spread: 0 where all are one, 1 where they are even over a sphere.

    √d times the mean standard deviation, over cells, of each entry of vectors scaled to length 1.

    References
    ----------
    Chen & He (2021), Exploring simple siamese representation learning, CVPR, section 4.1.

    Examples
    --------
    >>> spread(torch.tensor([[1.0, 1.0], [2.0, 2.0]])).item(), spread(torch.eye(2)).item() > 0.7
    (0.0, True)
    """
    scaled = F.normalize(h.detach(), dim=1)
    return scaled.std(0, correction=0).mean() * h.shape[1] ** 0.5


def effective_rank(h: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return how many dimensions cells use: from 1, all on a line, to d, as much in each direction.

    exp(−Σ_k p_k ln p_k), with the singular values of the centred table as shares p of their sum. It is 0
    where all cells are alike.

    References
    ----------
    Roy & Vetterli (2007), The effective rank, EUSIPCO, definition 1; Garrido et al. (2023), RankMe, ICML.

    Examples
    --------
    >>> round(effective_rank(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])).item(), 4)
    2.0
    """
    h = h.detach().double()
    if not bool(h.isfinite().all()):  # the learner says what is wrong with it
        return h.new_full((), torch.nan, dtype=torch.float32)
    centred = h - h.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    total = values.sum()
    shares = values / total.clamp_min(torch.finfo(torch.float64).tiny)
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return torch.where(total > 0, rank, torch.zeros_like(rank)).to(torch.float32)


def collapsed(spread: float, rank: float, largest: int) -> bool:
    """Return whether so little is left of an embedding that its distances say nothing.

    Few dimensions alone are no collapse: cells may differ in few ways. Less than two are a line.

    Parameters
    ----------
    largest
        Rank that it could have: its width, or one less than there are cells.

    Examples
    --------
    >>> collapsed(0.01, 30.0, 64), collapsed(0.9, 1.5, 64), collapsed(0.9, 1.5, 5), collapsed(0.9, 6.0, 64)
    (True, True, False, False)
    """
    return spread < 0.2 or rank < min(2, 1 + 0.1 * (largest - 1))
