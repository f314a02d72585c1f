"""Barlow Twins: the views of a cell correlate in each dimension, and dimensions do not with each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group

#: Added to a variance, as batch norm does: a constant dimension correlates with nothing.
_EPS = 1e-5


def cross_correlation(
    one: Float[Tensor, "b d"], two: Float[Tensor, "b d"], group: Group = Group()
) -> Float[Tensor, "d d"]:
    """Return the correlation of each dimension of one view with each of the other, over all cells."""
    (a, _), (b, _) = group.gather(one), group.gather(two)
    a, b = ((x - x.mean(0)) * (x.var(0, correction=0) + _EPS).rsqrt() for x in (a, b))
    return a.T @ b / len(a)


def barlow_twins(
    one: Float[Tensor, "b d"],
    two: Float[Tensor, "b d"],
    redundancy: float = 5e-3,
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return Σ_i (1 − C_ii)² + λ Σ_i Σ_j≠i C_ij², with the correlations C of two views.

    It is a statistic of the whole minibatch: every process returns the same value.

    Parameters
    ----------
    redundancy
        λ.
    group
        The processes that share the minibatch.

    References
    ----------
    Zbontar et al. (2021), Barlow Twins: self-supervised learning via redundancy reduction, ICML,
    equations 1 and 2.

    Examples
    --------
    Two dimensions that are one: C is all ones, so that 2 λ is left.

    >>> import torch
    >>> x = torch.tensor([[100.0, 100.0], [-100.0, -100.0]])
    >>> round(barlow_twins(x, x, redundancy=0.5).item(), 4)
    1.0
    """
    correlation = cross_correlation(one, two, group)
    own = correlation.diagonal()
    others = correlation.square().sum() - own.square().sum()
    return (1 - own).square().sum() + redundancy * others
