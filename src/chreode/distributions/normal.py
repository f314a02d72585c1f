"""Gaussian values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ._counts import broadcast


@final
@dataclass(frozen=True, eq=False)
class Normal:
    """Values spread symmetrically about `loc`; for log-normalised expression.

    Parameters
    ----------
    loc
        Mean.
    scale
        Standard deviation, above 0.

    Examples
    --------
    >>> import torch
    >>> Normal(loc=torch.tensor(0.0), scale=torch.tensor(1.0)).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-0.9189, -1.4189])
    """

    loc: Float[Tensor, " ..."]
    scale: Float[Tensor, " ..."]

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Expected value."""
        return self.loc

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Square of `scale`."""
        return self.scale.square()

    def log_prob(self, x: Num[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the log-density at each entry of `x`."""
        z = (x - self.loc) / self.scale
        return -0.5 * (z.square() + math.log(2 * math.pi)) - self.scale.log()

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " ..."]:
        """Draw values from torch's global generator, which callers seed."""
        return torch.normal(*broadcast(self.loc, self.scale))
