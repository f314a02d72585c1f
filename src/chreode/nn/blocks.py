"""Layers conditioned on covariates, and the encoders and decoders made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..compute.processes import total
from ..data.batch import SparseRows
from .sparse import sparse_linear


class CategoryTable(nn.Module):
    """A row of parameters per category, kept in blocks.

    Categories that a later fit brings get a block of their own, so that neither a gradient nor
    weight decay can touch the older rows.
    """

    def __init__(self, blocks: Sequence[int], width: int, bound: float | None = None) -> None:
        super().__init__()
        self.blocks = nn.ParameterList(
            # randn, as nn.init.normal_ without memory (`load`) would import torch's compiler: a second
            nn.Parameter(
                torch.randn(n, width)
                if bound is None
                else torch.empty(n, width).uniform_(-bound, bound)
            )
            for n in blocks
        )

    def forward(self, codes: Int[Tensor, " b"]) -> Float[Tensor, "b w"]:
        """Return the row of each cell's category."""
        return F.embedding(codes, self.table())

    def table(self) -> Float[Tensor, "categories w"]:
        """Return all rows."""
        return self.blocks[0] if len(self.blocks) == 1 else torch.cat(list(self.blocks))


class CategoryStatistics(nn.Module):
    """Mean and standard deviation of a quantity per category, kept in blocks like `CategoryTable`."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        for i, n in enumerate(blocks):
            self.register_buffer(f"block_{i}", torch.full((n, 2), torch.nan))

    def fill(self, values: Float[Tensor, " cells"], codes: Int[Tensor, " cells"]) -> None:
        """Take the statistics of the categories that have none yet.

        A spread cannot be estimated from one cell or equal cells: it is kept above 0.01. A category without
        cells, all of which were held out, has those of all cells.
        """
        start = 0
        for block in self.buffers():
            for row in range(len(block)):
                if bool(block[row].isnan().any()):
                    mine = values[codes == start + row]
                    mine = mine if len(mine) else values
                    scale = mine.std(correction=0).clamp_min(0.01)
                    block[row] = torch.stack([mine.mean(), scale])
            start += len(block)

    def forward(self, codes: Int[Tensor, " b"]) -> Float[Tensor, "b 2"]:
        """Return (mean, standard deviation) of each cell's category."""
        return F.embedding(codes, torch.cat(list(self.buffers())))


