"""The velocity of points under attributes and depth, and what follows from it: samples and densities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..data.batch import CellBatch
from ..nn.attributes import AttributeEmbedding, read_attributes, sinusoid
from ..nn.residual import ResidualNetwork
from ..ode import solve
from ..schema import Spec
from .density import log_density
from .guidance import guided

#: Masks of the attributes given, and their weights (see `guided`).
Terms = Sequence[tuple[Bool[Tensor, " k"], float]]


class ConditionalField(nn.Module):
    """v(x, t, attributes, depth), learned by flow matching.

    Parameters
    ----------
    spec
        Which attributes there are.
    n_latent, n_depths
        Dimensions of points; modalities whose depth conditions the velocity (0: none).
    width, n_blocks
        Of the residual network.
    conditioning
        How attributes are embedded (see `AttributeEmbedding`).
    """

    def __init__(
        self,
        spec: Spec,
        n_latent: int,
        n_depths: int,
        *,
        width: int,
        n_blocks: int,
        conditioning: Literal["joint", "additive", "both"],
    ) -> None:
        super().__init__()
        self.spec, self.width, self.n_depths = spec, width, n_depths
        self.attributes = AttributeEmbedding(spec, width, conditioning)
        self.time = _two_layers(width, width)
        self.depth = _two_layers(2 * n_depths, width) if n_depths else None
        self.network = ResidualNetwork(n_latent, width, n_blocks, width)

    def forward(
        self,
        x: Float[Tensor, "b z"],
        t: Float[Tensor, " b"],
        batch: CellBatch,
        given: Bool[Tensor, "b k"],
        depth: Float[Tensor, "cells m"],
        times: int = 1,
    ) -> Float[Tensor, "b z"]:
        """Return the velocity of each point.

        Parameters
        ----------
        t
            Time of each point.
        batch
            The cells whose attributes count, of which there are as many as points, or a `times`-th.
        given
            Which of their attributes the velocity is conditioned on.
        depth
            Log depth of each cell, standardised; NaN where not known.
        """
        codes, numbers, has = read_attributes(self.spec, batch)
        code, number, known, log_depth = (v.repeat(times, 1) for v in (codes, numbers, has, depth))
        c = self.time(sinusoid(t, self.width)) + self.attributes(code, number, given & known)
        if self.depth is not None:
            seen = log_depth.isfinite().to(x.dtype)
            c = c + self.depth(torch.cat([log_depth.nan_to_num(), seen], 1))
        return self.network(x, c)

    def transport(
        self,
        x: Float[Tensor, "b z"],
        batch: CellBatch,
        depth: Float[Tensor, "b m"],
        known: Bool[Tensor, "b k"],
        terms: Terms,
        *,
        back: bool = False,
        **solver: Any,
    ) -> Float[Tensor, "b z"]:
        """Move noise to data, or data `back` to noise, under guidance.

        Parameters
        ----------
        known
            Which attributes of each cell can condition the velocity at all.
        terms
            See `guided`.
        solver
            Options of `ode.solve`.
        """
        velocity = guided(self._of(batch, depth, known), terms)
        start, end = (1.0, 0.0) if back else (0.0, 1.0)
        return solve(velocity, x, start, end, **solver).y

    def log_density(
        self,
        x: Float[Tensor, "b z"],
        batch: CellBatch,
        depth: Float[Tensor, "b m"],
        known: Bool[Tensor, "b k"],
        **solver: Any,
    ) -> Float[Tensor, " b"]:
        """Return log p(x | attributes that are `known`, depth) in nats."""
        field = self._of(batch, depth, known)
        return log_density(lambda y, t: field(y, t, torch.ones_like(known)), x, **solver)

    def _of(
        self, batch: CellBatch, depth: Tensor, known: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def velocity(x: Tensor, t: Tensor, given: Tensor) -> Tensor:
            times = len(x) // len(batch)
            return self(x, t.expand(len(x)), batch, given & known.repeat(times, 1), depth, times)

        return velocity


def _two_layers(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.SiLU(), nn.Linear(n_out, n_out))
