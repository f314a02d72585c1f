"""Things that are there or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid


@final
@dataclass(frozen=True, eq=False)
class Bernoulli:
    """1 with probability sigmoid(logits), else 0; for open chromatin and mutations.

    Parameters
    ----------
    logits
        Log-odds of a 1.

    Examples
    --------
    >>> import torch
    >>> Bernoulli(logits=torch.tensor(0.0)).log_prob(torch.tensor([True, False])).exp()
    tensor([0.5000, 0.5000])
    """

    logits: Float[Tensor, " ..."]

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Probability of a 1."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Variance of the indicator."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    def log_prob(self, x: Shaped[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the log-probability of each entry of `x`: 0 and 1 of any dtype, or booleans."""
        return logsigmoid((2 * x - 1) * self.logits)

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " ..."]:
        """Draw zeros and ones from torch's global generator, which callers seed."""
        return torch.bernoulli(self.mean)
