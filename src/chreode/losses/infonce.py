"""InfoNCE: a query finds its key among others."""

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
    logits = torch.cat([(q * k).sum(1, keepdim=True), others], 1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


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
