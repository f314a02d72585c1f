"""Cells in the order of time: several trajectories, ragged and with gaps, as one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Share of a slope's weight with which it is drawn to 0, lest few cells make steep ones.
_RIDGE = 0.05
#: Spread of the times that a kernel must see, as a share of its width; those of two times alone reach 0.67.
_SEEN = 0.5
#: By how much a kernel is widened at a time until it sees as much, and how often at the most.
_WIDER, _WIDENED = 2**0.25, 60


@dataclass(frozen=True, eq=False)
class SeriesBatch:
    """Series of states over time, which is centred and scaled as in every batch.

    Attributes
    ----------
    names
        Of the trajectory that each series is, or is a piece of.
    times
        Rising along each row; where a series has fewer, its last time is repeated.
    values
        Mean of the cells at each time, 0 where none was measured.
    weight
        Cells behind each value; 0 where there is none.
    begin, start
        When each series begins, and its state then, smoothed (see `smoothed`).
    slopes, bends
        Where the values are smoothed states: their first and second derivatives.
    draw_populations
        Draws some cells of each time, none twice, and says which places of the tensor hold one: a
        population, none of which is another one later. Every step draws anew.
    """

    names: tuple[str, ...]
    times: Float[Tensor, "s t"]
    values: Float[Tensor, "s t g"]
    weight: Float[Tensor, "s t g"]
    begin: Float[Tensor, " s"]
    start: Float[Tensor, "s g"]
    slopes: Float[Tensor, "s t g"] | None = None
    bends: Float[Tensor, "s t g"] | None = None
    draw_populations: Callable[[np.random.Generator], tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> SeriesBatch:
        """Return the same series on `device`."""
        fields = ("times", "values", "weight", "begin", "start", "slopes", "bends")
        tensors = {n: t for n in fields if (t := getattr(self, n)) is not None}
        return replace(self, **{n: t.to(device) for n, t in tensors.items()})

    def extremes(self, names: np.ndarray) -> str:  # noqa: ARG002 (cells have no names here)
        """Say where the values are largest."""
        most = self.values.abs().amax((1, 2))
        return (
            f"Largest values: {float(most.max()):.4g}, in series {self.names[int(most.argmax())]}"
        )

    @cached_property
    def observed(self) -> Tensor:
        """Which times of each series are its own, shape (s, t)."""
        return (self.weight > 0).any(2)

    def spread(self) -> Float[np.ndarray, " g"]:
        """Return the standard deviation of each variable over all series; 1 where it is constant."""
        total = self.weight.sum((0, 1)).clamp(min=1)
        centre = (self.weight * self.values).sum((0, 1)) / total
        found = ((self.weight * (self.values - centre).square()).sum((0, 1)) / total).sqrt().numpy()
        return np.where(found > 0, found, 1.0)

    def smoothed(
        self, at: Float[Tensor, "s q"], bandwidth: float
    ) -> tuple[Float[Tensor, "s q g"], Float[Tensor, "s q g"]]:
        """Return states and slopes at other times, from lines fitted to the times near each.

        Weights fall off as a Gaussian. Its standard deviation is `bandwidth` where times are dense, and as
        much more as it takes to see neighbours elsewhere: the standard deviation of the times under it is
        at least half of its own. Slopes are drawn to 0 by a twentieth of the weight (local linear
        regression, Fan and Gijbels 1996, section 3.2).
        """
        width = self._widths(at, bandwidth)
        kernel, apart = self._kernel(at, width)
        w, wx = self.weight, self.weight * self.values
        s0, t0 = (kernel @ w).clamp(min=1e-12), kernel @ wx
        kernel = kernel * apart
        s1, t1, s2 = kernel @ w, kernel @ wx, (kernel * apart) @ w
        slope = (t1 - s1 * t0 / s0) / (s2 - s1.square() / s0 + _RIDGE * s0)
        return (t0 - slope * s1) / s0, slope / width[..., None]

    def _kernel(
        self, at: Float[Tensor, "s q"], width: Float[Tensor, "s q"]
    ) -> tuple[Float[Tensor, "s q t"], Float[Tensor, "s q t"]]:
        """Return the weights of all times as seen from others, and how far they are, in widths."""
        apart = (self.times[:, None] - at[:, :, None]) / width[..., None]
        nearest = torch.where(self.observed[:, None], apart.abs(), torch.inf).amin(2, keepdim=True)
        # of those far from all cells, relative to the nearest one: no weight is lost to rounding
        return torch.exp(-0.5 * (apart.square() - nearest.square()).clamp(min=0)), apart

    def _widths(self, at: Float[Tensor, "s q"], bandwidth: float) -> Float[Tensor, "s q"]:
        """Return the least width, of those tried, whose kernel sees enough; where none does, `bandwidth`."""
        width, enough = torch.full_like(at, bandwidth), torch.zeros_like(at, dtype=torch.bool)
        several = (self.observed.sum(1) > 1)[:, None].expand_as(at)
        for _ in range(_WIDENED):
            kernel, apart = self._kernel(at, width)
            kernel = kernel * self.observed[:, None]
            total = kernel.sum(2)
            mean = (kernel * apart).sum(2) / total
            seen = (kernel * (apart - mean[..., None]).square()).sum(2) / total
            enough = (seen >= _SEEN**2) | ~several
            if bool(enough.all()):
                break
            width = torch.where(enough, width, width * _WIDER)
        return width.where(enough, torch.full_like(at, bandwidth))

    def resampled(self, rng: np.random.Generator) -> SeriesBatch:
        """Draw series with replacement; of fewer than five, weigh tenths of each series' times at random.

        Weights are then above 0, lest too few times be left (Bayesian bootstrap, Rubin 1981).
        """
        s, t = self.times.shape
        times: np.ndarray
        if s >= 5:
            times = rng.multinomial(s, np.full(s, 1 / s))[:, None]
        else:
            n = min(t, 10)
            times = n * rng.dirichlet(np.ones(n), size=s)[:, np.arange(t) * n // t]
        return replace(self, weight=self.weight * torch.from_numpy(times).float()[..., None])

    def exchanged(self, rng: np.random.Generator) -> SeriesBatch:
        """Give every gene the path of a series drawn for it, begun at a time drawn for it.

        Each gene moves as genes do, but none with another.
        """
        s, t, g = self.values.shape
        n = self.observed.sum(1)  # times of each series
        share = torch.arange(t) / n[:, None].clamp(min=1)  # s t
        shift = torch.from_numpy(rng.random(g)).float()
        other = torch.from_numpy(rng.integers(s, size=(s, g)))
        at = ((share[..., None] + shift) % 1 * n[other][:, None]).long()  # s t g
        at = at.minimum(n[other][:, None] - 1)
        values = self.values[other[:, None].expand(s, t, g), at, torch.arange(g)]
        return replace(self, values=values, start=values[:, 0])

    def matched(self, bandwidth: float) -> SeriesBatch:
        """Return smoothed states and slopes at the times of the series."""
        values, slopes = self.smoothed(self.times, bandwidth)
        weight = self.observed[..., None].float().expand_as(values)
        smooth = replace(self, values=slopes, weight=weight)
        bends = smooth.smoothed(self.times, bandwidth)[1]
        return replace(smooth, values=values, slopes=slopes, bends=bends)

    def pieces(self, span: float, bandwidth: float) -> SeriesBatch:
        """Return overlapping pieces, about `span` long and begun half a span apart at smoothed states."""
        found: list[tuple[int, int, int]] = []
        for row, (times, seen) in enumerate(zip(self.times.numpy(), self.observed, strict=True)):
            begin, times = 0, times[: int(seen.sum())]
            while begin < len(times) - 1:
                end = int(np.searchsorted(times, times[begin] + span * (1 + 1e-6), side="right"))
                end = min(max(end, begin + 2), len(times))
                found.append((row, begin, end))
                if end == len(times):
                    break
                begin = max(int(np.searchsorted(times, times[begin] + span / 2)), begin + 1)
        of, first, last = torch.tensor(found, dtype=torch.long).reshape(-1, 3).T
        at = first[:, None] + torch.arange(int((last - first).max()))
        inside, at = at < last[:, None], at.minimum(last[:, None] - 1)
        states = self.smoothed(self.times, bandwidth)[0]
        return SeriesBatch(
            tuple(self.names[r] for r in of.tolist()), self.times[of[:, None], at],
            self.values[of[:, None], at], self.weight[of[:, None], at] * inside[..., None],
            self.times[of, first], states[of, first],
        )  # fmt: skip
