"""Attributes of cells as a network reads them: embedded one by one and together, each of them optional."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.batch import CellBatch
from ..schema import Spec
from .blocks import CategoryTable

#: Roles of one category per cell that can be an attribute, then those of one number.
CATEGORIES, NUMBERS = ("label", "batch", "perturbation", "trajectory"), ("time", "dose")
#: Combinations of categories that are numbered; where there could be more, none is.
MOST_COMBINATIONS = 2**16


def attribute_names(spec: Spec) -> tuple[list[str], list[str]]:
    """Return the categorical and the continuous attributes that the fit read, in a fixed order."""
    categories = [*(r for r in CATEGORIES if r in spec.categories), *spec.categorical]
    return categories, [*(r for r in NUMBERS if r in spec.roles), *spec.continuous]


def read_attributes(
    spec: Spec, batch: CellBatch
) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b n"], Bool[Tensor, "b k"]]:
    """Return codes, numbers, and which of all attributes each cell has.

    An unlabelled cell lacks `label`, and where an attribute was not read at all every cell lacks it.
    """
    b, columns, device = len(batch), batch.columns, batch.rows.device

    def read(name: str, width: int, unknown: float, dtype: torch.dtype) -> Tensor:
        nothing = torch.full((b, width), unknown, dtype=dtype, device=device)
        return columns.get(name, nothing).reshape(b, width).to(dtype)

    roles = [r for r in CATEGORIES if r in spec.categories]
    codes = [read(r, 1, -1, torch.long) for r in roles]
    codes.append(read("categorical", len(spec.categorical), -1, torch.long))
    numbers = [read(r, 1, math.nan, torch.float32) for r in NUMBERS if r in spec.roles]
    numbers.append(read("continuous", len(spec.continuous), math.nan, torch.float32))
    code, number = torch.cat(codes, 1), torch.cat(numbers, 1)
    return code, number, torch.cat([code >= 0, number.isfinite()], 1)


class Numbering:
    """A number for every combination of categories, unknown ones included.

    Parameters
    ----------
    spec
        Which attributes there are. Where their categories could combine in more than
        `MOST_COMBINATIONS` ways, all have the number 0.
    """

    def __init__(self, spec: Spec) -> None:
        # an absent category is one more, and comes first
        self.sizes = [sum(spec.blocks[name]) + 1 for name in attribute_names(spec)[0]]
        self.few = math.prod(self.sizes) <= MOST_COMBINATIONS

    def __len__(self) -> int:
        return math.prod(self.sizes) if self.few else 1

    def __call__(self, codes: Int[Tensor, "b c"]) -> Int[Tensor, " b"]:
        """Return the number of each cell's combination."""
        at = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for i, size in enumerate(self.sizes if self.few else ()):
            at = at * size + codes[:, i] + 1
        return at


class Combinations(nn.Module):
    """Which combinations of categories training cells have, single ones and parts of them included.

    Where they are too many to be numbered, all count as seen.
    """

    seen: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.number = Numbering(spec)
        self.register_buffer("seen", torch.ones(len(self.number), dtype=torch.bool))

    def fill(self, codes: Int[Tensor, "cells c"]) -> None:
        """Take them from training cells."""
        if not self.number.few:
            return
        table = torch.zeros_like(self.seen)
        table[self.number(codes)] = True
        table = table.reshape(self.number.sizes)
        for axis in range(len(self.number.sizes)):  # a part of what was seen was seen
            table.select(axis, 0).logical_or_(table.any(axis))
        self.seen.copy_(table.flatten())

    def known(self, codes: Int[Tensor, "b c"]) -> Bool[Tensor, "b c"]:
        """Return which categories of each cell make a combination that was seen.

        They are taken in order as long as that holds: of a type and a treatment that never met, the type.
        """
        kept = torch.full_like(codes, -1)
        for i in range(codes.shape[1]):
            more = kept.clone()
            more[:, i] = codes[:, i]
            kept = more.where(self.seen[self.number(more)][:, None], kept)
        return kept >= 0


class AttributeEmbedding(nn.Module):
    """A vector for any combination of attributes, each given or not.

    ``"additive"``: the sum of a vector per attribute, so that what two of them do together is what
    each does alone; ``"joint"``: a network of all of them, which can learn what only a combination
    does; ``"both"``: the sum of the two.
    """

    def __init__(self, spec: Spec, width: int, how: Literal["joint", "additive", "both"]) -> None:
        super().__init__()
        categories, numbers = attribute_names(spec)
        self.width, self.n_attributes = width, len(categories) + len(numbers)
        self.tables = nn.ModuleList(CategoryTable(spec.blocks[name], width) for name in categories)
        self.curves = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width)) for _ in numbers
        )
        self.additive = how != "joint"
        self.together = None
        if how != "additive" and self.n_attributes:
            self.together = nn.Sequential(
                nn.Linear(self.n_attributes * (width + 1), width),
                nn.SiLU(),
                nn.Linear(width, width),
            )

    def forward(
        self,
        codes: Int[Tensor, "b c"],
        numbers: Float[Tensor, "b n"],
        given: Bool[Tensor, "b k"],
    ) -> Float[Tensor, "b w"]:
        """Return the embedding of the attributes that are `given`; none given has a vector too."""
        if not self.n_attributes:
            return numbers.new_zeros(len(numbers), self.width)
        each = [table(codes[:, i].clamp(min=0)) for i, table in enumerate(self.tables)]
        each += [curve(numbers[:, i, None].nan_to_num()) for i, curve in enumerate(self.curves)]
        seen = given.to(numbers.dtype)
        vectors = torch.stack(each, 1) * seen[:, :, None]  # b, attributes, width
        out = vectors.sum(1) if self.additive else torch.zeros_like(vectors[:, 0])
        if self.together is None:
            return out
        return out + self.together(torch.cat([vectors.flatten(1), seen], 1))


def sinusoid(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b w"]:
    """Return sines and cosines of 1000 t at `width` / 2 geometrically spaced frequencies (Ho et al. 2020)."""
    half = width // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype) / max(half, 1)
    angle = 1000.0 * t[:, None] * torch.exp(-9.210340371976184 * steps)  # log 10,000
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width - 2 * half))
