"""Barlow Twins: views of a cell correlate in each dimension, and dimensions do not with each other."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.barlowtwins import barlow_twins
from ..module import Loss, Step
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.options import SelfSupervised, scssl


class BarlowTwinsModule(Embedder):
    """An encoder and a projector."""

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return how far the correlations of two views are from the identity."""
        (embedded, one), (_, two) = map(self.network, self.two_views(batch))
        objective = barlow_twins(one, two, self.options.redundancy, step.group)
        return self.logged(objective, embedded, step)


@config
class BarlowTwins(SelfSupervised):
    """Barlow Twins: views of a cell correlate in each dimension, and dimensions do not with each other.

    With C_ij the correlation, over the cells of a minibatch, of dimension i of one view's projection and
    dimension j of the other's::

        Σ_i (1 − C_ii)²  +  λ Σ_i Σ_j≠i C_ij²

    References
    ----------
    Zbontar et al. (2021), Barlow Twins: self-supervised learning via redundancy reduction, ICML,
    equations 1 and 2.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(projector=(256, 256, 256), redundancy=5e-3)

    projector: tuple[int, ...] = param(
        (256, 256, 256),
        "Widths of the projector, through which the loss sees the embedding.",
        low=1,
    )
    redundancy: float = param(5e-3, "Weight λ of correlations between different dimensions.", low=0)

    def build(self, spec: Spec) -> BarlowTwinsModule:
        """Return the untrained tensors."""
        return BarlowTwinsModule(self, spec)
