"""Which share of the positives of each class have left it, from two readings of cells and positives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from .shares import moments_of, resampled

#: How far the share of a class that is read right must be above that of other cells read as it.
TOLD = 0.1
#: What is not divided by less.
_LEAST = 1e-12


def class_shares(
    cells: Float[np.ndarray, "n h two k"],
    views: Float[np.ndarray, "n v h two k"],
    values: Float[np.ndarray, " n"],
    *,
    draws: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "k three"]:
    r"""Return for each class how many of its positives have left it, with the error of reading taken off.

    One class is compared with the rest, by the probability of that class alone. Let positives of the class
    stay in it with chance x, and those of other cells come into it with chance y. Readings of positives are
    an affine map of readings of cells: a shift or another scale of all positives is no change. With d the
    difference of the mean readings of the class and the rest, and W, V the covariances of both readings
    within the class and within the rest (errors of one reading are not in the other), put

    .. math:: A = (W - V) / d^2, \quad B = (W + V) / d^2, \quad Q = 1 + 2 B + A^2.

    If `0` marks the same of cells as they are, a mixture of both kinds has

    .. math:: x - y = \sqrt{Q_0 / Q}, \quad x + y = 1 + A_0 - A (x - y).

    Coverage is (1 − x) / (1 − π), with π the share of cells in the class: if positives of a class take that
    of a random cell with a chance p, it is p, also where p differs between classes. Products are averaged
    over halvings.

    Parameters
    ----------
    cells, views
        Probabilities by halving and half: of cells, and of the positives of each.
    values
        The number of the class of each cell.
    draws
        Resamples of cells for the interval, each cell with all its positives.

    Returns
    -------
    numpy.ndarray
        Coverage and its 95 % interval; NaN of a class that readers cannot tell from the rest.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> values = generator.integers(3, size=3000)
    >>> leaves = generator.random((3000, 8)) < np.where(values == 0, 0.5, 0)[:, None]
    >>> drawn = np.where(leaves, generator.integers(3, size=(3000, 8)), values[:, None])
    >>> read = lambda x: np.eye(3)[x][..., None, None, :] + 0.2 * generator.normal(size=(*x.shape, 1, 2, 3))
    >>> found = class_shares(read(values), read(drawn), values, draws=50, generator=generator)
    >>> np.allclose(found[:, 0], [0.5, 0, 0], atol=0.05)
    True
    """
    n, h, _, k = cells.shape
    weights = resampled(n, draws, generator)
    a, b = cells[:, :, 0], cells[:, :, 1]
    of_cells = np.stack([a, b, a * b])
    of_views = np.stack([x.reshape(n, h, k) for x in moments_of(views)[:3]])
    told = cells.mean((1, 2)).argmax(1)
    found = np.full((k, 3), np.nan)
    for each in range(k):
        inside = values == each
        if inside.all() or not inside.any():
            continue
        hit, false = (float((told[x] == each).mean()) for x in (inside, ~inside))
        share = weights[:, inside].sum(1)
        cell, view = (
            [_side(weights, at, *of[..., each].astype(np.float64)) for at in (inside, ~inside)]
            for of in (of_cells, of_views)
        )
        read = np.quantile(_spread(view, share)[1:], 0.025) > 0
        if read and hit - false >= TOLD:
            left = np.clip(_left(cell, view, share), 0, 1)
            found[each] = left[0], *np.nanquantile(left[1:], [0.025, 0.975])
    return found


class _Side(NamedTuple):
    """Mean readings of cells that are in a class, or of those that are not, and their covariance.

    The means are of each resample and halving, the covariance is averaged over halvings.
    """

    a: Float64[np.ndarray, "draws h"]
    b: Float64[np.ndarray, "draws h"]
    covariance: Float64[np.ndarray, " draws"]


def _side(
    weights: Float64[np.ndarray, "draws n"],
    at: Bool[np.ndarray, " n"],
    a: Float64[np.ndarray, "n h"],
    b: Float64[np.ndarray, "n h"],
    product: Float64[np.ndarray, "n h"],
) -> _Side:
    """Return what is read of some cells, from the means and products of each."""
    weights = weights[:, at]
    weights = weights / np.maximum(weights.sum(1, keepdims=True), _LEAST)
    mean_a, mean_b, both = (weights @ x[at] for x in (a, b, product))
    return _Side(mean_a, mean_b, (both - mean_a * mean_b).mean(1))


def _spread(
    sides: Sequence[_Side], share: Float64[np.ndarray, " draws"]
) -> Float64[np.ndarray, " draws"]:
    """Return the covariance of both readings over all cells."""
    inside, rest = sides
    apart = ((inside.a - rest.a) * (inside.b - rest.b)).mean(1)
    return share * inside.covariance + (1 - share) * (rest.covariance + share * apart)


def _left(
    cells: Sequence[_Side], views: Sequence[_Side], share: Float64[np.ndarray, " draws"]
) -> Float64[np.ndarray, " draws"]:
    """Return (1 − x) / (1 − π) of each resample, with x at least and y at most π."""
    d_a, d_b = (getattr(views[0], half) - getattr(views[1], half) for half in "ab")
    g_a, g_b = (getattr(cells[0], half) - getattr(cells[1], half) for half in "ab")
    apart, apart_0 = (np.maximum((x * y).mean(1), _LEAST) for x, y in ((d_a, d_b), (g_a, g_b)))
    w, v = (side.covariance / apart for side in views)
    w_0, v_0 = (side.covariance / apart_0 for side in cells)
    both = 1 + w_0 - v_0 - (w - v) * np.sqrt(_square(w_0, v_0) / _square(w, v))
    # W + V alone says how far x + y is from 2π where one of x and y is π
    middle = (1 - 2 * share + w_0 - v_0) / 2 / (w + v + 1)
    ahead = 2 * (share * (1 - share) + share * w_0 + (1 - share) * v_0) / (w + v + 1)
    reach = np.sqrt(np.maximum(middle**2 + ahead, 0))
    both = np.clip(both, 2 * share + middle - reach, 2 * share + middle + reach)
    difference = (both * (2 - both) / 2 + both * w_0 + (2 - both) * v_0) / (w + v + 0.5)
    stay = (both + np.sqrt(np.maximum(difference, 0))) / 2
    away = (d_a * g_b + d_b * g_a).mean(1) <= 0  # no more are in it than come into it
    return np.where(away, 1, (1 - stay) / np.maximum(1 - share, _LEAST))


def _square(
    w: Float64[np.ndarray, " draws"], v: Float64[np.ndarray, " draws"]
) -> Float64[np.ndarray, " draws"]:
    """Return Q, of covariances over d²."""
    return np.maximum(1 + 2 * (w + v) + (w - v) ** 2, _LEAST)
