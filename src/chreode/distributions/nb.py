"""Negative binomial counts by mean and inverse dispersion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._counts import (
    broadcast,
    digamma_minus_log,
    log_ratio,
    nonzeros,
    poisson,
    smallest_mean,
    stirling_error,
)


@final
@dataclass(frozen=True, eq=False)
class NegativeBinomial:
    """Counts of variance mu + mu² / theta: a Poisson whose rate is Gamma distributed.

    Parameters
    ----------
    mu
        Mean count, at least 0. A count above a mean under 1e-31 (float32; 1e-292 in float64), which
        happens where a softmax underflows, gets the log-probability and gradient of that mean, so
        both stay finite; a count of 0 needs no such floor and has none.
    theta
        Inverse dispersion, above 0, usually one per gene; the Poisson is its limit at infinity.

    Notes
    -----
    Γ functions are evaluated at the non-zero counts only: elsewhere their terms cancel exactly.
    Gradients are analytic, and of first order only.

    Examples
    --------
    >>> import torch
    >>> nb = NegativeBinomial(mu=torch.tensor([2.0, 2.0]), theta=torch.tensor(2.0))
    >>> nb.log_prob(torch.tensor([0, 1])).exp()
    tensor([0.2500, 0.2500])
    """

    mu: Float[Tensor, " ..."]
    theta: Float[Tensor, " ..."]

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Expected count."""
        return self.mu

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Variance of the count."""
        return self.mu + self.mu.square() / self.theta

    def log_prob(self, x: Num[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the log-probability of each raw count in `x`."""
        return _LogProb.apply(x, self.mu, self.theta)  # type: ignore[no-untyped-call]  # torch's own

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " ..."]:
        """Draw counts from torch's global generator, which callers seed."""
        mu, theta = broadcast(self.mu, self.theta)
        noise = torch.distributions.Gamma(theta, theta, validate_args=False).sample()
        return poisson(mu * noise)


class _LogProb(Function):
    """Log-probability at 0 everywhere, then Loader's saddle-point form at the counts above 0."""

    @staticmethod
    def forward(
        ctx: Any, x: Num[Tensor, " ..."], mu: Float[Tensor, " ..."], theta: Float[Tensor, " ..."]
    ) -> Float[Tensor, " ..."]:
        full = broadcast(x, mu, theta, stirling_error(theta))
        shape = full[0].shape
        at = nonzeros(x, shape)
        k, m, t, error = (v.take(at) for v in full)
        k, m = k.to(m.dtype), m.clamp(min=smallest_mean(m.dtype))
        low, high = torch.minimum(m, k), torch.maximum(m, k)
        fit = log_ratio(m - k, low + t)  # log (m + t) / (k + t)
        half_deviance = t * fit - k * log_ratio((m - k) * (t / (high + t)), low)
        peak = 0.5 * torch.log(t / (2 * math.pi * k * (k + t)))
        peak += stirling_error(k + t) - error - stirling_error(k)
        out = (mu / theta).log1p_().mul_(-theta).expand(shape).contiguous()
        ctx.save_for_backward(mu, theta, out, at, k, m, t, fit)
        out.view(-1).index_copy_(0, at, peak - half_deviance)
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, " ..."]
    ) -> tuple[None, Float[Tensor, " ..."], Float[Tensor, " ..."]]:
        mu, theta, out, at, k, m, t, fit = ctx.saved_tensors
        total = mu + theta
        by_mu = (-theta / total).expand(out.shape).contiguous()
        by_theta = (out / theta).add_(mu / total)
        error = digamma_minus_log(theta).expand(out.shape).take(at)
        by_mu.view(-1).index_copy_(0, at, (k / m - 1) * (t / (m + t)))
        by_theta.view(-1).index_copy_(
            0, at, digamma_minus_log(k + t) - error - fit + (m - k) / (m + t)
        )
        by_mu, by_theta = by_mu.mul_(gradient), by_theta.mul_(gradient)
        return None, by_mu.sum_to_size(mu.shape), by_theta.sum_to_size(theta.shape)
