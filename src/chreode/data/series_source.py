"""The cells of a source as series: averaged over time, cut into pieces, drawn anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import DataError, counted
from .series import SeriesBatch
from .source import Source


@dataclass(frozen=True, eq=False)
class SeriesSource(Source):
    """The cells of a source as series: what phases see whose model is of time.

    Cells of a trajectory are sorted by time. Those of one time, or of neighbouring times where there are
    more than `n_times`, are averaged: squared errors of their mean, weighted by their number, are those
    of the cells up to a constant.

    Attributes
    ----------
    known
        Cells from which the start of a series is estimated.
    n_times
        Most times of a series.
    bandwidth
        Of the smoother, in units of scaled time.
    span
        Length of the pieces that series are cut into; 0: smoothed states and slopes instead; None: whole.
    smooth
        Whether smoothed states stand for the cells.
    n_particles
        Cells to be drawn of each time, at the most; 0: none.
    redrawn, generator
        See `SeriesBatch.resampled` and `SeriesBatch.exchanged`, and their seed.
    """

    known: Int[np.ndarray, " known"] = field(default_factory=lambda: np.zeros(0, int))
    n_times: int = 100
    bandwidth: float = 1.0
    span: float | None = None
    smooth: bool = False
    n_particles: int = 0
    redrawn: Literal["", "resampled", "exchanged"] = ""
    generator: int = 0
    _made: dict[tuple[int, str], SeriesBatch] = field(default_factory=dict, repr=False)

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
            key = hash(some.tobytes()), device
            if key not in self._made:
                batch, rng = self.series(some), np.random.default_rng(self.generator)
                batch = getattr(batch, self.redrawn)(rng) if self.redrawn else batch
                if self.n_particles:
                    _refuse_gaps(batch)
                    batch = replace(batch, draw_populations=partial(self._draw_populations, some))
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
        _refuse_single_times(whole)
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
                f"Trajectory {batch.names[row]!r} lacks {counted(len(missing), 'feature')} in all its "
                "cells, such "
                f"as {missing[0]!r}, so its start is not known. Leave out these features, or the trajectory."
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
                    f"There is no {role} for {counted(int(bad.sum()), 'cell')}, such as "
                    f"{self.obs_names[rows[bad]][0]!r}. Leave such cells out, or fill it in."
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

    def first_and_last(self, rows: np.ndarray) -> Float[Tensor, " 2"]:
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

    def _draw_populations(
        self, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "s t m g"], Float[Tensor, "s t m"]]:
        series, slot, longest = self._slots(rows)
        order = np.lexsort((rng.random(len(rows)), slot))
        n = np.bincount(slot, minlength=len(series) * longest)
        rank = np.arange(len(rows)) - np.repeat(n.cumsum() - n, n)
        width = min(self.n_particles, int(n.max()))
        taken = rank < width
        place = slot[order][taken], rank[taken]
        chosen, present = np.full((n.size, width), rows[0]), np.zeros((n.size, width), np.float32)
        chosen[place], present[place] = rows[order][taken], 1
        distinct, where = np.unique(chosen, return_inverse=True)
        x = torch.cat([b.log_expression() for b in self.cells.batches(distinct)])
        shape = len(series), longest, width
        return x[torch.from_numpy(where.ravel())].view(*shape, -1), torch.from_numpy(present).view(
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


def _refuse_single_times(batch: SeriesBatch) -> None:
    short = (batch.observed.sum(1) < 2).nonzero()[:, 0].tolist()
    if short and bool((batch.times == batch.times[0, 0]).all()):
        raise DataError(
            "All cells have the same time, so nothing is seen to move: a model of time needs two times at "
            "the least. Name another column as time, or take a model that reads none."
        )
    if short:
        name, n = batch.names[short[0]], int(batch.weight[short[0]].amax())
        raise DataError(
            f"There is one time only for {len(short)} of {counted(len(batch), 'trajectory')}, such as "
            f"{name!r} ({counted(n, 'cell')}). A path needs two times at least. Leave them out, or correct "
            "the column of trajectories."
        )


def _refuse_gaps(batch: SeriesBatch) -> None:
    if bool((batch.weight < batch.weight.amax(2, keepdim=True)).any()):
        raise DataError(
            "Populations need every entry of their cells, and some were not measured (NaN). Leave out these "
            "features, or learn from means alone (population_steps=0)."
        )
