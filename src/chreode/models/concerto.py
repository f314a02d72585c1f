"""Concerto: a network that attends to genes and a plain one find the same cell, dropout apart."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import config, param
from ..data.batch import CellBatch, SparseRows
from ..losses.ntxent import nt_xent
from ..module import Loss, Step
from ..nn.blocks import BatchNorm, Linear
from ..schema import Spec
from .selfsupervised.embedder import Embedder
from .selfsupervised.network import Network
from .selfsupervised.options import SelfSupervised, scssl
from .selfsupervised.views import stored

#: Stands for minus infinity where a gene is not expressed, and leaves cells without any at 0, not NaN.
_NEVER = -1e9


class Attention(nn.Module):
    """Sums the vectors of a cell's genes, each by its value and by how much the cell attends to it.

    Attributes
    ----------
    vectors
        One for each gene.
    context
        What keys are compared with.

    References
    ----------
    Yang, Z. et al. (2016), Hierarchical attention networks for document classification, NAACL, equations 5
    to 7, with the values of genes as Yang, M. et al. (2022) take them in.
    """

    def __init__(self, n_features: int, width: int, n_attention: int) -> None:
        super().__init__()
        self.norm = BatchNorm(1)
        self.vectors = nn.Parameter(torch.randn(n_features, width) / width**0.5)
        self.key = Linear(width, n_attention)
        self.context = nn.Parameter(torch.randn(n_attention) / n_attention**0.5)

    def forward(self, x: SparseRows) -> Float[Tensor, "b w"]:
        """Return tanh Σ_j a_ij s_ij v_j over what is stored of each cell."""
        weight, value = self.weights(x)
        return torch.tanh((weight * value) @ self.vectors)

    def weights(self, x: SparseRows) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"]]:
        """Return how much each cell attends to each gene, which adds up to 1, and the scaled values.

        a_ij = softmax_j u·tanh(W s_ij v_j + b), over the genes that are stored. As s_ij is a number, W v_j
        is computed once for each gene.
        """
        scaled = self.norm(x.values[:, None])
        keys = F.embedding(x.columns, self.vectors @ self.key.weight)
        score = torch.tanh(torch.addcmul(self.key.bias, scaled, keys)) @ self.context
        at = x.cells * x.n_features + x.columns
        return (
            _placed(score, at, x, _NEVER).softmax(1), _placed(scaled[:, 0], at, x, 0.0)
        )  # fmt: skip


def _placed(
    values: Float[Tensor, " n"], at: Tensor, x: SparseRows, elsewhere: float
) -> Float[Tensor, "b g"]:
    """Return a table of cells and genes with these values at what is stored."""
    table = values.new_full((len(x) * x.n_features,), elsewhere)
    return table.index_put((at,), values).view(len(x), x.n_features)


class Attending(nn.Module):
    """Attention over genes → batch norm → dropout → linear → batch norm."""

    def __init__(self, n_features: int, options: Any) -> None:
        super().__init__()
        width, n_latent, self.dropout = options.n_hidden, options.n_latent, options.dropout
        self.attention = Attention(n_features, width, options.n_attention)
        self.pooled = BatchNorm(width)
        self.last, self.norm = Linear(width, n_latent), BatchNorm(n_latent)

    def forward(self, x: Float[Tensor, "b g"] | SparseRows) -> Float[Tensor, "b z"]:
        """Return the embedding."""
        x = stored(x)
        x = x.where(x.values != 0)  # a zero is no expression, stored or not
        h = self.pooled(self.attention(x))
        found: Tensor = self.norm(self.last(F.dropout(h, self.dropout, self.training)))
        return found


class Teacher(Network):
    """The network of all self-supervised models, with encoders that attend to genes."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.encoders = nn.ModuleDict(
            {role: Attending(spec.n_features(role), options) for role in self.encoders}
        )

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the length of each gene's vector."""
        heads: Any = self.encoders
        return {role: head.attention.vectors.detach().norm(dim=1) for role, head in heads.items()}


class ConcertoModule(Embedder):
    """A teacher, which embeds cells, and a student."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.student = self.network
        heads: Any = self.student.encoders
        for head in heads.values():
            head.trunk.dropout = options.dropout
        self.network = Teacher(options, spec)

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return NT-Xent of what teacher and student make of the same cells."""
        first, second = self.two_views(batch)
        embedded, teacher = self.network(first)
        _, student = self.student(second)
        objective = nt_xent(teacher, student, self.options.temperature, step.group)
        return self.logged(objective, embedded, step)


@config
class Concerto(SelfSupervised):
    """Concerto: a teacher that attends to genes and a plain student find the same cell, dropout apart.

    The teacher's embedding of a cell with the values x_j of its genes, which a batch norm scales to s_j, is
    made of Σ_j a_j s_j v_j, with a vector v_j for each gene and attention::

        a_j = softmax_j u·tanh(W s_j v_j + b)

    over the genes that the cell expresses. Both learn by NT-Xent: for N cells, with z_i of the teacher and
    z_i' of the student::

        −log[ exp(z_i·z_i'/τ) / Σ exp(z_i·z/τ) ]     over the 2N − 1 other vectors z of length 1

    averaged over both vectors of all cells.

    References
    ----------
    Yang et al. (2022), Contrastive learning enables rapid mapping to multimodal single-cell atlas of
    multimillion scale, Nature Machine Intelligence 4:696; the loss is that of Chen et al. (2020), A simple
    framework for contrastive learning of visual representations, ICML, equation 1.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(augment=())

    augment: tuple[str, ...] = param(
        (),
        "Augmentations, beside dropout, which act in this order: thin (counts), mnn or bbknn, programmes, "
        "mask, swap, crossover, noise.",
    )
    dropout: float = param(
        0.1, "Share of hidden units that are set to 0 in training, anew for each network.",
        low=0, high=0.99,
    )  # fmt: skip
    n_attention: int = param(
        32, "Number of dimensions in which the teacher compares genes with its context.", low=1
    )
    max_epochs: int | None = param(
        100,
        "Largest number of passes over the training cells; None: 400, and fewer above 20,000 cells.",
        low=1,
    )
    temperature: float = param(0.1, "Temperature τ of the loss.", low=1e-3)

    def build(self, spec: Spec) -> ConcertoModule:
        """Return the untrained tensors."""
        return ConcertoModule(self, spec)
