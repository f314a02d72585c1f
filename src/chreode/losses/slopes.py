"""Errors of slopes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def unexplained(found: Float[Tensor, "n g"], truth: Float[Tensor, "n g"]) -> Float[Tensor, ""]:
    """Return the mean over genes of the squared error as a share of the square; of tiny genes less."""
    size = truth.square().mean(0)
    return ((found - truth).square().mean(0) / size.clamp(min=0.01 * float(size.mean()))).mean()
