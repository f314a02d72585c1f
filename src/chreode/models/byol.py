"""BYOL: each view of a cell predicts what a slow copy of the network makes of the other one."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.cosine import negative_cosine
from ..module import Loss, Step
from ..nn.target import Target, rising
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Head
from .selfsupervised.options import SelfSupervised, scssl


class BYOLModule(Embedder):
    """An encoder and a projector, a slow copy of both, and a predictor."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.slow = Target(self.network)
        width = self.network.n_projected
        self.predictor = Head(width, (options.predictor, width))

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return minus the cosine of each prediction with the copy's projection of the other view."""
        views = self.two_views(batch)
        (embedded, one), (_, two) = map(self.network, views)
        (_, slow_one), (_, slow_two) = map(self.slow, views)
        forth = negative_cosine(self.predictor(one), slow_two)
        back = negative_cosine(self.predictor(two), slow_one)
        return self.logged((forth + back) / 2, embedded, step)

    def after_step(self, step: Step) -> None:
        """Let the copy follow."""
        self.slow.follow(self.network, rising(self.options.momentum, step.progress))


@config
class BYOL(SelfSupervised):
    """BYOL: each view of a cell predicts what a slow copy of the network makes of the other one.

    For the predictions p, p' from both views and the projections s, s' that the copy makes of them::

        − cos(p, s') / 2 − cos(p', s) / 2

    averaged over cells; the loss of the paper is 4 plus 4 times this. After each step every weight of the
    copy becomes m times itself plus 1 − m times that of the network.

    References
    ----------
    Grill et al. (2020), Bootstrap your own latent: a new approach to self-supervised learning, NeurIPS,
    equations 1 and 2.
    """

    comparable: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(
        projector=(256, 64), predictor=256, momentum=0.996
    )

    projector: tuple[int, ...] = param(
        (256, 64), "Widths of the projector, through which the loss sees the embedding.", low=1
    )
    predictor: int = param(256, "Number of units in the hidden layer of the predictor.", low=1)
    momentum: float = param(
        0.996, "Momentum m of the slow copy at the start; it rises to 1 as a cosine.", low=0, high=1
    )

    def build(self, spec: Spec) -> BYOLModule:
        """Return the untrained tensors."""
        return BYOLModule(self, spec)
