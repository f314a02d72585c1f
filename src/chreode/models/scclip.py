"""ScCLIP: RNA and the proteins or open chromatin of a cell find each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..compute.processes import Group
from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch, SparseRows
from ..data.source import Source
from ..errors import DataError, counted
from ..learn.phase import Split
from ..module import Loss, Step
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Network, View
from .selfsupervised.options import Encoding, scssl

#: Largest factor of cosines, as in CLIP.
_LARGEST = math.log(100)
#: Logit of what is no candidate; not minus infinity, of which alone there would be no gradient but NaN.
_NEVER = -1e4


class Sphere(Network):
    """Encoders that place cells on one unit sphere."""

    def encode(self, view: View) -> dict[str, Float[Tensor, "b z"]]:
        """Return the place by kind of measurement, and 0 where that lacks."""
        return {role: F.normalize(x, dim=1) for role, x in super().encode(view).items()}


class ScCLIPModule(Embedder):
    """An encoder for each of two kinds of measurements, into one space, and a temperature."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.network = Sphere(options, spec)
        self.scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))

    def view_of(self, batch: CellBatch) -> View:
        """Return the only view of each cell, whose two kinds of measurements are each other's positives."""
        cells, *partners = batch.aligned(1 + self.options.n_partners)
        return self.views.draw(cells, *partners[:1])

    def draw_views(self, batch: CellBatch) -> Sequence[Float[Tensor, "b g"] | SparseRows]:
        """Return the log-expression of the view (see `DrawsViews`)."""
        return [self.view_of(batch).values[self.role]]

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the mean of both cross-entropies, over cells that have both kinds of measurements."""
        cells, view = batch.aligned(1 + self.options.n_partners)[0], self.view_of(batch)
        placed = self.network.encode(view)
        one, two = placed.values()
        both = torch.ones(len(cells), dtype=torch.bool, device=cells.rows.device)
        for role in placed:
            both = both & view.present.get(role, both)
        factor = self.scale.clamp(max=_LARGEST).exp()
        forth = found(one * factor, two, both, step.group)
        back = found(two * factor, one, both, step.group)
        objective = step.mean((forth + back) / 2, both)
        embedded = self.network.fuse(placed, view)
        return self.logged(objective, embedded, step, temperature=1 / factor.detach())


def found(
    query: Float[Tensor, "b z"],
    keys: Float[Tensor, "b z"],
    known: Bool[Tensor, " b"],
    group: Group,
) -> Float[Tensor, " b"]:
    """Return minus the log-probability that each query has for its own key, in nats.

    Candidates are the keys of known cells of the whole minibatch. The loss of cells that are not known
    means nothing.
    """
    every, at = group.gather(keys)
    there, _ = group.gather(known.to(keys))
    logits = (query @ every.T).masked_fill(there == 0, _NEVER)
    return F.cross_entropy(logits, at, reduction="none")


@config
class ScCLIP(Encoding):
    """ScCLIP: RNA and the proteins or open chromatin of a cell find each other.

    An encoder for each kind of measurement places cells on one unit sphere. For the places x_i and y_i of
    the N cells of a minibatch that have both kinds::

        − Σ_i ( log[ exp(x_i·y_i/τ) / Σ_j exp(x_i·y_j/τ) ] + log[ exp(x_i·y_i/τ) / Σ_j exp(x_j·y_i/τ) ] ) / 2N

    τ is learned. A cell is embedded at the mean of its places, or at the only one that it has. Proteins are
    centred log-ratios, and a peak is open or not.

    References
    ----------
    Xiong et al. (2023), scCLIP: multi-modal single-cell contrastive learning integration pre-training,
    NeurIPS AI for Science workshop; the loss is that of Radford et al. (2021), Learning transferable visual
    models from natural language supervision, ICML, figure 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("expression|counts", "protein|accessibility")
    uses: ClassVar[tuple[str, ...]] = ("batch", "label")

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(augment=("mask",), fusion="mean")

    fusion: Literal["concat", "mean", "add"] = param(
        "mean",
        "How the places of a cell become its embedding: averaged over what it has, added, or side by side "
        "(concat).",
    )
    temperature: float = param(
        0.37, "Temperature τ of the loss at the start; it is learned, and at least 0.01.", low=0.01
    )

    def build(self, spec: Spec) -> ScCLIPModule:
        """Return the untrained tensors."""
        return ScCLIPModule(self, spec)

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Return `rows` to learn from, and a share of them, or those named, to validate on.

        Raises
        ------
        DataError
            If fewer than two cells to learn from have both kinds of measurements; or of cells that are named
            to validate on, no more than there are minibatches of them, as each may then hold a single one.
        """
        split = super().split(source, rows, validation, rng)
        one, two = source.matrices
        both = source.measured(one) & source.measured(two)
        n, n_held_out = (int(both[some].sum()) for some in (split.train, split.validation))
        if n < 2:
            raise DataError(
                f"{counted(n, 'cell')} of {len(split.train)} to learn from {'has' if n == 1 else 'have'} "
                f"both {one} and {two}, and ScCLIP learns from such cells alone. Give cells with both, or "
                "take a model of one of them."
            )
        least = 1 + self.sampler().n_batches(source, split.validation)
        if not len(split.validation) or n_held_out >= least:
            return split
        if split.named:
            raise DataError(
                f"validation names {counted(len(split.validation), 'cell')}, of which {n_held_out} "
                f"{'has' if n_held_out == 1 else 'have'} both {one} and {two}. ScCLIP compares such cells. "
                f"Name {least} of them or more, or none (validation=0)."
            )
        return split.whole()  # by chance, where few are held out
