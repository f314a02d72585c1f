"""Augmentations: what a cell might as well have looked like. In batch, on the device, never in place.

All but noise take and return sparse rows: what a gene that is not expressed would become is nothing to be
computed. They draw from torch's global generator, which a fit seeds for every step
(`chreode.compute.rng`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.batch import SparseRows

#: Values that 16 random bits have: chances are multiples of one over it.
_LEVELS = 2**16


class Augmentation(Protocol):
    """Changes some cells."""

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return new rows, in which the cells that are not `chosen` are as they were."""
        ...


def _bits(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """Return 16 random bits each, as whole numbers from −32,768 to 32,767; four from one draw."""
    drawn = torch.empty(math.ceil(n / 4), dtype=torch.int64, device=device)
    return drawn.random_(-(2**63), None).view(torch.int16)[:n]


def _heads(bits: Int[Tensor, " n"], chance: float) -> Bool[Tensor, " n"]:
    """Return True for a share of 16 bits, rounded to a multiple of 2⁻¹⁶."""
    below = round(chance * _LEVELS) - _LEVELS // 2
    return bits <= below - 1 if below > -_LEVELS // 2 else torch.zeros_like(bits, dtype=torch.bool)


def _waits(device: torch.device) -> bool:
    """Return whether the host waits for what it counts on a device; random numbers are cheap on such."""
    return device.type != "cpu"


def coins(chance: float, n: int, device: torch.device) -> Bool[Tensor, " n"]:
    """Return True with this chance, each for itself.

    Examples
    --------
    >>> [coins(p, 3, torch.device("cpu")).tolist() for p in (0.0, 1.0)]
    [[False, False, False], [True, True, True]]
    """
    return _heads(_bits(n, device), chance)


class _Table:
    """A coin for every chosen cell and every column, to be looked up.

    Parameters
    ----------
    chance
        That a coin is heads.
    chosen
        Cells that toss; all coins of the others are tails.
    width
        Number of columns.
    """

    def __init__(self, chance: float, chosen: Bool[Tensor, " b"], width: int) -> None:
        self.chance, self.chosen = chance, chosen
        n = len(chosen) if _waits(chosen.device) else max(int(chosen.sum()), 1)
        self.bits = _bits(n * width, chosen.device)
        self.starts = (chosen.cumsum(0) - 1).clamp_min_(0) * width

    def __call__(self, cells: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Return the coins of these cells and columns."""
        at = self.starts.index_select(0, cells).add_(columns)
        tossed = _heads(self.bits.index_select(0, at), self.chance)
        return tossed.logical_and_(self.chosen.index_select(0, cells))


@dataclass(frozen=True)
class Mask:
    """Set a share of the genes of each cell to 0, each gene by a coin of its own.

    Attributes
    ----------
    share
        Chance of each gene.
    """

    share: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the masked cells."""
        hidden = coins(self.share, len(x.values), chosen.device) & chosen.index_select(0, x.cells)
        return x.map(x.values.masked_fill(hidden, 0.0))


@dataclass(frozen=True)
class Programmes:
    """Set whole gene programmes of each cell to 0.

    Attributes
    ----------
    of
        Programme of each gene, from 0.
    n
        Number of programmes.
    share
        Chance of each programme.

    References
    ----------
    Richter et al. (2025), Delineating the effective use of self-supervised learning in single-cell
    genomics, Nature Machine Intelligence (masking of gene programmes).
    """

    of: Int[Tensor, " g"]
    n: int
    share: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the cells without these programmes."""
        coin = _Table(self.share, chosen, self.n)
        hidden = coin(x.cells, self.of.index_select(0, x.columns))
        return x.map(x.values.masked_fill(hidden, 0.0))


@dataclass(frozen=True)
class Swap:
    """Swap the values of pairs of genes within each cell (inner swap).

    The genes are paired anew for every minibatch, and each cell swaps pairs by coins of its own. So every
    gene has the same chance to take the value of any other.

    Attributes
    ----------
    share
        Chance of each gene.
    """

    share: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the cells with swapped values."""
        half = x.n_features // 2
        if not half:
            return x
        order = torch.randperm(x.n_features, device=chosen.device)
        partner, pair = order.clone(), order.clone()
        partner[order] = torch.cat([order[half : 2 * half], order[:half], order[2 * half :]])
        pair[order] = torch.arange(len(order), device=order.device) % half  # an odd one: itself
        swapped = _Table(self.share, chosen, half)(x.cells, pair.index_select(0, x.columns))
        columns = torch.where(swapped, partner.index_select(0, x.columns), x.columns)
        return x.moved(columns, x.values)


@dataclass(frozen=True)
class Crossover:
    """Give a share of the genes of each cell the values of another cell of the minibatch, drawn at random.

    Attributes
    ----------
    share
        Chance of each gene.
    present
        Cells that have genes to give (None: all).
    """

    share: float
    present: Bool[Tensor, " b"] | None = None

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the crossed cells; a cell that is alone stays as it is."""
        if len(x) < 2:
            return x
        other, taker = _ring(len(x), self.present, chosen.device)
        coin = _Table(self.share, chosen, x.n_features)
        taken = coin(x.cells, x.columns)
        given = coin(taker.index_select(0, x.cells), x.columns)
        # How much is stored depends on the coins, and a host waits for a card to know it. It would not wait
        # if all genes were stored, but all that follows would then go through every gene that is 0.
        return x.where(~taken).beside(x.where(given).permuted(other))


def _ring(
    n: int, present: Bool[Tensor, " n"] | None, device: torch.device
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return who comes before and after each in a ring at random; one that is not present is alone."""
    order, at = torch.randperm(n, device=device), torch.arange(n, device=device)
    last: Tensor | int = n - 1
    if present is not None:
        order = order[present[order].int().argsort(descending=True, stable=True)]
        last = present.sum() - 1  # stays a tensor: a host that asks for the number waits for a card
    alone, before, after = at > last, at.clone(), at.clone()
    before[order] = order[torch.where(alone, at, torch.where(at == 0, last, at - 1))]
    after[order] = order[torch.where(alone, at, torch.where(at == last, 0, at + 1))]
    return before, after


@dataclass(frozen=True)
class Mix:
    """Move each cell towards a partner: α x + (1 − α) partner.

    Attributes
    ----------
    partner
        A cell for each, such as a mutual nearest neighbour of another batch.
    weight
        α: what is left of the cell itself.
    """

    partner: SparseRows
    weight: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the mixed cells."""
        share = (1 - self.weight) * chosen[:, None].to(x.values.dtype)
        return SparseRows.of(torch.lerp(x.dense(), self.partner.dense(), share))


@dataclass(frozen=True)
class Thin:
    """Thin counts to a depth that is drawn log-uniformly: each molecule is kept with the same chance.

    It takes counts, and comes before what takes log-expression.

    Attributes
    ----------
    lowest
        Least share of a cell's molecules that is kept, above 0.
    """

    lowest: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> SparseRows:
        """Return the thinned counts; a cell that would be left without any molecule keeps one."""
        drawn = torch.rand(len(x), device=x.values.device)
        kept = torch.exp(drawn * math.log(self.lowest))
        return thinned(x, kept.where(chosen, torch.ones_like(kept)))


def thinned(counts: SparseRows, kept: Float[Tensor, " b"]) -> SparseRows:
    """Return counts of which each molecule was kept with the chance of its cell (binomial thinning).

    Of fractional counts the rest beyond the whole part counts as one molecule with that chance. A cell that
    would be left without any molecule keeps one, each of its own with the same chance.
    """
    whole = counts.values.floor()
    rest = (torch.rand_like(whole) < counts.values - whole).to(whole)
    chance = kept[counts.cells]
    found = counts.map(torch.binomial(whole + rest, chance))
    empty = (found.sum() == 0) & (counts.sum() > 0)
    left = found.values
    if bool(empty.any()):
        # the first of events that come at the rates of the counts is of each gene with its share of them
        wait = torch.empty_like(left).exponential_() / counts.values
        first = torch.segment_reduce(wait, "min", offsets=counts.indptr, unsafe=True)
        left = torch.where(empty[counts.cells], (wait == first[counts.cells]).to(left), left)
    return counts.map(torch.where(chance == 1, counts.values, left))


@cache
def _normal_levels(share: float, device: torch.device) -> Float[Tensor, " levels"]:
    """Return as many values as 16 bits have: quantiles of the normal distribution, or 0 for 1 − share."""
    n = round(share * _LEVELS)
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / max(n, 1))
    return torch.cat([quantiles, quantiles.new_zeros(_LEVELS - n)]).float().to(device)


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to a share of the genes of each cell, expressed or not.

    It takes one of 65,536 values at even quantiles: to draw from a table is several times faster than to
    compute a normal number.

    Attributes
    ----------
    share
        Chance of each gene.
    scale
        Standard deviation, in units of log-expression.
    """

    share: float
    scale: float

    def __call__(self, x: SparseRows, chosen: Bool[Tensor, " b"]) -> Float[Tensor, "b g"]:
        """Return the noisy cells, dense."""
        out = x.dense()
        if _waits(out.device):
            every = self._drawn(len(x), x.n_features, out.device)
            return out.add_(every.masked_fill_(~chosen[:, None], 0.0))
        noisy = chosen.nonzero()[:, 0]
        return out.index_add_(0, noisy, self._drawn(len(noisy), x.n_features, out.device))

    def _drawn(self, n: int, n_features: int, device: torch.device) -> Float[Tensor, "n g"]:
        at = _bits(n * n_features, device).int().add_(_LEVELS // 2)
        levels = self.scale * _normal_levels(self.share, device)
        return levels.index_select(0, at).view(n, n_features)
