"""Minibatches: tensors of a few cells, by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True, eq=False)
class CellBatch:
    """Some cells, one tensor per role.

    Attributes
    ----------
    rows
        Positions of the cells in their source, shape (b,).
    views
        Matrix roles, dense float32, shape (b, features). NaN: not measured.
    present
        For each matrix role that some cells lack altogether: which cells have it, shape (b,).
    observed
        For each matrix role of a query that lacks features: which features it has, shape (features,).
    columns
        Codes (``batch``, ``label`` with -1 for unlabelled, …) and numbers, shape (b,);
        ``categorical`` and ``continuous`` of shape (b, columns).
    """

    rows: Int[Tensor, " b"]
    views: Mapping[str, Tensor]
    present: Mapping[str, Bool[Tensor, " b"]] = field(default_factory=dict)
    observed: Mapping[str, Bool[Tensor, " g"]] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, role: str) -> Tensor:
        return self.views[role] if role in self.views else self.columns[role]

    def __contains__(self, role: str) -> bool:
        return role in self.views or role in self.columns

    def with_columns(self, **columns: Tensor) -> CellBatch:
        """Return the same cells under other conditions."""
        return replace(self, columns={**self.columns, **columns})

    def conditions(self) -> Int[Tensor, "b c"]:
        """Return codes of `batch` and of the categorical covariates, ordered as `Spec.condition_blocks`."""
        parts = [self.columns["batch"][:, None]] if "batch" in self.columns else []
        if "categorical" in self.columns:
            parts.append(self.columns["categorical"])
        return torch.cat(parts, 1) if parts else self.rows.new_zeros((len(self), 0))

    def log_expression(self) -> Float[Tensor, "b g"]:
        """Return `expression` if the schema names it, otherwise log1p of counts per 10,000."""
        if "expression" in self.views:
            return self.views["expression"]
        if "counts" not in self.views:
            raise DataError("There is neither expression nor counts in this batch.")
        x = self.views["counts"]
        total = x.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.log1p(x * (1e4 / total))
