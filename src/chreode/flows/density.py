"""How probable a flow finds a point: the change of variables along its path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from ..ode import solve

#: Numbers that the derivatives of one chunk of points may hold.
_CHUNK = 2**22


def log_density(
    velocity: Callable[[Float[Tensor, "b z"], Float[Tensor, ""]], Float[Tensor, "b z"]],
    x: Float[Tensor, "b z"],
    **options: Any,
) -> Float[Tensor, " b"]:
    """Return log p(x) in nats, where p is what `velocity` makes of N(0, I) from t = 0 to 1.

    The point is moved back to noise ε, and log p(x) = log N(ε) − ∫ div v dt (Chen et al. 2018,
    neural ODEs, equation 8), with the divergence exact: one gradient per dimension.

    Parameters
    ----------
    velocity
        Acts on every point by itself.
    options
        Of `ode.solve`: `method`, `steps`, `rtol`, `atol`.

    Examples
    --------
    >>> still = log_density(lambda x, t: 0 * x, torch.zeros(1, 2), method="euler", steps=1)
    >>> torch.allclose(still.exp(), torch.tensor(1 / (2 * math.pi)))
    True
    """
    b, d = x.shape
    basis = torch.eye(d, dtype=x.dtype, device=x.device)

    def joint(state: Tensor, t: Tensor) -> Tensor:
        result: Any = vjp(lambda p: velocity(p, t), state[:, :d])
        v, gradient = result

        def along(direction: Tensor) -> Tensor:
            return gradient(direction.expand(b, d))[0] @ direction

        diagonal = vmap(along, chunk_size=max(1, _CHUNK // (b * d)))(basis)
        return torch.cat([v, diagonal.sum(0)[:, None]], 1)

    start = torch.cat([x, x.new_zeros(b, 1)], 1)
    end = solve(joint, start, 1.0, 0.0, **options).y
    noise, gained = end[:, :d], end[:, d]  # gained: ∫ from 1 to 0, hence its sign
    return -0.5 * (noise.square().sum(1) + d * math.log(2 * math.pi)) + gained
