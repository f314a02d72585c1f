"""How much of a factor positives reach, from two readings of each cell and of each of its positives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

#: Correlation of both readings over all positives below which these cannot be read.
LEAST_AGREED = 0.1
#: Cells whose positives are looked at together: copies of all of them would be the most of the memory.
_AT_ONCE = 256


class Share(NamedTuple):
    """What positives reach.

    Attributes
    ----------
    coverage, low, high
        The share of the spread, and a 95 % interval of it; NaN where positives cannot be read.
    blur
        Share of the variance of a reading within cells that is error of reading; NaN without any.
    agreed
        Correlation of both readings over all positives.
    """

    coverage: float
    low: float
    high: float
    blur: float
    agreed: float


def share_of(
    cells: Float[np.ndarray, "n h two d"],
    views: Float[np.ndarray, "n v h two d"],
    *,
    classes: bool,
    draws: int,
    generator: np.random.Generator,
) -> Share:
    r"""Return how much of a factor positives reach, with the error of reading taken off.

    With readings a and b of two halves of the genes, over cells i and their positives, the coverage of a
    continuous factor is

    .. math:: \sqrt{E_i \, \mathrm{cov}(a, b \mid i) \, / \, \mathrm{cov}(a_{iv}, b_{iv})},

    of the positives of one cell above, and of all positives below. What is wrong in a alone is not in either.
    A shift or another scale of all positives changes nothing: the loss compares positives with positives.
    Of classes a and b are probabilities, and coverage is

    .. math:: 1 - \mathrm{cov}(a_i, b_{iv}) / \sqrt{\mathrm{cov}(a_i, b_i) \, \mathrm{cov}(a_{iv}, b_{iv})},

    summed over classes: one minus the correlation of the class of a cell with that of its positive. If
    positives take the class of a random cell with a chance p, it is p, whatever is read wrong, as long as
    errors do not depend on which of the two is read. Products are averaged over halvings.

    Parameters
    ----------
    cells, views
        Readings by halving and half: of cells, and of the positives of each.
    draws
        Resamples of cells for the interval, each cell with all its positives.

    References
    ----------
    Spearman (1904), The proof and measurement of association between two things, American Journal of
    Psychology 15:72 (errors taken off by a second measurement). Efron & Tibshirani (1993), An Introduction to
    the Bootstrap, chapter 13 (percentiles).

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> value = generator.random((4000, 1)) * [1.0] + np.zeros((4000, 1))
    >>> positive = value + generator.uniform(-0.125, 0.125, (4000, 8))
    >>> error = lambda *shape: 0.3 * generator.standard_normal(shape)
    >>> cells = value[:, :, None, None] + error(4000, 1, 2, 1)
    >>> views = positive[:, :, None, None, None] + error(4000, 8, 1, 2, 1)
    >>> found = share_of(cells, views, classes=False, draws=100, generator=generator)
    >>> abs(found.coverage - 0.25) < 0.05
    True
    """
    weights, n_views = resampled(len(cells), draws, generator), views.shape[1]
    a, b = (_side_by_side(cells[..., half, :]) for half in (0, 1))
    of = moments_of(views)
    among = _covariance(weights, a, b, (a * b).sum(1))
    every = _covariance(weights, of.mean_a, of.mean_b, of.product.sum(1))
    if classes:
        between = [
            _covariance(weights, x, y, (x * y).sum(1)) for x, y in ((a, of.mean_b), (b, of.mean_a))
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = 1 - np.mean(between, axis=0) / np.sqrt(among * every)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.sqrt(np.clip(weights @ of.within / every, 0, None))
    own = (of.within_a.mean() + of.within_b.mean()) / 2
    spread = np.sqrt(
        _variance(of.mean_a, of.within_a, n_views) * _variance(of.mean_b, of.within_b, n_views)
    )
    agreed = float(every[0] / spread) if spread > 0 else 0.0
    blur = float(np.clip(1 - of.within.mean() / own, 0, 1)) if own > 0 else np.nan
    if agreed < LEAST_AGREED:
        return Share(np.nan, np.nan, np.nan, blur, agreed)
    clipped = np.clip(found, 0, 1)
    low, high = np.nanquantile(clipped[1:], [0.025, 0.975])
    return Share(float(clipped[0]), float(low), float(high), blur, agreed)


def resampled(n: int, draws: int, generator: np.random.Generator) -> Float64[np.ndarray, "draws n"]:
    """Return weights of cells that sum to 1: equal ones, then those of each resample."""
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones(n), drawn]) / n


class Moments(NamedTuple):
    """What is needed of the positives of each cell, by the readings a and b of both halves.

    Attributes
    ----------
    mean_a, mean_b, product
        Means over the positives, also of a · b.
    within, within_a, within_b
        Covariance of a and b over the positives, and the variance of each, summed over readings.
    """

    mean_a: Float[np.ndarray, "n m"]
    mean_b: Float[np.ndarray, "n m"]
    product: Float[np.ndarray, "n m"]
    within: Float[np.ndarray, " n"]
    within_a: Float[np.ndarray, " n"]
    within_b: Float[np.ndarray, " n"]


def moments_of(views: Float[np.ndarray, "n v h two d"]) -> Moments:
    """Return the moments of the positives of each cell, of which there are two or more."""
    starts = range(0, len(views), _AT_ONCE)
    parts = zip(*(_moments(views[at : at + _AT_ONCE]) for at in starts), strict=True)
    return Moments(*map(np.concatenate, parts))


def _moments(views: Float[np.ndarray, "b v h two d"]) -> Moments:
    a, b = (views[..., half, :].reshape(*views.shape[:2], -1) for half in (0, 1))
    within = _within(a, b), _within(a, a), _within(b, b)
    return Moments(a.mean(1), b.mean(1), (a * b).mean(1), *within)


def _side_by_side(x: Float[np.ndarray, "n h d"]) -> Float64[np.ndarray, "n m"]:
    return x.reshape(len(x), -1).astype(np.float64)


def _within(
    a: Float[np.ndarray, "n v m"], b: Float[np.ndarray, "n v m"]
) -> Float[np.ndarray, " n"]:
    """Return the covariance over the positives of each cell, summed over readings."""
    n_views = a.shape[1]
    centred = (x - x.mean(1, keepdims=True) for x in (a, b))
    return np.einsum("nvm,nvm->n", *centred) / (n_views - 1)


def _variance(
    mean: Float[np.ndarray, "n m"], within: Float[np.ndarray, " n"], n_views: int
) -> float:
    """Return the variance over all positives, summed over readings."""
    return float((1 - 1 / n_views) * within.mean() + mean.var(0).sum())


def _covariance(
    weights: Float64[np.ndarray, "draws n"],
    a: Float[np.ndarray, "n m"],
    b: Float[np.ndarray, "n m"],
    products: Float[np.ndarray, " n"],
) -> Float64[np.ndarray, " draws"]:
    """Return covariances over weighed cells, summed over readings, from means and products of each cell."""
    return weights @ products - ((weights @ a) * (weights @ b)).sum(1)
