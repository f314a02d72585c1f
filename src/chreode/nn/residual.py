"""A residual network of points, a condition added in every block."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualNetwork(nn.Module):
    """h ← h + W₂ SiLU(W₁ SiLU(h) + W_c SiLU(c)), several times; W₂ starts at 0, so each block as nothing."""

    def __init__(self, n_in: int, n_hidden: int, n_blocks: int, n_condition: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_in)
        self.inner = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_blocks))
        self.outer = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_blocks))
        self.condition = nn.ModuleList(nn.Linear(n_condition, n_hidden) for _ in range(n_blocks))
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b z"], c: Float[Tensor, "b c"]) -> Float[Tensor, "b z"]:
        """Return a vector like `x`."""
        h, c = self.first(x), F.silu(c)
        for inner, outer, condition in zip(self.inner, self.outer, self.condition, strict=True):
            h = h + outer(F.silu(inner(F.silu(h)) + condition(c)))
        return self.last(F.silu(h))
