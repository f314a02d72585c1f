"""VICReg: views of a cell are near, every dimension spreads, and no two dimensions covary."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group

#: Added to a variance before its root is taken.
_EPS = 1e-4


class VICReg(NamedTuple):
    """The terms of the loss, each a mean over dimensions.

    Attributes
    ----------
    invariance
        Mean squared difference of the views.
    variance
        mean_j max(0, 1 − √(Var z_j + 10⁻⁴)), mean over both views.
    covariance
        Σ_views Σ_j≠k Cov(z_j, z_k)² / d.
    """

    invariance: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


def vicreg(one: Float[Tensor, "b d"], two: Float[Tensor, "b d"], group: Group = Group()) -> VICReg:
    """Return invariance, variance and covariance of two views.

    They are statistics of the whole minibatch: every process returns the same values. Of a single cell,
    which has no spread, variance and covariance are 0.

    They are scaled as in the code that the authors released, and as in the package lightly. So weights
    that were chosen for these fit. In equation 6 of the paper variances of both views are added, and the
    invariance is a sum over dimensions.

    References
    ----------
    Bardes et al. (2022), VICReg: variance-invariance-covariance regularization for self-supervised
    learning, ICLR, equations 1 to 5; for the scales `main_vicreg.py` of
    https://github.com/facebookresearch/vicreg, and `VICRegLoss` of lightly.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    >>> [round(v.item(), 4) for v in vicreg(z, z + 1)]  # it spreads, and nothing covaries
    [1.0, 0.0, 0.0]
    """
    (a, _), (b, _) = group.gather(one), group.gather(two)
    invariance = F.mse_loss(a, b)
    if len(a) < 2:
        return VICReg(invariance, *(2 * [a.new_zeros(())]))
    variance, covariance = a.new_zeros(()), a.new_zeros(())
    for z in (a, b):
        centred = z - z.mean(0)
        spread = (centred.square().sum(0) / (len(z) - 1) + _EPS).sqrt()
        variance = variance + F.relu(1 - spread).mean() / 2
        table = centred.T @ centred / (len(z) - 1)
        off = table.square().sum() - table.diagonal().square().sum()
        covariance = covariance + off / z.shape[1]
    return VICReg(invariance, variance, covariance)
