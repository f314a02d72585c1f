"""NNCLR: the nearest of earlier cells stands in for a view, and finds the other one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.nnclr import nnclr
from ..module import Loss, Step
from ..nn.queue import Queue
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Head
from .selfsupervised.options import SelfSupervised, scssl


class NNCLRModule(Embedder):
    """An encoder, a projector that ends in a batch norm, a predictor, and a bank of projections."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec, normed=True)
        width = self.network.n_projected
        self.predictor = Head(width, (options.predictor, width))
        self.bank = Queue.among(spec.n_cells, width, options.queue)

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return how badly neighbours find predictions; projections of one view are for `after_step`."""
        (embedded, one), (_, two) = map(self.network, self.two_views(batch))
        objective = nnclr(
            one, two, self.predictor(one), self.predictor(two), self.bank.held,
            self.options.temperature, step.group,
        )  # fmt: skip
        return self.logged(objective, embedded, step, {"keys": F.normalize(one, dim=1)})

    def after_step(self, step: Step) -> None:
        """Take in the projections of all processes."""
        self.bank.push(step.group.gather(step.outputs["keys"])[0])


@config
class NNCLR(SelfSupervised):
    """NNCLR: the nearest of earlier cells stands in for a view, and finds the other one.

    With NN(z_i) the nearest to the projection z_i of a view in a bank of earlier cells, and p_k the
    prediction from the other view of cell k, all of length 1::

        −log[ exp(NN(z_i)·p_i/τ) / Σ_k exp(NN(z_i)·p_k/τ) ]     over all cells k of the minibatch

    averaged over both views of all cells. The bank begins with random directions, which are gone before
    the first epoch ends.

    References
    ----------
    Dwibedi et al. (2021), With a little help from my friends: nearest-neighbor contrastive learning of
    visual representations, ICCV, equations 2 to 4.
    """

    comparable: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(
        projector=(64, 64), predictor=64, temperature=0.5, queue=None
    )

    predictor: int = param(64, "Number of units in the hidden layer of the predictor.", low=1)
    temperature: float = param(0.2, "Temperature τ of the loss.", low=1e-3)
    queue: int | None = param(
        None,
        "Number of earlier cells among which neighbours are sought; None: 2,048, and at most half of the "
        "cells.",
        low=1,
    )

    def build(self, spec: Spec) -> NNCLRModule:
        """Return the untrained tensors."""
        return NNCLRModule(self, spec)
