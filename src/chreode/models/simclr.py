"""SimCLR: two views of a cell find each other among the views of all cells."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import config, param
from ..data.batch import CellBatch
from ..losses.ntxent import nt_xent
from ..module import Loss, Step
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.options import SelfSupervised, scssl


class SimCLRModule(Embedder):
    """An encoder and a projector."""

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return NT-Xent of the projections of two views."""
        (embedded, one), (_, two) = map(self.network, self.two_views(batch))
        return self.logged(nt_xent(one, two, self.options.temperature, step.group), embedded, step)


@config
class SimCLR(SelfSupervised):
    """SimCLR: two views of a cell find each other among the views of all cells.

    For cell i of N, with views z_i and z_i' of length 1::

        −log[ exp(z_i·z_i'/τ) / Σ exp(z_i·z/τ) ]     over the 2N − 1 other views z

    averaged over both views of all cells.

    References
    ----------
    Chen et al. (2020), A simple framework for contrastive learning of visual representations, ICML,
    equation 1.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(temperature=0.5)

    temperature: float = param(0.2, "Temperature τ of the loss.", low=1e-3)

    def build(self, spec: Spec) -> SimCLRModule:
        """Return the untrained tensors."""
        return SimCLRModule(self, spec)
