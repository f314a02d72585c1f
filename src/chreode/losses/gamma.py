"""Γ, ψ and their differences by Stirling's series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Γ is taken this far above its argument, with so many terms: errors of 4e-8 and 1e-16.
_SHIFT = {torch.float32: 4, torch.float64: 10}


_TERMS = {torch.float32: 3, torch.float64: 8}


_SERIES = (1/12, -1/360, 1/1260, -1/1680, 1/1188, -691/360360, 1/156, -3617/122400)  # fmt: skip


_SLOPES = tuple((2 * i + 1) * c for i, c in enumerate(_SERIES))


class Gamma:
    """Γ(v) by Stirling's series at y = v + shift.

    log Γ(v) = (v − ½) log y − y + ½ log 2π + series − log ratio, with the rising ∏ (v + i) in the ratio.
    """

    def __init__(self, v: Float[Tensor, " n"]) -> None:
        self.v, self.shift, self.terms = v, _SHIFT[v.dtype], _TERMS[v.dtype]
        self.y = v + self.shift
        self.inverse = self.y.reciprocal()
        self.square = self.inverse * self.inverse
        ends = v * (v + (self.shift - 1))
        # (v + i) (v + shift − 1 − i)
        self.pairs = [ends + i * (self.shift - 1 - i) for i in range(self.shift // 2)]

    def ratio(self) -> Float[Tensor, " n"]:
        """Return ∏ (v + i) / y."""
        ratio = self.pairs[0] * self.square
        for pair in self.pairs[1:]:
            ratio.mul_(pair).mul_(self.square)
        return ratio

    def series(self) -> Float[Tensor, " n"]:
        """Return 1/12y − 1/360y³ + 1/1260y⁵ and so on."""
        return self._polynomial(_SERIES).mul_(self.inverse)

    def log_less_digamma(self) -> Float[Tensor, " n"]:
        """Return log y − ψ(v)."""
        reciprocals = self.pairs[0].reciprocal()
        for pair in self.pairs[1:]:
            reciprocals.add_(pair.reciprocal())
        slope = self._polynomial(_SLOPES).mul_(self.square).add_(self.inverse, alpha=0.5)
        return slope.addcmul_((self.v * 2).add_(self.shift - 1), reciprocals)

    def _polynomial(self, coefficients: Sequence[float]) -> Float[Tensor, " n"]:
        total = self.square * coefficients[self.terms - 1]
        for coefficient in reversed(coefficients[1 : self.terms - 1]):
            total.add_(coefficient).mul_(self.square)
        return total.add_(coefficients[0])