class Linear(nn.Module):
    """``h @ weight + bias`` for dense or sparse rows.

    The weight is inputs x outputs, unlike that of torch: wide inputs (the genes of an encoder) and
    wide outputs (those of a decoder) then lie in memory as the products need them.
    """

    def __init__(self, n_in: int, n_out: int, fan_in: int | None = None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in or n_in)
        self.weight = nn.Parameter(torch.empty(n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    def forward(self, h: Float[Tensor, "*b n_in"] | SparseRows) -> Float[Tensor, "*b n_out"]:
        """Return the layer's output; sparse rows are not made dense."""
        if isinstance(h, SparseRows):
            return sparse_linear(h, self.weight.t(), self.bias)
        return F.linear(h, self.weight.t(), self.bias)


class ConditionedLinear(nn.Module):
    """A linear layer of features and covariates: ``W h + Σ_c V_c[category] + U continuous + bias``.

    It equals a linear layer on [h, one-hots, continuous], without making the one-hots.
    """

    def __init__(
        self, n_in: int, n_out: int, categories: Sequence[Sequence[int]] = (), n_continuous: int = 0
    ) -> None:
        super().__init__()
        fan_in = n_in + sum(sum(blocks) for blocks in categories) + n_continuous
        bound = 1 / math.sqrt(fan_in)
        self.linear = Linear(n_in, n_out, fan_in)
        self.tables = nn.ModuleList(CategoryTable(blocks, n_out, bound) for blocks in categories)
        self.slope = nn.Linear(n_continuous, n_out, bias=False) if n_continuous else None

    def forward(
        self,
        h: Float[Tensor, "b n_in"] | SparseRows,
        categories: Int[Tensor, "b c"] | None = None,
        continuous: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n_out"]:
        """Return the layer's output."""
        out = self.linear(h)
        for i, table in enumerate(self.tables):
            assert categories is not None
            out = out + table(categories[:, i])
        return out if self.slope is None or continuous is None else out + self.slope(continuous)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm whose running statistics hold nothing of their start, in one process or several.

    torch's forgets where its running statistics began, at mean 0 and variance 1, with its momentum: at
    0.01 a fit of a few hundred cells ends before that, and then answers with another network than was
    trained. Here the first minibatch replaces the start, and all have the weights that Adam gives to
    gradients (Kingma & Ba 2015, section 3). Several processes share the statistics of their joint
    minibatch; torch's own layer for that does not run on CPUs.
    """

    joint = False

    def forward(self, x: Float[Tensor, "b h"]) -> Float[Tensor, "b h"]:
        """Return normalised activations."""
        if not self.training:
            return super().forward(x)
        if not self.joint:
            mean, variance = torch.zeros(2, x.shape[1], device=x.device)  # where torch leaves them
            out = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            self._remember(mean, variance)
            return out
        wide = widened(x)
        n = total(wide.new_tensor(float(len(x))))
        mean = total(wide.sum(0)) / n
        centred = wide - mean
        variance = total(centred.square().sum(0)) / n
        self._remember(mean, variance * (n / (n - 1)))
        out = torch.addcmul(self.bias, centred, self.weight * (variance + self.eps).rsqrt())
        return out.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Float[Tensor, " h"], variance: Float[Tensor, " h"]) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = -self.momentum / torch.expm1(self.num_batches_tracked * math.log1p(-self.momentum))
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def cells_of_all(n: Int[Tensor, ""], norm: BatchNorm) -> Int[Tensor, ""]:
    """Return a number of cells, added up over the processes whose statistics `norm` looks at."""
    return total(n) if norm.joint and norm.training else n


def share_statistics(module: nn.Module, *, among_processes: bool) -> None:
    """Say whether the batch norms of `module` look at all processes or at this one alone."""
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            layer.joint = among_processes


class MLP(nn.Module):
    """Linear → batch norm → activation → dropout, with the covariates entering at every layer."""

    def __init__(
        self,
        n_in: int,
        widths: Sequence[int],
        *,
        activation: Literal["relu", "elu"] = "relu",
        dropout: float = 0.0,
        momentum: float = 0.01,
        categories: Sequence[Sequence[int]] = (),
        n_continuous: int = 0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConditionedLinear(a, b, categories, n_continuous) for a, b in pairwise([n_in, *widths])
        )
        self.norms: Any = nn.ModuleList(BatchNorm(b, eps=1e-3, momentum=momentum) for b in widths)
        self.activation = getattr(F, activation)
        self.dropout = dropout

    def forward(
        self,
        h: Float[Tensor, "b n_in"] | SparseRows,
        categories: Int[Tensor, "b c"] | None = None,
        continuous: Float[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n_hidden"] | SparseRows:
        """Return the last layer's activations."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            active = self.activation(norm(layer(h, categories, continuous)))
            h = F.dropout(active, self.dropout, self.training) if self.dropout else active
        return h


class GaussianEncoder(nn.Module):
    """An MLP with two heads: mean and variance of a diagonal Gaussian."""

    def __init__(
        self,
        n_in: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        *,
        dropout: float = 0.0,
        categories: Sequence[Sequence[int]] = (),
        n_continuous: int = 0,
        min_variance: float = 1e-4,
    ) -> None:
        super().__init__()
        self.trunk = MLP(
            n_in,
            [n_hidden] * n_layers,
            dropout=dropout,
            categories=categories,
            n_continuous=n_continuous,
        )
        width = n_hidden if n_layers else n_in
        self.mean = Linear(width, n_latent)
        self.log_variance = Linear(width, n_latent)
        self.min_variance = min_variance

    def forward(
        self,
        x: Float[Tensor, "b n_in"] | SparseRows,
        categories: Int[Tensor, "b c"] | None = None,
        continuous: Float[Tensor, "b k"] | None = None,
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Return mean and variance."""
        h = self.trunk(x, categories, continuous)
        return widened(self.mean(h)), torch.exp(widened(self.log_variance(h))) + self.min_variance


def widened(x: Float[Tensor, "*b z"]) -> Float[Tensor, "*b z"]:
    """Return what mixed precision computed in 16 bits as float32: sums are none for 16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def input_weight(encoder: GaussianEncoder) -> Float[Tensor, " n_in"]:
    """Return the norm of the first layer's weights, per input."""
    first: Any = encoder.trunk.layers[0] if len(encoder.trunk.layers) else encoder
    layer = first.linear if len(encoder.trunk.layers) else first.mean
    return layer.weight.detach().norm(dim=1)


def reparametrise(
    mean: Float[Tensor, "*b z"], variance: Float[Tensor, "*b z"]
) -> Float[Tensor, "*b z"]:
    """Draw from a diagonal Gaussian so that gradients reach its parameters (Kingma & Welling 2014)."""
    return mean + variance.sqrt() * torch.randn_like(mean)
