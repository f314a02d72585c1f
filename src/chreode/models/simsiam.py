"""SimSiam: each view of a cell predicts the other one, which is held still."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.cosine import negative_cosine
from ..module import Loss, Step
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Head
from .selfsupervised.options import SelfSupervised, scssl


class SimSiamModule(Embedder):
    """An encoder, a projector that ends in a batch norm, and a predictor."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec, normed=True)
        width = self.network.n_projected
        self.predictor = Head(width, (options.predictor, width))

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return minus the cosine of each prediction with the projection of the other view."""
        (embedded, one), (_, two) = map(self.network, self.two_views(batch))
        forth = negative_cosine(self.predictor(one), two)
        back = negative_cosine(self.predictor(two), one)
        return self.logged((forth + back) / 2, embedded, step)


@config
class SimSiam(SelfSupervised):
    """SimSiam: each view of a cell predicts the other one, without other cells to compare with.

    For the projections z, z' of both views and their predictions p, p'::

        − cos(p, stop(z')) / 2 − cos(p', stop(z)) / 2

    averaged over cells. No gradient flows through stop: otherwise all cells would get one place.

    References
    ----------
    Chen & He (2021), Exploring simple siamese representation learning, CVPR, equations 1 to 4.
    """

    comparable: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(projector=(64, 32), predictor=16)

    projector: tuple[int, ...] = param(
        (64, 32), "Widths of the projector, through which the loss sees the embedding.", low=1
    )
    predictor: int = param(16, "Number of units in the hidden layer of the predictor.", low=1)

    def build(self, spec: Spec) -> SimSiamModule:
        """Return the untrained tensors."""
        return SimSiamModule(self, spec)
