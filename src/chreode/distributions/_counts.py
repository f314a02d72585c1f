"""What the count distributions share: pieces that keep log-probabilities right in float32.

Writing log Γ(n+1) as (n+½) log n − n + ½ log 2π + δ(n) lets the large parts of a count's
log-probability cancel on paper instead of in floating point. What is left is a deviance, built from
log-ratios near 0, and the small δ's.

References
----------
Loader, C. (2000). Fast and Accurate Computation of Binomial Probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# Six terms leave 6e-16 at n = 10; the direct form loses one digit below it.
_SERIES_FROM = 10.0
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_SLOPES = tuple(-(2 * i + 1) * c for i, c in enumerate(_SERIES))


def poisson(rate: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Draw Poisson counts from torch's global generator; NaN where the rate is NaN, which torch refuses."""
    known = rate >= 0
    return torch.poisson(rate.where(known, 0)).where(known, torch.nan)


def broadcast(*tensors: Shaped[Tensor, " ..."]) -> tuple[Shaped[Tensor, " ..."], ...]:
    """Views of `tensors` in their common shape."""
    return tuple(torch.broadcast_tensors(*tensors))


def nonzeros(x: Shaped[Tensor, " ..."], shape: torch.Size) -> Int[Tensor, " n"]:
    """Flat positions of what is not 0 in `x` broadcast to `shape`."""
    return x.bool().expand(shape).flatten().nonzero().squeeze(1)


def smallest_mean(dtype: torch.dtype) -> float:
    """Mean below which a count above 0 is as probable as at this mean: 1e-31 in float32.

    It keeps log(mean) and count / mean finite where a softmax has underflowed to exactly 0.
    """
    limits = torch.finfo(dtype)
    return limits.tiny / limits.eps


def log_ratio(
    difference: Float[Tensor, " ..."], smaller: Float[Tensor, " ..."]
) -> Float[Tensor, " ..."]:
    """Return log(a/b) from a − b and min(a, b); log1p of a positive number never cancels."""
    return torch.log1p(difference.abs() / smaller).copysign(difference)


def stirling_error(n: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Return δ(n) = log Γ(n+1) − [(n+½) log n − n + ½ log 2π] for n > 0."""
    small = n.clamp(max=_SERIES_FROM)
    direct = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small
    inverse = n.clamp(min=_SERIES_FROM).reciprocal_()
    series = _polynomial(_SERIES, inverse * inverse) * inverse
    return torch.where(n < _SERIES_FROM, direct - 0.5 * math.log(2 * math.pi), series)


def digamma_minus_log(n: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Return ψ(n) − log n for n > 0, which falls like −1/(2n)."""
    small = n.clamp(max=_SERIES_FROM)
    direct = torch.digamma(small) - small.log()
    inverse = n.clamp(min=_SERIES_FROM).reciprocal_()
    square = inverse * inverse
    series = _polynomial(_SLOPES, square) * square - 0.5 * inverse
    return torch.where(n < _SERIES_FROM, direct, series)


def _polynomial(coefficients: Sequence[float], y: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Evaluate Σᵢ cᵢ yⁱ by Horner's rule."""
    total = torch.full_like(y, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total.mul_(y).add_(coefficient)
    return total
