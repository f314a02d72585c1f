"""InfoNCE: a query finds its key among others, on the sphere or in space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group


def info_nce(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    negatives: Float[Tensor, "m d"] | Float[Tensor, "b m d"],
    temperature: float = 0.5,
) -> Float[Tensor, ""]:
    """Return how badly each query tells its own key from negatives, in nats: mean over queries.

    −log[ exp(q·k/τ) / (exp(q·k/τ) + Σ_i exp(q·n_i/τ)) ], with all vectors scaled to length 1. It is a
    mean over the rows of this process; negatives are given, so that no other process is asked.

    Parameters
    ----------
    negatives
        The same for all queries, such as those of a queue, or others for each.
    temperature
        τ, above 0.

    References
    ----------
    van den Oord et al. (2018), Representation learning with contrastive predictive coding,
    arXiv:1807.03748, equation 4; He et al. (2020), Momentum contrast for unsupervised visual
    representation learning, CVPR, equation 1.

    Examples
    --------
    >>> import torch
    >>> query, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> round(info_nce(query, query, other, temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    q, k, n = (F.normalize(x, dim=-1) for x in (query, key, negatives))
    others = q @ n.T if n.ndim == 2 else torch.einsum("bd,bmd->bm", q, n)
    return _told_apart((q * k).sum(1) / temperature, others / temperature)


def info_nce_lp(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    negatives: Float[Tensor, "m d"] | Float[Tensor, "b m d"],
    power: float = 2.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the same where −‖q − k‖_p^p / τ stands for q·k/τ, as in boxes and in all of R^n.

    No vector is scaled. With this loss and p other than 2, a box is recovered up to the order, sign and
    scale of its axes.

    Parameters
    ----------
    power
        p, at least 1.

    References
    ----------
    Zimmermann et al. (2021), Contrastive learning inverts the data generating process, ICML, section 3.2.

    Examples
    --------
    >>> import torch
    >>> query, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> round(info_nce_lp(query, query, other, power=1.0).item(), 4)  # ln(1 + 1/e²)
    0.1269
    """
    exact = "donot_use_mm_for_euclid_dist"  # products lose the digits of points that are near each other
    if negatives.ndim == 2:
        apart = torch.cdist(query, negatives, power, exact)
    else:
        apart = torch.cdist(query[:, None], negatives, power, exact)[:, 0]
    near = (query - key).abs().pow(power).sum(1)
    return _told_apart(-near / temperature, -apart.pow(power) / temperature)


def an_info_nce(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    negatives: Float[Tensor, "m d"] | Float[Tensor, "b m d"],
    precision: Float[Tensor, " d"],
) -> Float[Tensor, ""]:
    """Return the same where −½ (q − k)ᵀ Λ (q − k) stands for q·k/τ: AnInfoNCE. No vector is scaled.

    Parameters
    ----------
    precision
        The diagonal of Λ, above 0. It is learned beside the encoder: a dimension in which positives stay
        near their anchors gets a large one.

    References
    ----------
    Rusak et al. (2025), InfoNCE: identifying the gap between theory and practice, AISTATS.

    Examples
    --------
    >>> import torch
    >>> query, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(an_info_nce(query, query, other, torch.tensor([2.0, 9.0])).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    scale = (precision / 2).sqrt()
    return info_nce_lp(query * scale, key * scale, negatives * scale)


def support_corrected(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    support: Float[Tensor, "b s d"],
    others: Float[Tensor, "b m d"],
    temperature: float = 0.5,
) -> Float[Tensor, ""]:
    """Return `info_nce` with negatives of two kinds, for positives that do not reach all cells.

    If the positives of an anchor keep some coordinates, negatives from everywhere are told apart by these
    alone. Negatives from the anchor's own support share them, and leave nothing to gain there.

    Parameters
    ----------
    support
        Negatives that each anchor's positive might have been, drawn evenly: for cells, more augmentations
        of the same cell.
    others
        Negatives from everywhere. The constraint ratio is ρ = s / (s + m): 0 is InfoNCE, 1 is the loss
        that an orthogonal map minimises.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, equations 7 and 8, algorithm 14.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0]])
    >>> away, none = torch.tensor([[[0.0, 1.0]]]), torch.zeros(1, 0, 2)
    >>> round(support_corrected(x, x, away, none, temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    return info_nce(query, key, torch.cat([support, others], 1), temperature)


def _told_apart(positive: Float[Tensor, " b"], others: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the positive's logit among all, in nats: mean over queries."""
    return (torch.cat([positive[:, None], others], 1).logsumexp(1) - positive).mean()


def among_keys(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "b d"],
    temperature: float | Float[Tensor, ""] = 0.5,
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return how badly each query tells its own key from those of the other cells, in nats.

    −log[ exp(q_i·k_i/τ) / Σ_j exp(q_i·k_j/τ) ] over the keys of the whole minibatch, with all vectors
    scaled to length 1; mean over the queries of this process.

    Parameters
    ----------
    keys
        The i-th belongs to the i-th query.
    group
        The processes that share the minibatch.

    References
    ----------
    Radford et al. (2021), Learning transferable visual models from natural language supervision, ICML,
    figure 3; Dwibedi et al. (2021), With a little help from my friends, ICCV, equation 2.
    """
    every, at = group.gather(F.normalize(keys, dim=1))
    return F.cross_entropy(F.normalize(query, dim=1) @ every.T / temperature, at)
