"""The least that InfoNCE can be on the sphere, and what maps that keep some coordinates reach: closed forms.

Latents z are uniform on the unit sphere of R^k. Of positives, `n_fixed` coordinates u are those of the
anchor; the others, v, lie on a sphere of radius r = √(1 − ‖u‖²), and are von Mises-Fisher about the
anchor's. All values are in nats, and limits for so many negatives that the positive counts for nothing
beside them: `outweighed` says where that holds. Those that need quadrature are within .005 of the limit up
to κ = 10,000.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import hyp0f1, ive, logsumexp
from scipy.stats import beta

#: "theorem": v's concentration is κr², which is e^{κ z·z̃} on v's own sphere. "published": it is κ, which is
#: what the paper's algorithm 13 draws.
Sampler: TypeAlias = Literal["theorem", "published"]
Concentration: TypeAlias = float | np.ndarray
#: Concentrations below are this one: the formulas divide by it.
_LEAST = 1e-9
#: Nats by which negatives must outweigh a positive.
_OUTWEIGHED = 3.0
#: Nodes of quadrature.
_NODES = 128


def log_mean_exp(kappa: Concentration, k: int) -> Any:
    """Return ln E exp(κ z·e) over the unit sphere of R^k, for any unit vector e.

    Examples
    --------
    >>> round(float(log_mean_exp(2.0, 3)) - math.log(math.sinh(2.0) / 2.0), 12)
    0.0
    """
    order, at = k / 2 - 1, np.maximum(kappa, _LEAST)
    scaled = ive(order, at)  # is 0 where κ is far below k
    with np.errstate(divide="ignore"):
        usual = math.lgamma(k / 2) + np.log(scaled) + at - order * np.log(at / 2)
    return np.where(scaled > 0, usual, np.log(hyp0f1(k / 2, np.where(scaled > 0, 0, at) ** 2 / 4)))


def mean_cosine(kappa: Concentration, k: int) -> Any:
    """Return E z·e of von Mises-Fisher about e in R^k: I_{k/2}(κ) / I_{k/2−1}(κ).

    Examples
    --------
    >>> round(float(mean_cosine(2.0, 3)), 6), round(1 / math.tanh(2.0) - 1 / 2.0, 6)
    (0.537315, 0.537315)
    """
    at = np.maximum(kappa, _LEAST)
    above, below = ive(k / 2, at), ive(k / 2 - 1, at)
    small = np.where(above > 0, 0, at)  # as in `log_mean_exp`
    series = small / k * hyp0f1(k / 2 + 1, small**2 / 4) / hyp0f1(k / 2, small**2 / 4)
    return np.where(above > 0, above / np.where(above > 0, below, 1), series)


def full_support(kappa: float, k: int, n_negatives: int) -> float:
    """Return the least InfoNCE, which orthogonal maps reach, if all coordinates of positives vary.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, theorem 4.4 with κ = 1/τ.

    Examples
    --------
    >>> round(full_support(1 / 0.3, 3, 2000), 3)
    6.694
    """
    met = kappa * mean_cosine(kappa, k)
    return float(math.log(n_negatives) + log_mean_exp(kappa, k) - met)


def aligned_and_uniform(kappa: float, k: int, n_negatives: int) -> float:
    """Return InfoNCE of a map that makes positives equal and spreads cells evenly: nothing is lower.

    If a coordinate is fixed, a map that fills the sphere from this coordinate alone reaches it.

    Examples
    --------
    >>> round(aligned_and_uniform(1 / 0.3, 3, 2000), 3)
    5.703
    """
    return float(math.log(n_negatives) + log_mean_exp(kappa, k) - kappa)


def outweighed(kappa: float, k: int, n_negatives: int) -> bool:
    """Return whether so many negatives outweigh any positive, as closed forms suppose: by three nats.

    A positive then adds ln(1 + e⁻³) = .05 to a loss at the most. Without it, losses could be below 0.

    Examples
    --------
    >>> outweighed(1 / 0.3, 3, 2000), outweighed(1000, 3, 2000)
    (True, False)
    """
    return aligned_and_uniform(kappa, k, n_negatives) >= _OUTWEIGHED


def rescaled(
    factor: float,
    kappa: float,
    k: int,
    n_fixed: int,
    n_negatives: int,
    *,
    sampler: Sampler = "theorem",
    corrected: bool = False,
) -> float:
    """Return the loss of h(u, v) = (u, λv) / ‖(u, λv)‖ if positives keep u.

    Parameters
    ----------
    factor
        λ. 1 is the identity, like any orthogonal map; infinity is (0, v/‖v‖), which forgets u.
    kappa
        κ, and one over the loss's temperature.
    sampler
        How v is drawn, see `Sampler`.
    corrected
        Whether negatives are drawn from the anchor's own support, else from the whole sphere.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, theorems 4.5 and 4.6.

    Examples
    --------
    >>> [round(rescaled(f, 1 / 0.3, 3, 1, 2000, corrected=True), 3) for f in (1.0, math.inf)]
    [6.993, 7.245]
    >>> drawn = {"corrected": True, "sampler": "published"}
    >>> [round(rescaled(f, 1 / 0.3, 3, 1, 2000, **drawn), 3) for f in (1.0, math.inf)]
    [6.823, 6.687]
    >>> rescaled(0.9, 1 / 0.3, 3, 1, 2000) < rescaled(1.0, 1 / 0.3, 3, 1, 2000)
    True
    """
    free = k - n_fixed
    nodes, weights = _nodes()
    squares = beta.ppf((nodes + 1) / 2, free / 2, n_fixed / 2)  # of v's radius, at even quantiles
    if math.isfinite(factor):
        length = np.sqrt(1 - squares + factor**2 * squares)
        of_u, of_v = np.sqrt(1 - squares) / length, factor * np.sqrt(squares) / length
    else:
        of_u, of_v = np.zeros(_NODES), np.ones(_NODES)
    drawn = kappa * squares if sampler == "theorem" else np.full(_NODES, kappa)
    met = of_u**2 + of_v**2 * mean_cosine(drawn, free)
    if corrected:
        others = kappa * of_u**2 + log_mean_exp(kappa * of_v**2, free)
    else:
        products = log_mean_exp(kappa * np.outer(of_u, of_u), n_fixed)
        products = products + log_mean_exp(kappa * np.outer(of_v, of_v), free)
        others = logsumexp(products, axis=1, b=weights)
    return float(math.log(n_negatives) + weights @ (others - kappa * met))


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes on [−1, 1] and weights of a mean over them."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights / 2
