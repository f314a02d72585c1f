"""Forecasts that a page of code can make: what dynamics must beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import expm_multiply
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.model_selection import GroupKFold
from torch import Tensor

from ..data.series import SeriesBatch
from ..errors import counted
from ..learn import analogs

#: Of the smoother, as a share of the time from first to last cell.
BANDWIDTH = 0.1
#: Times of a series below which its neighbouring ones are too far apart to tell of one.
FEW = 10


@dataclass(frozen=True)
class Forecaster:
    """What a baseline learned.

    Attributes
    ----------
    forecast
        Returns the states of series at their times, from their starts, without genes that are absent.
    edges
        Which gene drives which, row the driver, if it can say.
    note
        Settings that it chose.
    oracle
        Whether it is shown the values that it forecasts, as a ceiling is.
    """

    forecast: Callable[[SeriesBatch, tuple[int, ...]], Float[Tensor, "s t g"]]
    edges: Float[np.ndarray, "g g"] | None = None
    note: str = ""
    oracle: bool = False


#: Rows that are learned from, and those held out.
Fold: TypeAlias = tuple[np.ndarray, np.ndarray]
Learn: TypeAlias = Callable[[SeriesBatch, float], Forecaster]


def persistence(train: SeriesBatch, bandwidth: float) -> Forecaster:  # noqa: ARG001 (one signature)
    """Nothing moves."""
    return Forecaster(lambda batch, _: batch.start[:, None].expand_as(batch.values))


def mean(train: SeriesBatch, bandwidth: float) -> Forecaster:  # noqa: ARG001 (one signature)
    """Everything is the mean of the training cells."""
    centre = (train.weight * train.values).sum((0, 1)) / train.weight.sum((0, 1)).clamp(min=1)
    return Forecaster(lambda batch, _: centre.expand_as(batch.values))


def smoother(train: SeriesBatch, bandwidth: float) -> Forecaster:  # noqa: ARG001 (one signature)
    """All series are the training cells' mean course over time (Nadaraya 1964, Gaussian kernel)."""
    first, last = train.times.amin(), train.times.amax()
    width = BANDWIDTH * (last - first)
    when = train.times.flatten()
    w, x = train.weight.flatten(0, 1), train.values.flatten(0, 1)

    def forecast(batch: SeriesBatch, _: tuple[int, ...]) -> Tensor:
        kernel = torch.exp(
            -0.5 * ((batch.times[..., None].clamp(first, last) - when) / width).square()
        )
        return (kernel @ (w * x)) / (kernel @ w).clamp(min=1e-12)

    return Forecaster(forecast)


def time_itself(train: SeriesBatch, bandwidth: float) -> Forecaster:
    """All series are a regression of the training cells on time; held-out parts choose its bandwidth."""
    share = analogs.width_of_time(train, bandwidth)
    width = share * analogs.length(train)
    return Forecaster(
        lambda batch, _: analogs.over_time(train, batch, width), note=f"bandwidth {share:g}"
    )


def analog(train: SeriesBatch, bandwidth: float) -> Forecaster:
    """The same, in which series weigh more the nearer they begin; held-out parts choose how much more."""
    share = analogs.width_of_time(train, bandwidth)
    width = share * analogs.length(train)
    reach, components = analogs.analog_setting(train, bandwidth, width)

    def forecast(batch: SeriesBatch, _: tuple[int, ...]) -> Tensor:
        weights = analogs.nearness(train, batch, reach, components, width)
        return analogs.over_time(train, batch, width, weights)

    note = f"bandwidth {share:g}, components {components}, weights {reach:g} spreads wide"
    return Forecaster(forecast, note=note)


def ridge(train: SeriesBatch, bandwidth: float) -> Forecaster:
    """dx/dt = A x + b, by ridge regression on slopes of smoothed paths."""
    x, slopes, folds = _regression(train, bandwidth)
    alphas, judged = np.logspace(-4, 4, 17), "neg_mean_squared_error"
    found = RidgeCV(alphas=alphas, cv=folds, scoring=judged).fit(x, slopes)
    return _linear(found.coef_, found.intercept_)


