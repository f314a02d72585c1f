"""What every self-supervised module can do, whatever its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...compute.rng import Rng
from ...data.batch import CellBatch, SparseRows
from ...data.source import Source
from ...learn.components import having_expression
from ...learn.exact import FitBatches, principal
from ...losses.clip import clip
from ...metrics.classifiers import HeldOut
from ...module import Loss, Module, Option, Step
from ...nn.spread import collapsed, effective_rank, spread
from ...schema import Spec
from .network import Network, View
from .reference import Labelled, Paired, classify_options
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

    unknown = ("paired.proteins",)
    of_cells = ("labelled", "paired")
    spread: Tensor
    rank: Tensor
    projected: Tensor
    n_seen: Tensor

    def __init__(self, options: Any, spec: Spec, *, normed: bool = False) -> None:
        super().__init__()
        options.refuse_form(spec)
        self.options, self.spec = options, spec
        role = spec.either("expression", "counts")
        self.network = Network(options, spec, normed=normed)
        self.views = Views(options, role, spec.n_features(role))
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("rank", torch.zeros(()))
        self.register_buffer("projected", torch.zeros(2))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self.role = role
        labelled, paired = "label" in spec.categories, "protein" in spec.features
        self.labelled = Labelled(spec, self.network.n_embedded) if labelled else None
        self.paired = Paired(spec, options.n_latent) if paired else None
        self.drawn, self.fills = (("protein",), True) if paired else ((), False)
        self.unable = {
            **({} if labelled else {"classify": "Name the label in the fit, as in Schema(label='obs/…')."}),
            **({} if paired else {"predict": "Name protein in the fit, as in Schema(protein='adt:X')."}),
        }  # fmt: skip

    def prepare(self, source: Source, rows: np.ndarray, rng: Rng) -> None:
        """Learn the gene programmes that views hide, from principal components of the training rows."""
        if not self.views.lacks_programmes:
            return
        rows = having_expression(source, rows)
        k = min(COMPONENTS, len(rows) - 1, len(self.views.programmes))
        found = principal(lambda: source.batches(rows), k, rng)
        seed = int(rng.numpy("programmes").integers(2**31))
        loadings = found.axes * found.values.clamp_min(0).sqrt()
        self.views.learn_programmes(loadings.numpy(), seed)

    def forward(self, *args: Any) -> Loss:
        """Return `loss`; ``fusion="clip"`` adds how badly both modalities of a cell find each other."""
        batch, step = args
        loss = self.loss(batch, step)
        if self.network.log_scale is None:
            return loss
        cells = batch.aligned(1 + self.options.n_partners)[0]
        found = self.between(self.views.draw(cells), step)
        return replace(
            loss, objectives={"model": loss.objectives["model"] + found}, terms={**loss.terms, "clip": found},
        )  # fmt: skip

    def between(self, view: View, step: Step) -> Float[Tensor, ""]:
        """Return CLIP's loss of the projections of both modalities, over the cells that have both."""
        one, two = self.network.project(self.network.encode(view), view).values()
        both = view.having(self.network.encoders)
        found = clip(one[both], two[both], self.network.temperature(), step.group)
        return step.mean(found.expand(len(both)), both)  # processes have different numbers of them

    def two_views(self, batch: CellBatch) -> tuple[View, View]:
        """Return two views of each cell of a minibatch."""
        cells, *partners = batch.aligned(1 + self.options.n_partners)
        first, second = partners or (None, None)
        return self.views.draw(cells, first), self.views.draw(cells, second)

    def draw_views(self, batch: CellBatch) -> Sequence[Float[Tensor, "b g"] | SparseRows]:
        """Return the log-expression of both views (see `DrawsViews`)."""
        return [view.values[self.role] for view in self.two_views(batch)]

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
    def solve(self, batches: FitBatches, rng: Rng) -> None:
        """Look at all training cells, and keep what later cells are compared with.

        The embedding ends in a batch norm, which gives every dimension its spread again: where the loss has
        collapsed, the projections tell.
        """
        embedded, projected, both, own = self._look(batches())
        self.n_seen.fill_(len(embedded))
        self.spread.copy_(spread(embedded))
        self.rank.copy_(effective_rank(embedded))
        self.projected.copy_(torch.stack([spread(projected), effective_rank(projected)]))
        if self.labelled is not None:
            held_out = None
            if len(batches.split.validation):
                x, _, _, theirs = self._look(batches.held_out())
                held_out = HeldOut(x.cpu().numpy(), theirs["label"], theirs.get("batch"))
            generator = rng.numpy("labelled")
            self.labelled.keep(
                embedded.cpu().numpy(), own["label"], own.get("batch"), generator, held_out
            )
        if self.paired is not None:
            kept = self.paired.draw(both, rng.numpy("paired"))
            self._keep_pairs(self.paired, batches, kept)

    def _look(
        self, batches: Iterable[CellBatch]
    ) -> tuple[
        Float[Tensor, "n z"],
        Float[Tensor, "n p"],
        Bool[Tensor, " n"],
        dict[str, Int[np.ndarray, " n"]],
    ]:
        """Return embedding and projection, which cells have every modality, and their labels and batches."""
        found, columns, both = [], [], []
        for batch in batches:
            view = self.views.plain(batch)
            found.append(self.network(view))
            columns.append({name: batch[name] for name in ("label", "batch") if name in batch})
            both.append(view.having(self.network.encoders))
        embedded, projected = (torch.cat(parts) for parts in zip(*found, strict=True))
        own = {name: torch.cat([c[name] for c in columns]).cpu().numpy() for name in columns[0]}
        return embedded, projected, torch.cat(both), own

    def _keep_pairs(self, paired: Paired, batches: FitBatches, kept: Bool[Tensor, " n"]) -> None:
        x, proteins, start = [], [], 0
        for batch in batches():
            here = kept[start : start + len(batch)]
            start += len(batch)
            x.append(self.network.encode_role(self.role, self.views.plain(batch))[here])
            proteins.append(batch["protein"][here])
        paired.keep(torch.cat(x), torch.cat(proteins))

    def verb_options(self, verb: str) -> Mapping[str, Option]:
        """Return the classifier, and the threshold of what is unseen."""
        return (
            {} if self.labelled is None or verb != "classify" else classify_options(self.labelled)
        )

    def classify(self, batch: CellBatch, method: Any, unseen: float) -> dict[str, Tensor]:
        """Return the probability of every label, how new each cell is, and which are called unseen."""
        assert self.labelled is not None
        x = self.embed(batch).cpu().numpy()
        probability, novelty = map(torch.from_numpy, self.labelled.judge(x, method))
        return {"probability": probability, "novelty": novelty, "unseen": novelty > unseen}

    def predict(self, batch: CellBatch, to: CellBatch) -> dict[str, Tensor]:  # noqa: ARG002 (the contract)
        """Return the mean of measured proteins in the training cells of nearest expression."""
        assert self.paired is not None
        x = self.network.encode_role(self.role, self.views.plain(batch))
        return {"protein": self.paired.nearest_mean(x)}

    def remarks(self) -> list[str]:
        """Return notes where the embedding, or what the loss compares, has collapsed."""
        network = self.network
        looks = [
            (
                "the embedding has",
                "distances between them say little",
                network.n_embedded,
                self.spread,
                self.rank,
            )
        ]
        if len(network.projectors):
            no_more = (
                "the loss no longer tells cells apart, and the embedding learned little from it"
            )
            width = min(network.n_projected, network.n_embedded)
            looks.append(("the projections have", no_more, width, *self.projected))
        return [
            f"{what} collapsed: cells spread {float(spread):.2f} of the sphere, with an effective rank of "
            f"{float(rank):.1f}, so that {so}"
            for what, so, width, spread, rank in looks
            if collapsed(float(spread), float(rank), min(width, int(self.n_seen) - 1))
        ]

    def embed(self, batch: CellBatch) -> Float[Tensor, "b z"]:
        """Return the output of the encoder, fused over what each cell has; projectors are left out."""
        view = self.views.plain(batch)
        return self.network.fuse(self.network.encode(view), view)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the encoder's weights per feature."""
        return self.network.feature_weight()
