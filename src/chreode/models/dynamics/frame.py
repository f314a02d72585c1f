"""Where states lie and when: what a model of time knows of its data before it learns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: States along observed paths that are kept.
REFERENCES = 200


class Frame(nn.Module):
    """Genes centred and scaled one by one, time from 0 to 1, and observed states in these units.

    Parameters
    ----------
    n
        Genes.
    n_latent
        Dimensions of the plane in which the observed paths vary most.
    n_series
        Trajectories whose starts are kept.
    """

    centre: Tensor
    scale: Tensor
    lowest: Tensor
    highest: Tensor
    clock: Tensor
    references: Tensor
    plane: Tensor
    starts: Tensor
    begins: Tensor
    known: Tensor

    def __init__(self, n: int, n_latent: int, n_series: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))
        self.register_buffer("lowest", torch.full((n,), -torch.inf))
        self.register_buffer("highest", torch.full((n,), torch.inf))
        self.register_buffer("clock", torch.tensor([0.0, 1.0]))
        self.register_buffer("references", torch.zeros(REFERENCES, n))
        self.register_buffer("plane", torch.zeros(n, min(n_latent, n)))
        self.register_buffer("starts", torch.zeros(n_series, n))
        self.register_buffer("begins", torch.zeros(n_series))
        self.register_buffer("known", torch.tensor(False))

    def units(
        self,
        values: Float[Tensor, "s t g"],
        weight: Float[Tensor, "s t g"],
        clock: Float[Tensor, " 2"],
    ) -> None:
        """Take centres and scales of series, and the first and the last time of their cells."""
        self.known.fill_(True)
        total = weight.sum((0, 1)).clamp(min=1)
        self.centre.copy_((weight * values).sum((0, 1)) / total)
        spread = (weight * (values - self.centre).square()).sum((0, 1)) / total
        # a gene that hardly moves stays small: divided by its noise it would weigh as much as others
        self.scale.copy_(spread.sqrt().clamp(min=max(0.1 * float(spread.mean().sqrt()), 1e-6)))
        self.clock.copy_(clock)

    def states(self, found: Float[Tensor, "q g"]) -> None:
        """Keep states along observed paths, and the plane in which they vary most.

        Dimensions beyond those that so many states can span stay 0.
        """
        found = self.scaled(found)
        at = torch.linspace(0, len(found) - 1, REFERENCES).round().long()
        self.references.copy_(found[at])
        axes = torch.linalg.svd(found, full_matrices=False)[2][: self.plane.shape[1]]
        self.plane[:, : len(axes)] = axes.T

    def clipped(
        self, found: Float[Tensor, "s t g"], start: Float[Tensor, "s g"]
    ) -> Float[Tensor, "s t g"]:
        """Return expression no lower and no higher than in any cell of the fit, or where the path began."""
        low, high = self.lowest.minimum(start), self.highest.maximum(start)
        return found.maximum(low[:, None]).minimum(high[:, None])

    @property
    def length(self) -> Float[Tensor, ""]:
        """Time from the first to the last training cell."""
        return self.clock[1] - self.clock[0]

    def scaled(self, x: Float[Tensor, "*b g"]) -> Float[Tensor, "*b g"]:
        """Return expression, centred and scaled."""
        return (x - self.centre) / self.scale

    def unscaled(self, x: Float[Tensor, "*b g"]) -> Float[Tensor, "*b g"]:
        """Return scaled states as expression."""
        return x * self.scale + self.centre

    def share(self, times: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Return times as shares of the time from first to last."""
        return (times - self.clock[0]) / self.length

    def time_at(self, share: float) -> float:
        """Return the time of such a share."""
        return float(share * self.length + self.clock[0])
