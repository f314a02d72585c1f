"""The network of every self-supervised model: an encoder and a projector for each kind of measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...data.batch import SparseRows
from ...nn.blocks import MLP, BatchNorm, Linear, cells_of_all
from ...schema import Spec

#: Matrix roles besides expression or counts that may have an encoder.
FURTHER = ("protein", "accessibility")


@dataclass(frozen=True, eq=False)
class View:
    """Some cells as an encoder sees them.

    Attributes
    ----------
    values
        By matrix role: log-expression, dense or sparse.
    present
        Which cells have the role, where some lack it.
    """

    values: Mapping[str, Float[Tensor, "b g"] | SparseRows]
    present: Mapping[str, Bool[Tensor, " b"]] = field(default_factory=dict)


class Head(nn.Module):
    """Linear → batch norm → ReLU for every width but the last, which is linear, and normed if `normed`."""

    def __init__(self, n_in: int, widths: Sequence[int], *, normed: bool = False) -> None:
        super().__init__()
        *hidden, n_out = widths
        self.trunk = MLP(n_in, hidden, momentum=0.1)
        self.last = Linear(hidden[-1] if hidden else n_in, n_out)
        self.norm = BatchNorm(n_out) if normed else nn.Identity()

    def forward(self, x: Float[Tensor, "b n"] | SparseRows) -> Float[Tensor, "b m"]:
        """Return the outputs."""
        found: Tensor = self.norm(self.last(self.trunk(x)))
        return found


class Network(nn.Module):
    """Encoders, whose outputs are the embedding, and projectors, whose outputs the loss compares.

    Each kind of measurement has its own, and both outputs are fused: put side by side, added, or averaged
    over what a cell has. What a cell lacks is 0.

    Parameters
    ----------
    options
        `n_latent`, `n_hidden`, `n_layers` of the encoders, `fusion`, and `projector` where there is one.
    normed
        Whether a batch norm ends the projectors.
    """

    def __init__(self, options: Any, spec: Spec, *, normed: bool = False) -> None:
        super().__init__()
        self.options = options
        roles = [spec.either("expression", "counts"), *(r for r in FURTHER if r in spec.features)]
        widths = [*[options.n_hidden] * options.n_layers, options.n_latent]
        self.encoders = nn.ModuleDict(
            {role: Head(spec.n_features(role), widths, normed=True) for role in roles}
        )
        projector = getattr(options, "projector", ())
        self.projectors = nn.ModuleDict(
            {role: Head(options.n_latent, projector, normed=normed) for role in roles if projector}
        )

    @property
    def n_projected(self) -> int:
        """Width of what the loss compares."""
        n = len(self.projectors) if self.options.fusion in ("concat", "clip") else 1
        return n * int(self.options.projector[-1])

    def encode(self, view: View) -> dict[str, Float[Tensor, "b z"]]:
        """Return the embedding by role."""
        return {
            role: _of_those(part, view.values[role], view.present.get(role))
            for role, part in self.encoders.items()
        }

    def project(
        self, embedded: Mapping[str, Float[Tensor, "b z"]], view: View
    ) -> dict[str, Float[Tensor, "b p"]]:
        """Return the projections by role: the embedding itself where there are no projectors."""
        if not len(self.projectors):
            return dict(embedded)
        return {
            role: _of_those(part, embedded[role], view.present.get(role))
            for role, part in self.projectors.items()
        }

    def fuse(self, parts: Mapping[str, Float[Tensor, "b d"]], view: View) -> Float[Tensor, "b w"]:
        """Return one vector per cell."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        if self.options.fusion in ("concat", "clip"):
            return torch.cat([*parts.values()], 1)
        total = torch.stack([*parts.values()]).sum(0)
        if self.options.fusion == "add":
            return total
        whole = torch.ones(len(total), dtype=torch.bool, device=total.device)
        n = torch.stack([view.present.get(role, whole) for role in parts]).sum(0)
        return total / n.clamp_min(1)[:, None]

    def forward(self, view: View) -> tuple[Float[Tensor, "b w"], Float[Tensor, "b p"]]:
        """Return the embedding and the projection of cells, fused."""
        embedded = self.encode(view)
        return self.fuse(embedded, view), self.fuse(self.project(embedded, view), view)

    def feature_weight(self) -> dict[str, Float[Tensor, " g"]]:
        """Return the norm of the first layer's weights per feature."""
        heads: Any = self.encoders
        first = {
            role: head.trunk.layers[0].linear if len(head.trunk.layers) else head.last
            for role, head in heads.items()
        }
        return {role: layer.weight.detach().norm(dim=1) for role, layer in first.items()}


def _of_those(
    part: Any, x: Float[Tensor, "b n"] | SparseRows, present: Bool[Tensor, " b"] | None
) -> Float[Tensor, "b m"]:
    """Return what a part makes of the cells that are there, and 0 for the others."""
    if present is None:
        return part(x)
    out = part.last.weight.new_zeros(len(x), part.last.weight.shape[1])
    norm = next(layer for layer in part.modules() if isinstance(layer, BatchNorm))
    # batch norm learns from two, which is for all processes to decide alike
    if int(cells_of_all(present.sum(), norm)) < (2 if part.training else 1):
        return out
    if bool(present.all()):
        return part(x)
    # an augmentation may have brought values of other cells to those that have none
    those = x.where(present[x.cells]).without(~present) if isinstance(x, SparseRows) else x[present]
    out[present] = part(those).to(out.dtype)
    return out
