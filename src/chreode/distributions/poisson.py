"""Poisson counts."""

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
    log_ratio,
    nonzeros,
    poisson,
    smallest_mean,
    stirling_error,
)


@final
@dataclass(frozen=True, eq=False)
class Poisson:
    """Counts whose variance is their mean.

    Parameters
    ----------
    rate
        Mean count, at least 0; for a count above a rate that underflowed to 0 the same floor holds
        as for `NegativeBinomial`.

    Notes
    -----
    Gradients are analytic, and of first order only.

    Examples
    --------
    >>> import torch
    >>> Poisson(rate=torch.tensor(1.0)).log_prob(torch.tensor([0, 1, 2])).exp()
    tensor([0.3679, 0.3679, 0.1839])
    """

    rate: Float[Tensor, " ..."]

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Expected count."""
        return self.rate

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Variance of the count."""
        return self.rate

    def log_prob(self, x: Num[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the log-probability of each raw count in `x`."""
        return _LogProb.apply(x, self.rate)  # type: ignore[no-untyped-call]  # torch's own

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " ..."]:
        """Draw counts from torch's global generator, which callers seed."""
        return poisson(self.rate)


class _LogProb(Function):
    """Log-probability at 0 everywhere, then Loader's saddle-point form at the counts above 0."""

    @staticmethod
    def forward(
        ctx: Any, x: Num[Tensor, " ..."], rate: Float[Tensor, " ..."]
    ) -> Float[Tensor, " ..."]:
        ctx.save_for_backward(x, rate)
        full = broadcast(x, rate)
        at = nonzeros(x, full[0].shape)
        k, m = (v.take(at) for v in full)
        k, m = k.to(m.dtype), m.clamp(min=smallest_mean(m.dtype))
        half_deviance = m - k - k * log_ratio(m - k, torch.minimum(m, k))
        peak = -0.5 * torch.log(2 * math.pi * k) - stirling_error(k)
        out = full[1].neg().contiguous()
        out.view(-1).index_copy_(0, at, peak - half_deviance)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, " ..."]) -> tuple[None, Float[Tensor, " ..."]]:
        x, rate = ctx.saved_tensors
        by_rate = (x / rate.clamp(min=smallest_mean(rate.dtype))).sub_(1)
        return None, by_rate.mul(gradient).sum_to_size(rate.shape)
