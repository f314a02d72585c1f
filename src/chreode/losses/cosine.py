"""How alike two representations are, whatever their length."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def negative_cosine(found: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return minus the mean cosine of each prediction with its target: from −1, the best, to 1.

    No gradient flows to the target (the stop-gradient of SimSiam, without which all cells get one place).

    References
    ----------
    Chen & He (2021), Exploring simple siamese representation learning, CVPR, equations 1 and 3. BYOL's
    loss is 2 + 2 times this one: Grill et al. (2020), Bootstrap your own latent, NeurIPS, equation 2.

    Examples
    --------
    >>> import torch
    >>> one = torch.tensor([[2.0, 0.0]])
    >>> round(negative_cosine(one, torch.tensor([[1.0, 1.0]])).item(), 4)  # −cos 45°
    -0.7071
    """
    return -F.cosine_similarity(found, target.detach(), dim=1).mean()
