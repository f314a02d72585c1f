"""Errors of what moves, beside how much it moves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def unexplained(
    found: Float[Tensor, "*n g"], truth: Float[Tensor, "*n g"], weight: Float[Tensor, "*n g"]
) -> Float[Tensor, ""]:
    """Return the mean over genes of the root mean squared error, as a share of the root mean square.

    Roots, since under a penalty every gene then has the strength that its own noise calls for, which
    squares leave to be found gene by gene.

    References
    ----------
    Belloni, Chernozhukov and Wang (2011), Square-root lasso, Biometrika 98:791.
    """
    away, size = ((weight * d.square()).flatten(0, -2).sum(0) for d in (found - truth, truth))
    count = weight.flatten(0, -2).sum(0)
    whole = (size.sum() / count.sum().clamp(min=1)).clamp(min=1e-6)
    # a gene without an error has no slope either
    return ((away / count.clamp(min=1)) / whole + 1e-8).sqrt().mean()
