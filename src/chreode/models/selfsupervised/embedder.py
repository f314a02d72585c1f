"""What every self-supervised module can do, whatever its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...compute.rng import Rng
from ...data.batch import CellBatch
from ...data.source import Source
from ...learn.exact import Batches, principal
from ...module import Loss, Module, Step
from ...nn.spread import collapsed, effective_rank, spread
from ...schema import Spec
from .network import Network, View
from .views import Views

#: Principal components in which genes are grouped to programmes.
COMPONENTS = 50


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

    def __init__(self, options: Any, spec: Spec, *, normed: bool = False) -> None:
        super().__init__()
        options.refuse_form(spec)
        self.options, self.spec = options, spec
        role = spec.either("expression", "counts")
        self.network = Network(options, spec, normed=normed)
        self.views = Views(options, role, spec.n_features(role))
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("rank", torch.zeros(()))

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:
        """Learn the gene programmes that views hide, from principal components of the training rows."""
        if not self.views.lacks_programmes:
            return
        k = min(COMPONENTS, len(rows) - 1, len(self.views.programmes))
        found = principal(lambda: source.batches(rows), k, rng)
        seed = int(rng.numpy("programmes").integers(2**31))
        self.views.learn_programmes((found.axes * found.values.sqrt()).numpy(), seed)

    def two_views(self, batch: CellBatch) -> tuple[View, View]:
        """Return two views of each cell of a minibatch."""
        cells, *partners = batch.aligned(1 + self.options.n_partners)
        first, second = partners or (None, None)
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
        """Look at the embedding of all training cells."""
        embedded = torch.cat([self.embed(batch) for batch in batches()])
        self.spread.copy_(spread(embedded))
        self.rank.copy_(effective_rank(embedded))

    def remarks(self) -> list[str]:
        """Return a note where the embedding has collapsed."""
        width = self.options.n_latent
        if not collapsed(float(self.spread), float(self.rank), width):
            return []
        return [
            f"the embedding has collapsed: cells spread {float(self.spread):.2f} of the sphere and use "
            f"{float(self.rank):.1f} of {width} dimensions, so that distances between them say little"
        ]

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the output of the encoder, fused over what each cell has; projectors are left out."""
        view = self.views.plain(batch)
        return self.network.fuse(self.network.encode(view), view)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per feature."""
        return self.network.feature_weight()
