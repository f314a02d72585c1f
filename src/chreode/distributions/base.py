"""What a model may ask of any distribution."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor


@runtime_checkable
class Distribution(Protocol):
    """A likelihood whose parameters are tensors that broadcast against each other and the data.

    Domains are for the caller to keep: nothing is validated, for these run at every step.
    """

    @property
    def mean(self) -> Float[Tensor, " ..."]:
        """Expected value, in the units of the data."""

    @property
    def variance(self) -> Float[Tensor, " ..."]:
        """Variance, in the squared units of the data."""

    def log_prob(self, x: Shaped[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Natural logarithm of the density or probability of each entry of `x`."""

    def sample(self) -> Float[Tensor, " ..."]:
        """Draw once per entry of the broadcast parameters, from torch's global generator.

        Seed that generator first; no gradient flows through a draw.
        """
