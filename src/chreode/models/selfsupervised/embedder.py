"""What every self-supervised module can do, whatever its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...compute.rng import Rng
from ...data.batch import CellBatch
from ...learn.exact import Batches
from ...module import Loss, Module, Step
from ...nn.spread import collapsed, effective_rank, spread
from ...schema import Spec
from .network import Network, View
from .views import Views


class Embedder(Module):
    """A network, the views that it learns from, and what is known of its embedding.

    Parameters
    ----------
    options
        See `SelfSupervised`.
    normed
        Whether a batch norm ends the projector.
    """

    spread: Tensor
    rank: Tensor
    projected: Tensor

    def __init__(self, options: Any, spec: Spec, *, normed: bool = False) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        role = spec.either("expression", "counts")
        self.network = Network(options, spec, normed=normed)
        self.views = Views(options, role, spec.n_features(role))
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("rank", torch.zeros(()))
        self.register_buffer("projected", torch.zeros(2))

    def two_views(self, batch: CellBatch) -> tuple[View, View]:
        """Return two views of each cell of a minibatch."""
        cells, *partners = batch.aligned(1 + self.options.n_partners)
        first, second = (partners * 2)[:2] if partners else (None, None)
        return self.views.draw(cells, first), self.views.draw(cells, second)

    def logged(
        self,
        objective: Float[Tensor, ""],
        embedded: Float[Tensor, "b z"],
        step: Step,
        outputs: Mapping[str, Tensor] | None = None,
        **terms: Float[Tensor, ""],
    ) -> Loss:
        """Return a loss, with how the embedding spreads beside it."""
        every, _ = step.group.gather(embedded.detach())
        told = {"spread": spread(every), "effective_rank": effective_rank(every)}
        return Loss({"model": objective}, {**terms, **told}, outputs or {})

    @torch.no_grad()
    def solve(self, batches: Batches, rng: Rng) -> None:  # noqa: ARG002 (the contract)
        """Look at the embedding and the projections of all training cells.

        The embedding ends in a batch norm, which gives every dimension its spread again: where the loss has
        collapsed, the projections tell.
        """
        found = [self.network(self.views.plain(batch)) for batch in batches()]
        embedded, projected = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.spread.copy_(spread(embedded))
        self.rank.copy_(effective_rank(embedded))
        self.projected.copy_(torch.stack([spread(projected), effective_rank(projected)]))

    def remarks(self) -> list[str]:
        """Return notes where the embedding, or what the loss compares, has collapsed."""
        looks = [("the embedding has", "distances between them say little", self.spread, self.rank)]
        if len(self.network.projectors):
            no_more = (
                "the loss no longer tells cells apart, and the embedding learned little from it"
            )
            looks.append(("the projections have", no_more, *self.projected))
        return [
            f"{what} collapsed: cells spread {float(spread):.2f} of the sphere, with an effective rank of "
            f"{float(rank):.1f}, so that {so}"
            for what, so, spread, rank in looks
            if collapsed(float(spread), float(rank), self.options.n_latent)
        ]

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the output of the encoder, fused over what each cell has; projectors are left out."""
        view = self.views.plain(batch)
        return self.network.fuse(self.network.encode(view), view)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per feature."""
        return self.network.feature_weight()
