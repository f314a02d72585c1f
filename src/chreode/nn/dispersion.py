"""Negative binomial dispersions, and where a decoder of counts should start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.batch import SparseRows
from ..losses.counts import log_theta_at
from .blocks import CategoryTable

#: Log frequency of a feature that cells were not measured for: of it no count is expected, and none is seen.
NEVER = -1e4
#: From a gene with rare bursts to one that is hardly wider than a Poisson.
_THETA = (0.05, 100.0)
#: θ where a decoder starts, at the least: little wider than a Poisson.
_NARROW = 10.0
#: How far from 0 the log-odds of the part of θ that rises are expected to be.
_SPREAD = 2.0
#: How many times as fast as a weight they move: slower than θ, so that means are learned before both.
_SPEED = 3.0


class LogTheta(CategoryTable):
    """log θ of every feature, where a count of mean μ has the variance μ + μ² / θ; a row per category.

    With `rises`, θ rises with the expected frequency ρ of the feature in the cell::

        θ_g = θ̄_g [1 − w_g + w_g ρ_g / ρ̄_g],      logit w_g ~ N(0, 2²)

    ρ̄_g is the frequency over all cells, at which θ is that of the table. A gene of which other cells have
    rare, scattered counts (from the soup, from doublets) can so be dependable in the type that it defines.
    At w = 0 the variance is quadratic in the mean (NB2), at w = 1 it is linear (NB1): a gene rises by
    larger bursts, or by more. Of a power of ρ in place of the sum, the cells with scattered counts decide,
    being many, and may have θ fall towards the type that the gene defines.

    Parameters
    ----------
    speed
        How many times as fast as a weight log θ moves. It has several units to go, of which an optimiser
        like Adam makes no more than its learning rate per step, and thousands of steps with wrong
        dispersions teach the rest of the model wrong things.
    rises
        Whether θ rises with the expected frequency.

    References
    ----------
    Cameron and Trivedi (1998), Regression Analysis of Count Data, names NB1 and NB2.
    """

    odds: nn.Parameter
    centre: Tensor
    cells: Tensor

    def __init__(
        self, blocks: Sequence[int], n_features: int, speed: float = 10.0, *, rises: bool = False
    ) -> None:
        super().__init__(blocks, n_features)
        self.speed, self.rises = speed, rises
        if rises:
            self.odds = nn.Parameter(torch.zeros(1, n_features))
            self.register_buffer("centre", torch.zeros(n_features))
            self.register_buffer("cells", torch.tensor(1.0))
        self.start(None)

    @torch.no_grad()
    def start(self, log_theta: Float[Tensor, " g"] | None) -> None:
        """Begin at given values, but near a Poisson (None: at the random ones of the table).

        Seen over all cells, a gene that few cells have is scattered, whatever it is within them. At
        such a θ nearly every mean is about as probable as the right one, and none would be learned.
        """
        if log_theta is not None:
            log_theta = log_theta.clamp(min=math.log(_NARROW))
        for block in self.blocks:
            block.copy_((block if log_theta is None else log_theta.expand_as(block)) / self.speed)

    @torch.no_grad()
    def refer(self, log_frequency: Float[Tensor, " g"], n_cells: int) -> None:
        """Take the frequencies at which θ is that of the table, and the number of training cells."""
        if self.rises:
            self.centre.copy_(log_frequency)
            self.cells.fill_(n_cells)

    def table(self) -> Float[Tensor, "categories g"]:
        """Return all rows."""
        return self.speed * super().table()

    def log_odds(self) -> Float[Tensor, "1 g"]:
        """Return logit w."""
        return _SPEED * self.odds

    def of(
        self, rows: Float[Tensor, "#b g"], logits: Float[Tensor, "b g"]
    ) -> Float[Tensor, "#b g"]:
        """Return log θ in cells with these `rows` of the table; logits: log means, up to a constant."""
        at_none, log_rise = self.for_likelihood(rows)
        return rows if log_rise is None else log_theta_at(at_none, log_rise, logits.float())

    def for_likelihood(
        self, rows: Float[Tensor, "#b g"]
    ) -> tuple[Float[Tensor, "#b g"], Float[Tensor, "1 g"] | None]:
        """Return, for the likelihood, log θ at a frequency of 0, and the log of its rise, if it rises."""
        if not self.rises:
            return rows, None
        odds = self.log_odds()
        return rows + F.logsigmoid(-odds), rows + F.logsigmoid(odds) - self.centre

    def rising(self, logits: Float[Tensor, "b g"]) -> Float[Tensor, "b g"]:
        """Return the share of θ that rises with the frequency, in cells with these log means."""
        if not self.rises:
            return torch.zeros_like(logits)
        return (self.log_odds() + logits.log_softmax(1) - self.centre).sigmoid()

    def penalty(self) -> Float[Tensor, ""]:
        """Return −log p(logit w), up to a constant, in nats per training cell."""
        if not self.rises:
            return self.blocks[0].new_zeros(())
        return 0.5 * (self.log_odds() / _SPREAD).square().sum() / self.cells


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
    binary
        Whether all values are 0 or 1.
    """

    log_frequency: Float[Tensor, " g"]
    log_theta: Float[Tensor, " g"]
    log_odds: Float[Tensor, " g"]
    binary: bool

    @classmethod
    def of(cls, chunks: Iterable[SparseRows]) -> CountMoments:
        """Take them from cells, in one pass; cells without any count add nothing."""
        # per feature: Σ x, Σ x², Σ x ℓ and cells that have it; per cell: Σ ℓ, Σ ℓ² and cells
        of_features, of_cells = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(3)
        for x in chunks:
            v, depth = x.values.double(), x.sum().double()
            parts = torch.stack([v, v.square(), v * depth[x.cells], (v > 0).double()])
            sums = parts.new_zeros(4, x.n_features).index_add_(1, x.columns, parts)
            of_features = of_features.to(sums.device) + sums
            counted = (depth > 0).double()
            of_cells = of_cells.to(sums) + torch.stack([depth, depth.square(), counted]).sum(1)
        count, square, crossed, present = of_features
        total, squared, cells = of_cells
        frequency = (count + 0.5) / (total + 0.5 * len(count))
        mean_squared = frequency.square() * squared
        excess = square - 2 * frequency * crossed + mean_squared - frequency * total
        theta = (mean_squared / excess.clamp_min(1e-12)).clamp(*_THETA)
        rate = (present + 0.5) / (cells + 1)
        return cls(
            frequency.log().float(), theta.log().float(), rate.logit().float(),
            binary=bool((square == count).all()),
        )  # fmt: skip
