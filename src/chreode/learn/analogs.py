"""Forecasts by time alone, and by the training series that begin alike; settings by held-out parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.series import SeriesBatch

#: Series of which whole ones are left out to choose by; of fewer, halves of each one's times.
MANY = 10
#: To choose from, the plainest last: bandwidths as shares of the time, components of the starts, and widths
#: of the weights in spreads of the training starts.
BANDWIDTHS = (0.03, 0.05, 0.1, 0.2, 0.4)
COMPONENTS, WIDTHS = (10, 5, 3, 2, 1), (0.2, 0.35, 0.5, 0.7, 1.0, 2.0)
#: Least weight of a series; below, it has none.
_LEAST = 1e-6

Setting = TypeVar("Setting")


def choose(errors: np.ndarray) -> int:
    """Return the last row of fits x series whose mean error is as good as the smallest."""
    means = np.nanmean(errors, 1)
    best = int(np.nanargmin(means))
    if errors.shape[1] < 5:
        slack = 0.01 * means[best]
    else:  # the series are the same: what counts is by how much they differ between fits
        with np.errstate(invalid="ignore"):  # of infinite errors
            apart = errors - errors[best]
            spread = apart.std(1, ddof=1)
        # where every fit blows up there is nothing to choose by: the sparsest
        slack = np.nan_to_num(spread / errors.shape[1] ** 0.5, nan=0.0)
    return int(np.flatnonzero(means <= means[best] + slack)[-1])


def parts(train: SeriesBatch, bandwidth: float) -> Iterator[tuple[SeriesBatch, SeriesBatch]]:
    """Yield what is learned from and what is held out: fifths of the series, or halves of their times.

    Of fewer than ten series whole ones cannot be spared: one of each two neighbouring times is then held
    out, drawn five times, and either half judges the other.
    """
    rng = np.random.default_rng(0)
    n, longest = train.times.shape
    if n >= MANY:
        fold = rng.permutation(n) % 5
        for held_out in range(5):
            mine = torch.from_numpy(np.flatnonzero(fold == held_out))
            others = torch.from_numpy(np.flatnonzero(fold != held_out))
            yield _some(train, others), _some(train, mine)
        return
    for _ in range(5):
        first = rng.integers(2, size=(n, (longest + 1) // 2))
        half = np.stack([first, 1 - first], 2).reshape(n, -1)[:, :longest] == 1
        both = [_at(train, torch.from_numpy(h), bandwidth) for h in (half, ~half)]
        yield both[0], both[1]
        yield both[1], both[0]


def chosen(
    train: SeriesBatch,
    bandwidth: float,
    settings: Sequence[Setting],
    forecast: Callable[[SeriesBatch, SeriesBatch, Setting], Float[Tensor, "s t g"]],
) -> Setting:
    """Return the last setting that forecasts held-out parts as well as the best one does.

    As for the strength of a penalty (see `choose`): within one standard error over the series, or within
    1 % of few series; settings are ordered from the boldest to the plainest.
    """
    columns = {name: i for i, name in enumerate(train.names)}
    errors, times = np.zeros((len(settings), len(columns))), np.zeros(len(columns))
    for learned, held_out in parts(train, bandwidth):
        mine = [columns[name] for name in held_out.names]
        times[mine] += 1
        for i, setting in enumerate(settings):
            away = (forecast(learned, held_out, setting) - held_out.values).square()
            of_each = (held_out.weight * away).sum((1, 2)) / held_out.weight.sum((1, 2))
            errors[i, mine] += of_each.numpy()
    return settings[choose(errors / times)]


def over_time(
    train: SeriesBatch,
    batch: SeriesBatch,
    width: float,
    weights: Float[Tensor, "s l"] | None = None,
) -> Float[Tensor, "s t g"]:
    """Regress the training cells on time, lines fitted locally; their series weigh the same, or by `weights`.

    Parameters
    ----------
    width
        Standard deviation of the Gaussian weights in time.
    weights
        Of the training series, for each series of `batch`.
    """
    even = train.weight / train.weight.sum(1, keepdim=True).clamp(min=1e-12) * train.weight.shape[1]
    times = batch.times.clamp(train.times.amin(), train.times.amax())
    if weights is None:
        weights = torch.ones(len(batch), len(train))
    found = torch.empty(*batch.times.shape, train.values.shape[2])
    for s, w in enumerate(weights):
        pooled = replace(
            train, names=("all",), times=train.times.flatten()[None],
            values=train.values.flatten(0, 1)[None], begin=train.begin[:1], start=train.start[:1],
            weight=(even * w[:, None, None]).flatten(0, 1)[None],
        )  # fmt: skip
        found[s] = pooled.smoothed(times[s][None], width)[0][0]
    return found


def components(states: Float[Tensor, "q g"], n: int) -> Float[Tensor, "g k"]:
    """Return the n directions in which states vary most, or as many as there are."""
    return torch.linalg.svd(states - states.mean(0), full_matrices=False)[2][:n].T


def nearness(
    train: SeriesBatch, batch: SeriesBatch, width: float, n: int, smoother: float
) -> Float[Tensor, "s l"]:
    """Return the weight of each training series, largest 1, by how near its start is.

    Nearness is seen in the `n` components in which the smoothed training paths vary most, and falls off as a
    Gaussian whose standard deviation is `width` spreads of the training starts.
    """
    return _nearness(train, batch, width, _axes(train, n, smoother))


def _axes(train: SeriesBatch, n: int, smoother: float) -> Float[Tensor, "g k"]:
    """Return the components in which the smoothed training paths vary most."""
    return components(train.smoothed(train.times, smoother)[0][train.observed], n)


def _nearness(
    train: SeriesBatch, batch: SeriesBatch, width: float, axes: Float[Tensor, "g k"]
) -> Float[Tensor, "s l"]:
    start, train_start = batch.start @ axes, train.start @ axes
    spread = train_start.var(0, unbiased=False).sum().clamp(min=1e-12)
    distance = torch.cdist(start, train_start, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.square() / spread
    found = torch.exp(-0.5 * (distance - distance.amin(1, keepdim=True)) / width**2)
    return torch.where(found < _LEAST, 0.0, found)


def width_of_time(train: SeriesBatch, bandwidth: float) -> float:
    """Return the bandwidth with which time itself forecasts held-out parts, as a share of the time."""

    def forecast(learned: SeriesBatch, held_out: SeriesBatch, share: float) -> Tensor:
        return over_time(learned, held_out, share * length(train))

    return chosen(train, bandwidth, BANDWIDTHS, forecast)


def analog_setting(
    train: SeriesBatch,
    bandwidth: float,
    smoother: float,
    of_starts: Sequence[int] = COMPONENTS,
) -> tuple[float, int]:
    """Return the width of weights and the components that forecast held-out parts."""
    most = max(of_starts)
    # one decomposition of a part for all settings, which are tried one after the other
    axes = lru_cache(1)(lambda learned: _axes(learned, most, smoother))

    def forecast(learned: SeriesBatch, held_out: SeriesBatch, how: tuple[float, int]) -> Tensor:
        width, n = how
        weights = _nearness(learned, held_out, width, axes(learned)[:, :n])
        return over_time(learned, held_out, smoother, weights)

    return chosen(train, bandwidth, list(product(WIDTHS, of_starts)), forecast)


def length(train: SeriesBatch) -> float:
    """Return the time from first to last."""
    return float(train.times.amax() - train.times.amin())


def _some(train: SeriesBatch, rows: Tensor) -> SeriesBatch:
    """Return some of the series."""
    return replace(
        train, names=tuple(train.names[r] for r in rows.tolist()),
        **{k: getattr(train, k)[rows] for k in ("times", "values", "weight", "begin", "start")},
    )  # fmt: skip


def _at(train: SeriesBatch, times: Bool[Tensor, "s t"], bandwidth: float) -> SeriesBatch:
    """Return the series at some of their times, and where they start by these alone."""
    some = replace(train, weight=train.weight * times[..., None])
    first = some.observed.float().argmax(1)
    begin = some.times.gather(1, first[:, None])
    return replace(some, begin=begin[:, 0], start=some.smoothed(begin, bandwidth)[0][:, 0])
