"""Cells in the order of time: several trajectories, ragged and with gaps, as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import DataError
from .source import Source

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
    crowd
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
    crowd: Callable[[np.random.Generator], tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> SeriesBatch:
        """Return the same series on `device`."""
        fields = ("times", "values", "weight", "begin", "start", "slopes", "bends")
        there = {n: t for n in fields if (t := getattr(self, n)) is not None}
        return replace(self, **{n: t.to(device) for n, t in there.items()})

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


@dataclass(frozen=True, eq=False)
class SeriesSource(Source):
    """The cells of a source as series: what phases see whose model is of time.

    Cells of a trajectory are sorted by time. Those of one time, or of neighbouring times where there are
    more than `n_times`, are averaged: squared errors of their mean, weighted by their number, are those
    of the cells up to a constant.

    Attributes
    ----------
    known
        Cells that say where a series starts.
    n_times
        Most times of a series.
    bandwidth
        Of the smoother, in units of scaled time.
    span
        Length of the pieces that series are cut into; 0: smoothed states and slopes instead; None: whole.
    smooth
        Whether smoothed states stand for the cells.
    crowd
        Cells to be drawn of each time, at the most; 0: none.
    redrawn, generator
        See `SeriesBatch.resampled` and `SeriesBatch.exchanged`, and their seed.
    """

    known: Int[np.ndarray, " known"] = field(default_factory=lambda: np.zeros(0, int))
    n_times: int = 100
    bandwidth: float = 1.0
    span: float | None = None
    smooth: bool = False
    crowd: int = 0
    redrawn: Literal["", "resampled", "exchanged"] = ""
    generator: int = 0
    _made: dict[int, SeriesBatch] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, source: Source, **how: Any) -> SeriesSource:
        """Return the cells of `source`, which have a ``time`` and may have a ``trajectory``, as series."""
        return cls(**{f.name: getattr(source, f.name) for f in fields(Source)}, **how)

    @cached_property
    def cells(self) -> Source:
        """The same cells, each by itself."""
        return Source(**{f.name: getattr(self, f.name) for f in fields(Source)})

    def pieces(self, rows: Int[np.ndarray, " n"] | None = None) -> list[Int[np.ndarray, " n"]]:
        """Return `rows` in one piece: all series are solved together."""
        rows = np.arange(len(self)) if rows is None else rows
        return [rows] if len(rows) else []

    def minibatches(  # type: ignore[override]  # series, where a source of cells has cells
        self, rows: Iterable[Int[np.ndarray, " _"]], device: str = "cpu"
    ) -> Iterator[SeriesBatch]:
        """Yield the series of each item of `rows`; the same item is read once."""
        for some in rows:
            key = hash(some.tobytes())
            if key not in self._made:
                batch, rng = self.series(some), np.random.default_rng(self.generator)
                batch = getattr(batch, self.redrawn)(rng) if self.redrawn else batch
                if self.crowd:
                    _refuse_gaps(batch)
                    batch = replace(batch, crowd=partial(self._drawn, some))
                self._made[key] = self._cut(batch).to(device)
            yield self._made[key]

    def _cut(self, batch: SeriesBatch) -> SeriesBatch:
        if self.span == 0:
            return batch.matched(self.bandwidth)
        if self.smooth:
            values = batch.smoothed(batch.times, self.bandwidth)[0]
            batch = replace(batch, values=values)
        if self.span is None:
            return batch
        return batch.pieces(self.span, self.bandwidth)

    def series(self, rows: Int[np.ndarray, " n"]) -> SeriesBatch:
        """Return the series that these cells make up.

        Raises
        ------
        DataError
            If a series has one time only, or lacks a gene altogether: where it starts is not known.
        """
        batch, codes = self._averaged(rows)
        whole, known = self._averaged(self.known)
        _refuse_moments(whole)
        self._refuse_lacking(whole)
        at = torch.from_numpy(np.searchsorted(known, codes))
        # of single cells: means of all may be later than those of some
        begin = self._first_times(known)
        start = whole.smoothed(begin[:, None], self.bandwidth)[0][:, 0]
        return replace(batch, begin=begin[at], start=start[at])

    def _refuse_lacking(self, batch: SeriesBatch) -> None:
        lacking = batch.weight.sum(1) == 0  # s g
        if bool(lacking.any()):
            row = int(lacking.any(1).nonzero()[0])
            genes = self.spec.features[self.spec.either("expression", "counts")]
            missing = [genes[int(g)] for g in lacking[row].nonzero()[:, 0]]
            raise DataError(
                f"Trajectory {batch.names[row]!r} lacks {missing[0]!r} and {len(missing) - 1} others in all "
                "its cells, so where it starts is not known. Leave out these features, or the trajectory."
            )

    def _first_times(self, series: np.ndarray) -> Float[Tensor, " s"]:
        first = np.full(len(series), np.inf)
        np.minimum.at(
            first,
            np.searchsorted(series, self._codes(self.known)),
            self._times(self.known),
        )
        return torch.from_numpy(first).float()

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        found = self.columns.get("trajectory")
        codes = np.zeros(len(rows), int) if found is None else np.asarray(found)[rows]
        for role, bad in (("trajectory", codes < 0), ("time", ~np.isfinite(self._times(rows)))):
            if bad.any():
                raise DataError(
                    f"{int(bad.sum())} cells, such as {self.obs_names[rows[bad]][0]!r}, have no {role}. "
                    "Leave them out, or fill it in."
                )
        return codes

    def _times(self, rows: np.ndarray) -> Float[np.ndarray, " n"]:
        return self.scaled("time")[rows]

    def _slots(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the codes of the series, each cell's place among series x times, and the most times."""
        time = self._times(rows)
        series, codes = np.unique(self._codes(rows), return_inverse=True)
        point = np.zeros(len(rows), int)
        for s in range(len(series)):
            mine = np.flatnonzero(codes == s)
            distinct, at = np.unique(time[mine], return_inverse=True)
            if len(distinct) > self.n_times:  # as many cells in each
                rank = np.argsort(np.argsort(time[mine], kind="stable"), kind="stable")
                at = rank * self.n_times // len(mine)
            point[mine] = at
        longest = int(point.max(initial=0)) + 1
        return series, codes * longest + point, longest

    def _averaged(self, rows: np.ndarray) -> tuple[SeriesBatch, np.ndarray]:
        series, slot, longest = self._slots(rows)
        time = self._times(rows)
        n = np.bincount(slot, minlength=len(series) * longest).reshape(-1, longest)
        when = np.bincount(slot, time, minlength=n.size).reshape(n.shape) / np.maximum(n, 1)
        last = when[np.arange(len(series)), (n > 0).sum(1) - 1]
        times = torch.from_numpy(np.where(n > 0, when, last[:, None])).float()
        total, weight = (t.view(*n.shape, -1) for t in self._sums(rows, slot, n.size))
        names = self.spec.categories.get("trajectory", ("all cells",))
        values = total / weight.clamp(min=1)
        return SeriesBatch(
            tuple(str(names[s]) for s in series), times, values, weight, times[:, 0], values[:, 0]
        ), series

    def first_and_last(self, rows: np.ndarray) -> Float[Tensor, 2]:
        """Return the first and the last time of these cells, which means of many do not reach."""
        times = self._times(rows)
        return torch.tensor([times.min(), times.max()], dtype=torch.float32)

    def extremes(self, rows: np.ndarray) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
        """Return the lowest and the highest value of each gene in any of these cells."""
        low = torch.full(
            (self.spec.n_features(self.spec.either("expression", "counts")),), torch.inf
        )
        high = -low
        for batch in self.cells.batches(rows):
            x, measured = batch.measured_expression()
            low = low.minimum(x.where(measured > 0, torch.tensor(torch.inf)).amin(0))
            high = high.maximum(x.where(measured > 0, torch.tensor(-torch.inf)).amax(0))
        return low, high

    def _drawn(
        self, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "s t m g"], Float[Tensor, "s t m"]]:
        series, slot, longest = self._slots(rows)
        order = np.lexsort((rng.random(len(rows)), slot))
        n = np.bincount(slot, minlength=len(series) * longest)
        rank = np.arange(len(rows)) - np.repeat(n.cumsum() - n, n)
        width = min(self.crowd, int(n.max()))
        taken = rank < width
        place = slot[order][taken], rank[taken]
        chosen, there = np.full((n.size, width), rows[0]), np.zeros((n.size, width), np.float32)
        chosen[place], there[place] = rows[order][taken], 1
        distinct, where = np.unique(chosen, return_inverse=True)
        x = torch.cat([b.log_expression() for b in self.cells.batches(distinct)])
        shape = len(series), longest, width
        return x[torch.from_numpy(where.ravel())].view(*shape, -1), torch.from_numpy(there).view(
            shape
        )

    def _sums(self, rows: np.ndarray, slot: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        """Return the sum of what was measured in each slot, and in how many cells."""
        role = self.spec.either("expression", "counts")
        total, weight = torch.zeros(2, n, self.spec.n_features(role))
        pieces = self.cells.pieces(slot)
        for batch, piece in zip(self.cells.batches(rows), pieces, strict=True):
            (x, measured), at = batch.measured_expression(), torch.from_numpy(piece)
            total.index_add_(0, at, x * measured)
            weight.index_add_(0, at, measured.expand_as(x))
        return total, weight


def _refuse_moments(batch: SeriesBatch) -> None:
    short = (batch.observed.sum(1) < 2).nonzero()[:, 0].tolist()
    if short and bool((batch.times == batch.times[0, 0]).all()):
        raise DataError(
            "All cells have the same time, so nothing is seen to move: a model of time needs two times at "
            "the least. Name another column as time, or take a model that reads none."
        )
    if short:
        name, n = batch.names[short[0]], int(batch.weight[short[0]].amax())
        raise DataError(
            f"{len(short)} of {len(batch)} trajectories have one time only, such as {name!r} (cells there: "
            f"{n}): nothing is seen to move. A path needs two times at the least. Leave them out, or correct "
            "the column of trajectories."
        )


def _refuse_gaps(batch: SeriesBatch) -> None:
    if bool((batch.weight < batch.weight.amax(2, keepdim=True)).any()):
        raise DataError(
            "Populations need every entry of their cells, and some were not measured (NaN). Leave out these "
            "features, or learn from means alone (population_steps=0)."
        )
