"""The one judge of both libraries: likelihoods in NumPy and SciPy, sharing no code with either.

References
----------
Lopez et al. (2018), Nature Methods 15:1053, for the model whose bound is evaluated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln, polygamma, xlogy
from scipy.stats import ttest_ind

# A softmax in float32 can underflow to 0 where a count was seen; both libraries get this floor.
_SMALLEST_MEAN = 1e-30
# log θ outside this range is a Poisson, or a gene seen in a handful of cells.
_LOG_THETA = (-12.0, 12.0)


def nb_log_prob(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return the log-probability of counts under mean `mu` and inverse dispersion `theta`."""
    mu = np.maximum(mu, _SMALLEST_MEAN)
    ways = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    return ways - theta * np.log1p(mu / theta) + xlogy(x, mu) - xlogy(x, mu + theta)


def zinb_log_prob(
    x: np.ndarray, mu: np.ndarray, theta: np.ndarray, logits: np.ndarray
) -> np.ndarray:
    """Return the same with an extra zero of probability sigmoid(`logits`)."""
    counted = nb_log_prob(x, mu, theta)
    either = np.where(x == 0, np.logaddexp(logits, counted), counted)
    return either - np.logaddexp(0, logits)


def kl_from_prior(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return KL(N(mean, variance) ‖ N(0, I)) per cell."""
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(-1)


def held_out_elbo(counts: sp.csr_matrix, fit: dict[str, np.ndarray]) -> np.ndarray:
    """Return one estimate of each cell's ELBO per draw of z, in nats: log p(x|z) less the KL.

    Parameters
    ----------
    counts
        Raw counts of the test cells.
    fit
        ``z_mean`` and ``z_variance`` of q(z|x), cells x latent; ``mu`` and ``logits`` given each
        draw of z, draws x cells x genes; ``theta``, genes, or as ``mu`` where it differs by cell.

    Raises
    ------
    ValueError
        If the means of a cell do not sum to its depth: the two sides would not explain the same.
    """
    x = counts.toarray().astype(np.float64)
    thetas = np.broadcast_to(fit["theta"], fit["mu"].shape)
    kl = kl_from_prior(*(fit[k].astype(np.float64) for k in ("z_mean", "z_variance")))
    elbo = np.empty((len(fit["mu"]), len(x)))
    for draw, parts in enumerate(zip(fit["mu"], thetas, fit["logits"], strict=True)):
        mu, theta, logits = (part.astype(np.float64) for part in parts)
        if not np.allclose(mu.sum(1), x.sum(1), rtol=1e-3):
            raise ValueError("means do not sum to the observed depth of the cells")
        elbo[draw] = zinb_log_prob(x, mu, theta, logits).sum(1) - kl
    return elbo


def fit_null(counts: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return each gene's frequency and inverse dispersion, by maximum likelihood.

    Every cell is ``NB(depth * frequency, theta)``. The two parameters are orthogonal in Fisher's
    information, so they take Newton steps in turn, all genes at once, on the log scale.
    """
    x = counts.toarray().astype(np.float64)
    depth = x.sum(1, keepdims=True)
    # Γ's derivatives cancel where a count is 0, and few distinct counts are left per gene
    stored = counts.tocoo()
    (gene, count), cells = np.unique([stored.col, stored.data], axis=1, return_counts=True)
    gene = gene.astype(int)
    # half a count for genes that no training cell has
    frequency = np.maximum(x.sum(0), 0.5) / depth.sum()
    theta = np.ones_like(frequency)
    for _ in range(100):
        mu = depth * frequency
        score, information = ((x - mu) / (1 + mu / theta)).sum(0), (mu / (1 + mu / theta)).sum(0)
        step_frequency = np.clip(score / information, -1, 1) * (x.sum(0) > 0)
        frequency = frequency * np.exp(step_frequency)
        step_theta = _theta_step(x, depth * frequency, theta, gene, count, cells)
        theta = theta * np.exp(step_theta)
        if max(np.abs(step_frequency).max(), np.abs(step_theta).max()) < 1e-6:
            return frequency, theta
    raise RuntimeError("the null model did not converge in 100 steps")


def _theta_step(
    x: np.ndarray,
    mu: np.ndarray,
    theta: np.ndarray,
    gene: np.ndarray,
    count: np.ndarray,
    cells: np.ndarray,
) -> np.ndarray:
    """Return each gene's Newton step of log θ, kept within its range and a factor of e."""

    def polygammas(order: int) -> np.ndarray:
        t = theta[gene]
        rise = polygamma(order, count + t) - polygamma(order, t)
        return np.bincount(gene, cells * rise, minlength=len(theta))

    total = mu + theta
    slope = polygammas(0) + ((mu - x) / total - np.log1p(mu / theta)).sum(0)
    bend = polygammas(1) + (mu / (theta * total) - (mu - x) / total**2).sum(0)
    slope, bend = theta * slope, theta * slope + theta**2 * bend  # by log θ
    # uphill where the likelihood is not yet concave
    step = np.clip(np.where(bend < 0, -slope / np.minimum(bend, -1e-9), np.sign(slope)), -1, 1)
    return np.clip(np.log(theta) + step, *_LOG_THETA) - np.log(theta)


def null_elbo(counts: sp.csr_matrix, frequency: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return each cell's log-likelihood under the null, which has no latent variable."""
    x = counts.toarray().astype(np.float64)
    return nb_log_prob(x, x.sum(1, keepdims=True) * frequency, theta).sum(1)


def unconverged(validation_elbo: Sequence[float]) -> bool:
    """Tell whether the best validation epoch is among the last 5 %."""
    last = max(1, math.ceil(0.05 * len(validation_elbo)))
    return int(np.argmax(validation_elbo)) >= len(validation_elbo) - last


def half_width(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return half of Welch's 95 % interval of the difference of two means over seeds."""
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return 0.0
    interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2
