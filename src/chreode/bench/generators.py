"""What a generative model must beat: ways to make counts of a class that a page of code can hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from sklearn.utils.extmath import randomized_svd

Counts: TypeAlias = Mapping[str, sp.csr_matrix]
"""Raw counts by modality, of the same cells; those that lack a modality have an empty row."""
Classes: TypeAlias = Int[np.ndarray, " _"]
_COMPONENTS = 50


@dataclass(frozen=True, eq=False)
class Known:
    """Cells to learn from.

    Attributes
    ----------
    counts
        Their counts.
    measured
        Which of them have each modality.
    classes
        The class of each.
    """

    counts: Counts
    measured: Mapping[str, Bool[np.ndarray, " n"]]
    classes: Classes


def replayed(
    classes: Classes, wanted: Classes, rng: np.random.Generator
) -> Int[np.ndarray, " wanted"]:
    """Return a row of each class wanted, no row twice unless a class has too few."""
    out = np.empty(len(wanted), np.int64)
    for number in np.unique(wanted):
        mine = wanted == number
        here = np.flatnonzero(classes == number)
        out[mine] = rng.choice(here, mine.sum(), replace=mine.sum() > len(here))
    return out


def independent(
    known: Known, wanted: Classes, rng: np.random.Generator
) -> dict[str, sp.csr_matrix]:
    """Draw every feature by itself, negative binomial with the mean and variance it has in the class."""

    def draw(role: str, number: int, n: int) -> sp.csr_matrix:
        mine = (known.classes == number) & known.measured[role]
        return _negative_binomial(known.counts[role][mine], n, rng)

    return {role: _by_class(wanted, partial(draw, role)) for role in known.counts}


def _negative_binomial(x: sp.csr_matrix, n: int, rng: np.random.Generator) -> sp.csr_matrix:
    if x.shape[0] == 0:
        return sp.csr_matrix((n, x.shape[1]), dtype=np.float32)
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(0)).ravel()
    excess = (
        np.asarray(x.multiply(x).mean(0)).ravel() - mean**2 - mean
    )  # above a Poisson's variance
    theta = np.divide(mean**2, excess, out=np.full_like(mean, 1e6), where=excess > 0)
    theta = np.clip(theta, 1e-8, 1e6)
    rate = rng.gamma(theta, size=(n, len(mean))) * (mean / theta)
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32))


def mixture(known: Known, wanted: Classes, rng: np.random.Generator) -> dict[str, sp.csr_matrix]:
    """Draw log-rates of each class in its principal components, then Poisson counts.

    A count is Poisson with rate depth x frequency x exp(W z - |W|² / 2) x gamma. z is normal, depths are
    those of cells of the class, and the gamma holds what variance of a feature the components leave. The
    components are those of Pearson residuals whose eigenvalues stand above what independent features
    would show. They are shrunk to what rates have without the noise of counting, which the Poisson adds,
    and adds but once.

    References
    ----------
    Components and noise: Baik & Silverstein (2006), J. Multivariate Analysis 97:1382; shrinkage of loadings:
    Donoho, Gavish & Johnstone (2018), Annals of Statistics 46:1742 (Frobenius loss).
    """
    counts = known.counts
    whole = np.flatnonzero(np.all([known.measured[role] for role in counts], axis=0))
    x = sp.csr_matrix(sp.hstack([c[whole] for c in counts.values()])).astype(np.float64)
    ends = np.cumsum([0, *(c.shape[1] for c in counts.values())])
    blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]

    def drawn(number: int, n: int) -> sp.csr_matrix:
        mine = np.flatnonzero(known.classes[whole] == number)
        mine = mine if len(mine) else np.arange(len(whole))
        cells = x[mine].toarray()
        depth = np.stack([cells[:, block].sum(1) for block in blocks], axis=1)
        law = _LogRates.of(cells, depth, blocks)
        return sp.csr_matrix(law.draw(depth[rng.integers(len(mine), size=n)], blocks, rng))

    made = _by_class(wanted, drawn)
    return {role: made[:, block] for role, block in zip(counts, blocks, strict=True)}


@dataclass(frozen=True, eq=False)
class _LogRates:
    """What the rates of a class are: frequency within the modality, loadings, and θ of the rest."""

    frequency: Float[np.ndarray, " g"]
    loadings: Float[np.ndarray, "k g"]
    theta: Float[np.ndarray, " g"]

    @classmethod
    def of(
        cls,
        cells: Float[np.ndarray, "n g"],
        depth: Float[np.ndarray, "n m"],
        blocks: Sequence[slice],
    ) -> _LogRates:
        n, g = cells.shape
        frequency = cells.sum(0)
        mu = np.empty_like(cells)
        for j, block in enumerate(blocks):
            frequency[block] /= max(depth[:, j].sum(), 1)
            mu[:, block] = depth[:, [j]] * frequency[block]
        expected = np.maximum((mu**2).sum(0), 1e-12)
        # variance of rates over their squared mean, by factorial moments: free of the Poisson's
        excess = np.maximum((((cells - mu) ** 2 - cells).sum(0)) / expected, 0)
        residuals = (cells - mu) / np.sqrt(np.maximum(mu, 1e-12))
        residuals = np.clip(residuals, -np.sqrt(n), np.sqrt(n))
        spread = np.sqrt(np.maximum((residuals**2).mean(0), 1e-12))
        few = max(1, min(_COMPONENTS, n - 1, g - 1))
        _, singular, axes = randomized_svd(residuals / spread, few, random_state=0)
        signal = _shrunk(singular**2 / n, g / n)
        axes = np.sqrt(signal)[:, None] * axes * spread  # of residuals
        axes = axes[signal > 0] / np.sqrt(np.maximum(mu.mean(0), 1e-12))  # of rates over their mean
        explained = (axes**2).sum(0)
        # no more than there is
        axes *= np.sqrt(np.minimum(1, excess / np.maximum(explained, 1e-12)))
        explained = np.minimum(explained, excess)
        loadings = axes * np.sqrt(np.log1p(explained) / np.maximum(explained, 1e-12))
        rest = (1 + excess) / (1 + explained) - 1
        return cls(frequency, loadings, 1 / np.clip(rest, 1e-6, 1e8))

    def draw(
        self, depth: Float[np.ndarray, "n m"], blocks: Sequence[slice], rng: np.random.Generator
    ) -> Float[np.ndarray, "n g"]:
        z = rng.normal(size=(len(depth), len(self.loadings)))
        rate = self.frequency * np.exp(z @ self.loadings - (self.loadings**2).sum(0) / 2)
        for j, block in enumerate(blocks):
            rate[:, block] *= depth[:, [j]] / np.maximum(
                rate[:, block].sum(1, keepdims=True), 1e-12
            )
        return rng.poisson(rate * rng.gamma(self.theta, size=rate.shape) / self.theta).astype(
            np.float32
        )


def _shrunk(eigenvalues: Float[np.ndarray, " k"], ratio: float) -> Float[np.ndarray, " k"]:
    """Return what eigenvalues of correlations are beyond noise, of `ratio` features a cell; 0 if nothing."""
    half = (eigenvalues + 1 - ratio) / 2
    above = np.sqrt(np.maximum(half**2 - eigenvalues, 0))
    beyond = np.where(eigenvalues > (1 + np.sqrt(ratio)) ** 2, half + above - 1, 0)
    cosine = (1 - ratio / np.maximum(beyond, 1e-12) ** 2) / (1 + ratio / np.maximum(beyond, 1e-12))
    return beyond * np.maximum(cosine, 0)


def _by_class(wanted: Classes, draw: Callable[[int, int], sp.csr_matrix]) -> sp.csr_matrix:
    """Stack what is drawn for every class, in the order wanted."""
    rows = [np.flatnonzero(wanted == number) for number in np.unique(wanted)]
    parts = [draw(int(wanted[of[0]]), len(of)) for of in rows]
    return sp.csr_matrix(sp.vstack(parts, format="csr")[np.argsort(np.concatenate(rows))])
