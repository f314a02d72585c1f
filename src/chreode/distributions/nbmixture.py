"""Counts from a background or a foreground, each negative binomial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._counts import broadcast
from .nb import NegativeBinomial


@final
@dataclass(frozen=True, eq=False)
class NegativeBinomialMixture:
    """Background with probability sigmoid(logits), else foreground; both share theta.

    Parameters
    ----------
    mu_background, mu_foreground
        Mean counts of the two, as `mu` in `NegativeBinomial`.
    theta
        Inverse dispersion of both, above 0.
    logits
        Log-odds of the background.

    References
    ----------
    Gayoso, A. et al. (2021). Joint probabilistic modeling of single-cell multi-omic data with
    totalVI. Nature Methods 18, 272-282: the likelihood of proteins.

    Examples
    --------
    >>> import torch
    >>> mixture = NegativeBinomialMixture(*torch.tensor([1.0, 9.0, 1.0, 0.0]))
    >>> mixture.mean
    tensor(5.)
    """

    mu_background: Float[Tensor, " ..."]
    mu_foreground: Float[Tensor, " ..."]
    theta: Float[Tensor, " ..."]
    logits: Float[Tensor, " ..."]

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Expected count over background and foreground."""
        weight = torch.sigmoid(self.logits)
        return torch.lerp(self.mu_foreground, self.mu_background, weight)

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Variance of the count: within the two, and between them."""
        background, foreground = self._parts()
        weight, rest = torch.sigmoid(self.logits), torch.sigmoid(-self.logits)
        between = weight * rest * (self.mu_background - self.mu_foreground).square()
        return weight * background.variance + rest * foreground.variance + between

    def log_prob(self, x: Num[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the log-probability of each raw count in `x`."""
        background, foreground = self._parts()
        return torch.logaddexp(
            background.log_prob(x) + logsigmoid(self.logits),
            foreground.log_prob(x) + logsigmoid(-self.logits),
        )

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " ..."]:
        """Draw counts from torch's global generator, which callers seed."""
        low, high, theta, logits = broadcast(
            self.mu_background, self.mu_foreground, self.theta, self.logits
        )
        is_background = torch.bernoulli(torch.sigmoid(logits)).bool()
        return NegativeBinomial(torch.where(is_background, low, high), theta).sample()

    def _parts(self) -> tuple[NegativeBinomial, NegativeBinomial]:
        return (
            NegativeBinomial(self.mu_background, self.theta),
            NegativeBinomial(self.mu_foreground, self.theta),
        )
