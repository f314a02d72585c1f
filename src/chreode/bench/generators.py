"""What a generative model must beat: ways to make counts of a class that a page of code can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Int
from sklearn.decomposition import PCA

from ..metrics.generation import log_cp10k

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
    """Draw a Gaussian of each class in principal components of all modalities, then Poisson counts.

    Depths are those of cells of the class. A class of n cells has the covariance of its own by n to
    n + 50, and else a tenth of that of all cells.
    """
    counts = known.counts
    whole = np.all([known.measured[role] for role in counts], axis=0)
    blocks = [log_cp10k(x[whole]) for x in counts.values()]
    widths = np.cumsum([block.shape[1] for block in blocks])[:-1]
    x = sp.csr_matrix(sp.hstack(blocks))
    # by iteration, which needs no dense copy
    pca = PCA(min(_COMPONENTS, *(s - 1 for s in x.shape)), svd_solver="arpack", random_state=0).fit(
        x
    )
    z, of = pca.transform(x), known.classes[whole]
    depth = np.stack([np.asarray(c[whole].sum(1)).ravel() for c in counts.values()], axis=1)

    def drawn(number: int, n: int) -> np.ndarray:
        mine = np.flatnonzero(of == number)
        mine = mine if len(mine) else np.arange(len(of))
        share = len(mine) / (len(mine) + _COMPONENTS)
        own = np.cov(z[mine].T) if len(mine) > 1 else np.zeros((z.shape[1],) * 2)
        covariance = share * own + (1 - share) * 0.1 * np.cov(z.T)
        points = rng.multivariate_normal(z[mine].mean(0), covariance, n)
        libraries = depth[rng.choice(mine, n)]
        parts = np.split(np.expm1(np.maximum(pca.inverse_transform(points), 0)), widths, axis=1)
        rates = [
            p / np.maximum(p.sum(1, keepdims=True), 1e-12) * libraries[:, [j]]
            for j, p in enumerate(parts)
        ]
        return rng.poisson(np.hstack(rates)).astype(np.float32)

    made = _by_class(wanted, lambda number, n: sp.csr_matrix(drawn(number, n)))
    ends = [0, *widths, x.shape[1]]
    return {role: made[:, ends[j] : ends[j + 1]] for j, role in enumerate(counts)}


def _by_class(wanted: Classes, draw: Callable[[int, int], sp.csr_matrix]) -> sp.csr_matrix:
    """Stack what is drawn for every class, in the order wanted."""
    rows = [np.flatnonzero(wanted == number) for number in np.unique(wanted)]
    parts = [draw(int(wanted[of[0]]), len(of)) for of in rows]
    return sp.csr_matrix(sp.vstack(parts, format="csr")[np.argsort(np.concatenate(rows))])
