"""Negative binomial dispersions, and where a decoder of counts should start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batch import SparseRows
from .blocks import CategoryTable

#: Log frequency of a feature that cells were not measured for: of it no count is expected, and none is seen.
NEVER = -1e4
#: From a gene with rare bursts to one that is hardly wider than a Poisson.
_THETA = (0.05, 100.0)


class LogTheta(CategoryTable):
    """log θ of every feature, where a count of mean μ has the variance μ + μ² / θ; a row per category.

    Parameters
    ----------
    speed
        How many times as fast as a weight log θ moves. It has several units to go, of which an optimiser
        like Adam makes no more than its learning rate per step, and thousands of steps with wrong
        dispersions teach the rest of the model wrong things.
    """

    def __init__(self, blocks: Sequence[int], n_features: int, speed: float = 10.0) -> None:
        super().__init__(blocks, n_features)
        self.speed = speed
        self.start(None)

    @torch.no_grad()
    def start(self, log_theta: Float[Tensor, " g"] | None) -> None:
        """Begin at given values (None: at the random ones of the table)."""
        for block in self.blocks:
            block.copy_((block if log_theta is None else log_theta.expand_as(block)) / self.speed)

    def table(self) -> Float[Tensor, "categories g"]:
        """Return all rows."""
        return self.speed * super().table()


@dataclass(frozen=True, eq=False)
class CountMoments:
    """What features are like if depth is all that differs between cells.

    Attributes
    ----------
    log_frequency
        Log of a feature's share of all counts.
    log_theta
        Log of the inverse dispersion of a negative binomial of mean ℓ·frequency, by its variance.
    log_odds
        Log-odds that a cell has the feature at all.
    """

    log_frequency: Float[Tensor, " g"]
    log_theta: Float[Tensor, " g"]
    log_odds: Float[Tensor, " g"]

    @classmethod
    def of(cls, chunks: Iterable[SparseRows]) -> CountMoments:
        """Take them from cells, in one pass; cells without any count say nothing."""
        # per feature: Σ x, Σ x², Σ x ℓ and cells that have it; per cell: Σ ℓ, Σ ℓ² and cells
        of_features, of_cells = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(3)
        for x in chunks:
            v, depth = x.values.double(), x.sum().double()
            parts = torch.stack([v, v.square(), v * depth[x.cells], (v > 0).double()])
            sums = parts.new_zeros(4, x.n_features).index_add_(1, x.columns, parts)
            of_features = of_features.to(sums.device) + sums
            there = (depth > 0).double()
            of_cells = of_cells.to(sums) + torch.stack([depth, depth.square(), there]).sum(1)
        count, square, crossed, present = of_features
        total, squared, cells = of_cells
        frequency = (count + 0.5) / (total + 0.5 * len(count))
        mean_squared = frequency.square() * squared
        excess = square - 2 * frequency * crossed + mean_squared - frequency * total
        theta = (mean_squared / excess.clamp_min(1e-12)).clamp(*_THETA)
        rate = (present + 0.5) / (cells + 1)
        return cls(frequency.log().float(), theta.log().float(), rate.logit().float())
