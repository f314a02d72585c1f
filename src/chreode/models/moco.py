"""MoCo: a view of a cell finds the other one among keys of earlier cells."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.infonce import info_nce
from ..module import Loss, Step
from ..nn.queue import Queue
from ..nn.target import Target, rising
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.options import SelfSupervised, scssl


class MoCoModule(Embedder):
    """A network that makes queries, a slow copy of it that makes keys, and a queue of these."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.slow = Target(self.network)
        self.queue = Queue.among(spec.n_cells, self.network.n_projected, options.queue)

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return how badly queries find their keys; the keys are for `after_step`."""
        one, two = self.two_views(batch)
        embedded, query = self.network(one)
        _, key = self.slow(two)
        objective = info_nce(query, key, self.queue.held, self.options.temperature)
        return self.logged(objective, embedded, step, {"keys": F.normalize(key, dim=1)})

    def after_step(self, step: Step) -> None:
        """Let the copy follow, and take in the keys of all processes."""
        self.slow.follow(self.network, rising(self.options.momentum, step.progress))
        self.queue.push(step.group.gather(step.outputs["keys"])[0])


@config
class MoCo(SelfSupervised):
    """MoCo: a view of a cell finds the other one among keys of earlier cells, which a slow copy makes.

    For the query q of one view, the key k of the other one, which a slow copy of the network makes, and
    the keys n_j of a queue, all of length 1::

        −log[ exp(q·k/τ) / (exp(q·k/τ) + Σ_j exp(q·n_j/τ)) ]

    averaged over cells. Each view is a query or a key, not both.

    References
    ----------
    He et al. (2020), Momentum contrast for unsupervised visual representation learning, CVPR, equations 1
    and 2, and algorithm 1.
    """

    comparable: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(
        projector=(64, 64), temperature=0.5, queue=None, momentum=0.996
    )

    temperature: float = param(0.5, "Temperature τ of the loss.", low=1e-3)
    queue: int | None = param(
        None, "Number of keys in the queue; None: 2,048, and at most half of the cells.", low=1
    )
    momentum: float = param(
        0.996, "Momentum of the slow copy at the start; it rises to 1 as a cosine.", low=0, high=1
    )

    def build(self, spec: Spec) -> MoCoModule:
        """Return the untrained tensors."""
        return MoCoModule(self, spec)