def lasso(train: SeriesBatch, bandwidth: float) -> Forecaster:
    """dx/dt = A x + b with few entries in A, by lasso on slopes (as SINDy with a linear library)."""
    x, slopes, folds = _regression(train, bandwidth)
    scale = np.maximum(x.std(0), 1e-8)
    # a tolerance of a thousandth: of hundreds of genes each is a cross-validation of its own
    one = LassoCV(cv=folds, alphas=20, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of folds; the note tells of the rest
        rows = [clone(one).fit(x / scale, slope) for slope in slopes.T]
    cut = any(row.n_iter_ >= one.max_iter for row in rows)
    found = _linear(
        np.stack([row.coef_ / scale for row in rows]), np.array([row.intercept_ for row in rows])
    )
    return replace(found, note="not converged" if cut else "")


def halves(train: SeriesBatch, bandwidth: float) -> Forecaster:
    """Each time is estimated from the others of its series, smoothed: no forecast, but what noise leaves."""
    fewest = int(train.observed.sum(1).min())
    far = f"no ceiling here: of {counted(fewest, 'time')}, the others tell little of one"

    def interpolated(batch: SeriesBatch, times: Tensor) -> Tensor:
        some = replace(batch, weight=batch.weight * times[:, None])
        return some.smoothed(batch.times, bandwidth)[0]

    def forecast(batch: SeriesBatch, _: tuple[int, ...]) -> Tensor:
        odd = torch.arange(batch.times.shape[1]) % 2
        return torch.where(
            odd[:, None] == 1, interpolated(batch, 1 - odd), interpolated(batch, odd)
        )

    return Forecaster(forecast, note=far if fewest < FEW else "", oracle=True)


#: What no forecast can be better than, but by the noise of half the cells.
CEILING = "its other half, smoothed"
BASELINES: dict[str, Learn] = {
    "persistence": persistence, "training mean": mean, "kernel smoother": smoother,
    "time itself": time_itself, "analog": analog, "ridge linear ODE": ridge, "lasso on slopes": lasso,
}  # fmt: skip


def _regression(train: SeriesBatch, bandwidth: float) -> tuple[np.ndarray, np.ndarray, list[Fold]]:
    """Return states, their slopes and folds, five at the most: of whole series, or of one's spans of time."""
    smooth = train.matched(bandwidth)
    assert smooth.slopes is not None
    seen = train.observed
    x, slopes = smooth.values[seen].double().numpy(), smooth.slopes[seen].double().numpy()
    n = min(5, len(train) if len(train) > 1 else len(x))
    of = np.nonzero(seen.numpy())[0] if len(train) > 1 else np.arange(len(x)) * n // len(x)
    return x, slopes, list(GroupKFold(n).split(x, groups=of))


def _linear(a: Float[np.ndarray, "g g"], b: Float[np.ndarray, " g"]) -> Forecaster:
    whole = np.zeros((len(a) + 1, len(a) + 1))
    whole[:-1, :-1], whole[:-1, -1] = a, b

    def forecast(batch: SeriesBatch, absent: tuple[int, ...]) -> Tensor:
        out = torch.empty_like(batch.values)
        moves = whole.copy()
        moves[list(absent)] = 0.0
        for s, (start, begin) in enumerate(zip(batch.start, batch.begin, strict=True)):
            state, time = np.append(start.double().numpy(), 1.0), float(begin)
            state[list(absent)] = 0.0
            for t, when in enumerate(batch.times[s].tolist()):
                # times of cells differ by as many steps as there are cells: none is worth a whole matrix
                state, time = expm_multiply(moves * (when - time), state), when
                out[s, t] = torch.from_numpy(state[:-1])
        return out

    return Forecaster(forecast, a.T)
