"""CLIP: two kinds of measurements of a cell find each other."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..compute.processes import Group
from .infonce import among_keys


def clip(
    one: Float[Tensor, "b d"],
    two: Float[Tensor, "b d"],
    temperature: float | Float[Tensor, ""] = 0.07,
    group: Group = Group(),
) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies: of finding `two` from `one`, and `one` from `two`.

    Negatives are those of the other kind in the whole minibatch; it is the mean over the cells of this
    process, in nats.

    References
    ----------
    Radford et al. (2021), Learning transferable visual models from natural language supervision, ICML,
    figure 3.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(2)
    >>> round(clip(z, z, temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    back, forth = among_keys(two, one, temperature, group), among_keys(one, two, temperature, group)
    return (forth + back) / 2
