"""Lower bounds of the evidence log p(x), from draws of the posterior q(z|x)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def log_ratio_standard_normal(
    z: Float[Tensor, "*b z"], mu: Float[Tensor, "*b z"], var: Float[Tensor, "*b z"]
) -> Float[Tensor, "*b"]:
    """Return log N(z; 0, I) − log N(z; mu, var), summed over the last axis.

    Its mean over draws of N(mu, var) is minus `kl_standard_normal`.

    Examples
    --------
    >>> log_ratio_standard_normal(torch.ones(1, 2), mu=torch.ones(1, 2), var=torch.ones(1, 2))
    tensor([-1.])
    """
    return 0.5 * ((z - mu).square() / var + var.log() - z.square()).sum(-1)


def evidence_bound(
    draw: Callable[[], tuple[Float[Tensor, " b"], Float[Tensor, " b"]]],
    kl: Float[Tensor, " b"] | None,
    n_samples: int,
    *,
    importance: bool,
) -> Float[Tensor, " b"]:
    """Return the ELBO of each cell, or its importance-weighted bound, in nats (float64).

    Parameters
    ----------
    draw
        Draws z from q(z|x) and returns log p(x|z) and log p(z) − log q(z|x).
    kl
        KL(q(z|x) ‖ p(z)), for the ELBO (None: the mean over the draws, where it has no closed form).
    n_samples
        Draws to average. The importance-weighted bound rises to log p(x) with them.

    References
    ----------
    ELBO: Kingma & Welling (2014), Auto-Encoding Variational Bayes, Eq. 3. Importance-weighted
    bound: Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders.

    Examples
    --------
    >>> draw = lambda: (torch.tensor([-3.0]), torch.tensor([-1.0]))
    >>> evidence_bound(draw, kl=torch.ones(1), n_samples=2, importance=True)
    tensor([-4.], dtype=torch.float64)
    """
    draws = [draw() for _ in range(n_samples)]
    log_likelihood = torch.stack([ll for ll, _ in draws]).double()
    if not importance and kl is not None:
        return log_likelihood.mean(0) - kl
    log_ratio = torch.stack([ratio for _, ratio in draws]).double()
    weight = log_likelihood + log_ratio
    return weight.logsumexp(0) - math.log(n_samples) if importance else weight.mean(0)
