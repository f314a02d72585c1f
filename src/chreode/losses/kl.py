"""Kullback-Leibler divergences between Gaussians, in nats."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def kl_standard_normal(
    mu: Float[Tensor, "*b z"], var: Float[Tensor, "*b z"]
) -> Float[Tensor, "*b"]:
    """Return KL(N(mu, var) ‖ N(0, 1)), summed over the last axis.

    Parameters
    ----------
    mu
        Means.
    var
        Variances, above 0.

    References
    ----------
    Kingma, D. P. and Welling, M. (2014). Auto-Encoding Variational Bayes, appendix B.

    Examples
    --------
    >>> import torch
    >>> kl_standard_normal(torch.tensor([[1.0, 1.0]]), torch.ones(1, 2))
    tensor([1.])
    """
    return 0.5 * (mu.square() + var - 1 - var.log()).sum(-1)


def kl_normal(
    mu_q: Float[Tensor, " ..."],
    scale_q: Float[Tensor, " ..."],
    mu_p: Float[Tensor, " ..."],
    scale_p: Float[Tensor, " ..."],
) -> Float[Tensor, " ..."]:
    """Return KL(N(mu_q, scale_q²) ‖ N(mu_p, scale_p²)), element by element; arguments broadcast.

    Parameters
    ----------
    mu_q, mu_p
        Means.
    scale_q, scale_p
        Standard deviations, above 0.

    Examples
    --------
    >>> import torch
    >>> kl_normal(*torch.tensor([3.0, 1.0, 1.0, 1.0]))
    tensor(2.)
    """
    ratio = scale_q / scale_p
    shift = (mu_q - mu_p) / scale_p
    return 0.5 * (ratio.square() + shift.square() - 1) - ratio.log()
