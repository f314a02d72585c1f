"""Masked autoencoder: hidden genes of a cell are told from those that are seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch, SparseRows
from ..errors import ConfigError
from ..learn.exact import FitBatches
from ..losses.masked import masked_error
from ..module import Loss, Step
from ..nn.augment import coins
from ..nn.blocks import BatchNorm
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Head, View
from .selfsupervised.options import Encoding, scssl


class MaskedAutoencoderModule(Embedder):
    """An encoder of what is seen, and a decoder of the embedding to all features of each modality."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        roles = [*self.network.encoders]
        n_embedded = options.n_latent * (len(roles) if options.fusion == "concat" else 1)
        self.decoders = nn.ModuleDict(
            {r: Head(n_embedded, (*options.decoder, spec.n_features(r))) for r in roles}
        )

    def shown_and_hidden(self, batch: CellBatch) -> tuple[View, dict[str, Bool[Tensor, "b g"]]]:
        """Return what the encoder sees of each cell, and which features are hidden from it."""
        cells, *partners = batch.aligned(1 + self.options.n_partners)
        view = self.views.draw(cells, *partners[:1])
        seen, hidden = {}, {}
        for role, values in view.values.items():
            x = _dense(values)
            hidden[role] = coins(self.options.mask, x.numel(), x.device).view_as(x)
            seen[role] = x.masked_fill(hidden[role], 0.0)
        return View(seen, view.present), hidden

    def draw_views(self, batch: CellBatch) -> Sequence[Float[Tensor, "b g"] | SparseRows]:
        """Return the log-expression that the encoder sees (see `DrawsViews`)."""
        return [self.shown_and_hidden(batch)[0].values[self.role]]

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the squared error of hidden features, a mean per modality."""
        shown, hidden = self.shown_and_hidden(batch)
        cells, *_ = batch.aligned(1 + self.options.n_partners)
        truth = self.views.plain(cells)
        embedded = self.network.fuse(self.network.encode(shown), shown)
        errors = [
            masked_error(
                decoder(embedded), _dense(truth.values[role]),
                hidden[role] & cells.measured(role)[1].bool(), step.group,
            )
            for role, decoder in self.decoders.items()
        ]  # fmt: skip
        return self.logged(torch.stack(errors).sum(), embedded, step)

    @torch.no_grad()
    def solve(self, batches: FitBatches, rng: Rng) -> None:
        """Let the batch norms of the encoders normalise by whole cells, as `embed` shows them; look at all.

        They learned from cells of which genes were hidden, which have other means and variances.
        """
        norms = [part for part in self.network.encoders.modules() if isinstance(part, BatchNorm)]
        for norm in norms:  # in the order in which cells go through them
            sums: list[Tensor] = []

            def add(_: Any, inputs: tuple[Tensor], sums: list[Tensor] = sums) -> None:
                x = inputs[0].double()
                sums.append(torch.stack([torch.ones_like(x), x, x.square()]).sum(1))

            handle = norm.register_forward_pre_hook(add)
            for batch in batches():
                self.network.encode(self.views.plain(batch))
            handle.remove()
            n, total, squares = torch.stack(sums).sum(0)
            norm.get_buffer("running_mean").copy_(total / n)
            norm.get_buffer("running_var").copy_(squares / n - (total / n).square())
        super().solve(batches, rng)


def _dense(x: Float[Tensor, "b g"] | SparseRows) -> Float[Tensor, "b g"]:
    return x.dense() if isinstance(x, SparseRows) else x


@config
class MaskedAutoencoder(Encoding):
    """Masked autoencoder: hidden genes of a cell are told from those that are seen.

    Of each cell x a share of all genes is hidden, expressed or not. A decoder D reads what an encoder f
    makes of the others::

        mean over hidden genes g of (x_g − D(f(x seen))_g)²

    References
    ----------
    He et al. (2022), Masked autoencoders are scalable vision learners, CVPR, section 3; Richter et al.
    (2025), Delineating the effective use of self-supervised learning in single-cell genomics, Nature
    Machine Intelligence (half of the genes, at random).
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(augment=(), mask=0.5)

    augment: tuple[str, ...] = param(
        (),
        "Augmentations of what is seen, which act in this order: thin (counts), mnn or bbknn, programmes, "
        "swap, crossover, noise.",
    )
    mask: float = param(
        0.5, "Share of genes that are hidden and have to be told.", low=0.01, high=0.99
    )
    decoder: tuple[int, ...] = param(
        (128,), "Number of units in each hidden layer of the decoder.", low=1
    )
    fusion: Literal["concat", "mean", "add"] = param(
        "concat", "How several modalities become one: side by side, averaged or added."
    )

    def validate(self) -> None:
        """Refuse what cannot be."""
        super().validate()
        if "mask" in self.augment:
            raise ConfigError(
                "augment names 'mask', and this model always masks. Set mask to the share of genes that "
                "are hidden."
            )

    def build(self, spec: Spec) -> MaskedAutoencoderModule:
        """Return the untrained tensors."""
        return MaskedAutoencoderModule(self, spec)
