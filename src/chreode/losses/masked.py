"""Masked reconstruction: what was hidden of a cell is told from the rest of it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..compute.processes import Group


def masked_error(
    found: Float[Tensor, "b g"],
    x: Float[Tensor, "b g"],
    hidden: Bool[Tensor, "b g"],
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return the mean squared error over the entries that were hidden; 0 where none was.

    Processes that share a minibatch hide different numbers of entries. Each returns its part of the joint
    mean, in such a way that the means over cells that a fit takes of all parts give it.

    References
    ----------
    He et al. (2022), Masked autoencoders are scalable vision learners, CVPR, section 3.

    Examples
    --------
    >>> import torch
    >>> x, hidden = torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]])
    >>> masked_error(torch.zeros(1, 2), x, hidden).item()
    4.0
    """
    total = x.new_tensor([float(hidden.sum()), float(len(x))])
    group.add([total])
    share = total[1] / max(len(x), 1) / total[0].clamp_min(1)
    return torch.where(hidden, found - x, 0).square().sum() * share
