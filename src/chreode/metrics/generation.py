"""How far generated cells are from real ones: distances of clouds, of genes and of depths, and memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ks_2samp
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from ..config.arguments import Sparse, checked
from ..errors import ConfigError, DataError, counted
from .space import Cloud, log_cp10k

#: Widths of the kernels, as multiples of the median distance between real cells.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Widths of the published table of CFGen: sums of five kernels, biased.
PAPER_WIDTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def _refuse_odd(*clouds: Cloud, least: int = 1) -> None:
    """Refuse clouds between which there is no distance."""
    shapes = " and ".join(str(cloud.shape) for cloud in clouds)
    if any(c.ndim != 2 or not 0 < c.shape[1] == clouds[0].shape[1] for c in clouds):
        raise DataError(f"Clouds of shapes {shapes}: expected cells x the same dimensions.")
    if min(map(len, clouds)) < least:
        raise DataError(f"Clouds of shapes {shapes}: expected no fewer cells than {least} in each.")
    if not all(np.isfinite(cloud).all() for cloud in clouds):
        raise DataError(
            "Coordinates are NaN or infinite, which are near to nothing and far from nothing."
        )


@checked
def wasserstein2(real: Cloud, fake: Cloud, *, seed: int = 0) -> float:
    """Return the 2-Wasserstein distance between two clouds of equally weighted points, exactly.

    With as many points in each the optimal plan is a matching (Birkhoff), solved by shortest
    augmenting paths in O(n³). A larger cloud is first thinned at random to the size of the smaller.

    Examples
    --------
    >>> wasserstein2(np.zeros((2, 1)), np.array([[3.0], [3.0]]))
    3.0
    """
    _refuse_odd(real, fake)
    rng = np.random.default_rng(seed)
    n = min(len(real), len(fake))
    x, y = (c if len(c) == n else c[rng.choice(len(c), n, replace=False)] for c in (real, fake))
    cost = cdist(x, y, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


@checked
def mmd2(
    real: Cloud, fake: Cloud, widths: Float[np.ndarray, " k"] | None = None, *, biased: bool = False
) -> float:
    """Return the squared maximum mean discrepancy under a mean of Gaussian kernels.

    Unbiased (Gretton et al. 2012, equation 3): 0 in expectation for clouds of one distribution,
    hence at times below 0.

    Parameters
    ----------
    widths
        σ of each kernel exp(−d² / 2σ²) (default: `WIDTHS` times the median distance of real cells).
    biased
        Count each point as its own neighbour and sum the kernels, as in the tables of CFGen
        (with `PAPER_WIDTHS`): equal distributions then have about 2 k / n, not 0.
    """
    _refuse_odd(real, fake, least=2)
    xx, yy, xy = (cdist(a, b, "sqeuclidean") for a, b in ((real, real), (fake, fake), (real, fake)))
    widths = median_widths(real) if widths is None else widths
    if not len(widths) or not (widths > 0).all():
        raise ConfigError(f"widths={widths}: expected numbers above 0, one at the least.")
    n, m = len(real), len(fake)
    total = 0.0
    for width in widths:
        kx, ky, kxy = (np.exp(-d / (2 * width**2)) for d in (xx, yy, xy))
        if biased:
            total += kx.mean() + ky.mean() - 2 * kxy.mean()
        else:
            within = (kx.sum() - n) / (n * (n - 1)) + (ky.sum() - m) / (m * (m - 1))
            total += (within - 2 * kxy.mean()) / len(widths)
    return float(total)


@checked
def median_widths(real: Cloud) -> Float[np.ndarray, " k"]:
    """Return `WIDTHS` times the median distance between real cells (2,000 of them at the most).

    Where most pairs coincide, as where counts are few, it is that of the pairs that do not.

    Raises
    ------
    DataError
        If all cells coincide.
    """
    _refuse_odd(real)
    few = real[np.random.default_rng(0).permutation(len(real))[:2000]]
    apart = pdist(few)
    if not apart.any():
        raise DataError(
            f"There is no distance within {counted(len(real), 'cell')} to take widths from: all coincide."
        )
    return np.array(WIDTHS) * (np.median(apart) or np.median(apart[apart > 0]))


@checked
def energy_distance(real: Cloud, fake: Cloud) -> float:
    """Return 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ (Székely & Rizzo 2013), unbiased."""
    _refuse_odd(real, fake, least=2)
    n, m = len(real), len(fake)
    within = cdist(real, real).sum() / (n * (n - 1)) + cdist(fake, fake).sum() / (m * (m - 1))
    return float(2 * cdist(real, fake).mean() - within)


@dataclass(frozen=True)
class Manifold:
    """Shares of cells within reach of the other cloud; each 1 at best (density may be above).

    Attributes
    ----------
    precision, recall
        Fake cells within the k-nearest-neighbour balls of real ones, and the reverse
        (Kynkäänniemi et al. 2019).
    density, coverage
        Real balls per fake cell over k, and real cells whose ball holds a fake one (Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


@checked
def manifold(real: Cloud, fake: Cloud, k: int = 5) -> Manifold:
    """Compare the supports of two clouds by balls that reach to the k-th neighbour."""
    if k < 1:
        raise ConfigError(f"k={k}: expected a whole number of at least 1.")
    _refuse_odd(real, fake)
    if min(len(real), len(fake)) <= k:
        raise DataError(
            f"Got {counted(min(len(real), len(fake)), 'cell')}, too few for "
            f"{counted(k, 'neighbour')} each."
        )
    reach_real, reach_fake = (np.sort(cdist(c, c), axis=1)[:, k] for c in (real, fake))
    between = cdist(real, fake)
    in_real = between <= reach_real[:, None]
    return Manifold(
        float(in_real.any(0).mean()),
        float((between <= reach_fake).any(1).mean()),
        float(in_real.sum(0).mean() / k),
        float((between.min(1) <= reach_real).mean()),
    )


@checked
def real_or_fake(real: Cloud, fake: Cloud, *, seed: int = 0, folds: int = 3) -> float:
    """Return the AUC of a random forest that tells real from fake, out of fold; 0.5 at best.

    Fakes that repeat a few cells are recognised by their copies in other folds, as they should be.
    """
    if folds < 2:
        raise ConfigError(f"folds={folds}: expected a whole number of at least 2.")
    _refuse_odd(real, fake, least=2)
    x = np.concatenate([real, fake])
    y = np.repeat([0, 1], [len(real), len(fake)])
    folds = min(folds, len(real), len(fake))
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=seed)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    guess = cross_val_predict(forest, x, y, cv=split, method="predict_proba")[:, 1]
    return float(roc_auc_score(y, guess))


@checked
def memorisation(train: Cloud, held_out: Cloud, fake: Cloud) -> float:
    """Return the probability that a fake cell is nearer to the training cells than a held-out one.

    0.5 if generated cells are to the training cells what other real ones are; towards 1 if they
    repeat them (1 for copies), or are less varied than real ones. Ties count half.
    """
    return _nearer(train, fake, held_out)


@checked
def membership(train: Cloud, held_out: Cloud, fake: Cloud) -> float:
    """Return how often a training cell is nearer to the fake cells than a held-out one: an attack's AUC.

    Somebody who has a cell and the fakes guesses by its distance to them whether it was trained on:
    0.5 if he can only toss a coin. Where a tenth of the training cells is copied it is 0.55. Ties count half.

    References
    ----------
    Chen et al. (2020), GAN-Leaks, ACM CCS, the attack of one who sees nothing but samples.
    """
    return _nearer(fake, train, held_out)


def _nearer(to: Cloud, some: Cloud, others: Cloud) -> float:
    """Return the probability that one of `some` is nearer to its nearest of `to` than one of `others`."""
    _refuse_odd(to, some, others)
    search = NearestNeighbors(n_neighbors=1).fit(to)
    near = [search.kneighbors(c)[0][:, 0] for c in (others, some)]
    return float(roc_auc_score(np.repeat([0, 1], [len(others), len(some)]), -np.concatenate(near)))


@checked
def concordance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " _"]) -> float:
    """Return Lin's concordance (1989): Pearson's correlation, less what shift and scale lose.

    NaN where both are the same constant, or there is one value only.

    Raises
    ------
    DataError
        If they are not as many, or there are none.
    """
    if len(a) != len(b) or not len(a):
        raise DataError(
            f"Got {len(a):,} and {counted(len(b), 'value')}: expected as many, and one at least."
        )
    covariance = np.cov(a, b, bias=True)
    spread = covariance[0, 0] + covariance[1, 1] + (a.mean() - b.mean()) ** 2
    return float(2 * covariance[0, 1] / spread) if spread > 0 else float("nan")


@checked
def depth_distance(real: Num[np.ndarray, " n"], fake: Num[np.ndarray, " m"]) -> float:
    """Return the Kolmogorov-Smirnov distance of total counts; 0 at best, 1 at worst."""
    if not (len(real) and len(fake)):
        raise DataError(
            f"Got depths of {len(real):,} and {counted(len(fake), 'cell')}: expected one at least."
        )
    return float(ks_2samp(real, fake).statistic)


@dataclass(frozen=True, eq=False)
class Moments:
    """Per gene: mean and variance of log1p counts per 10,000, and the share of zeros."""

    mean: Float[np.ndarray, " g"]
    variance: Float[np.ndarray, " g"]
    zeros: Float[np.ndarray, " g"]

    @classmethod
    def of(cls, counts: Sparse) -> Moments:
        """Compute from raw counts, of one cell at the least."""
        if not counts.shape[0]:
            raise DataError("There are no cells to take moments of.")
        x = log_cp10k(counts)
        mean = np.asarray(x.mean(0)).ravel()
        square = np.asarray(x.multiply(x).mean(0)).ravel()
        return cls(mean, square - mean**2, 1 - np.asarray((counts > 0).mean(0)).ravel())


@checked
def gene_agreement(real: Sparse, fake: Sparse) -> dict[str, float]:
    """Return `concordance` over genes of mean, variance and share of zeros; 1 at best."""
    a, b = Moments.of(real), Moments.of(fake)
    return {
        name: concordance(getattr(a, name), getattr(b, name))
        for name in ("mean", "variance", "zeros")
    }


@checked
def correlation_agreement(real: Sparse, fake: Sparse, genes: Int[np.ndarray, " k"]) -> float:
    """Return the `concordance` of gene-gene correlations, of log-expression, over pairs of `genes`."""
    width = _width(real, fake)
    if len(genes) < 2 or genes.min() < 0 or genes.max() >= width:
        raise DataError(f"genes: expected positions from 0 to {width - 1}, two at the least.")
    pairs = np.triu_indices(len(genes), 1)
    tables = [_correlations(log_cp10k(c)[:, genes].toarray())[pairs] for c in (real, fake)]
    return concordance(*tables)


@checked
def cross_agreement(
    real: tuple[Sparse, Sparse],
    fake: tuple[Sparse, Sparse],
    n: int = 50,
) -> float:
    """Return the `concordance` of correlations between features of two modalities of the same cells.

    Features are the `n` of each whose log-expression varies most in the real cells.
    """
    for a, b in (real, fake):
        if a.shape[0] != b.shape[0]:
            raise DataError(
                f"Modalities of {a.shape[0]:,} and {counted(b.shape[0], 'cell')}: give the same cells, "
                "in order."
            )
    for x, y in zip(real, fake, strict=True):
        _width(x, y)
    chosen = [np.argsort(-Moments.of(x).variance, kind="stable")[:n] for x in real]
    tables = []
    for pair in (real, fake):
        a, b = (log_cp10k(x)[:, some].toarray() for x, some in zip(pair, chosen, strict=True))
        tables.append(_correlations(np.hstack([a, b]))[: a.shape[1], a.shape[1] :].ravel())
    return concordance(*tables)


def _width(real: Sparse, fake: Sparse) -> int:
    """Return how many features both have."""
    if real.shape[1] != fake.shape[1]:
        raise DataError(
            f"Got {real.shape[1]:,} and {counted(fake.shape[1], 'feature')}: give the same, in order."
        )
    return int(real.shape[1])


def _correlations(x: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "g g"]:
    """Return Pearson's, and 0 with a feature that does not vary."""
    centred = x - x.mean(0)
    length = np.sqrt((centred**2).sum(0))
    scaled = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return scaled.T @ scaled


@checked
def fold_change_agreement(
    real: Sparse, fake: Sparse, real_labels: np.ndarray, fake_labels: np.ndarray
) -> float:
    """Return the `concordance` of log₂ fold changes, each class against the rest, averaged over classes.

    Cells without a label are of no class. NaN where no class has cells and others beside it on both sides.
    """
    _width(real, fake)
    for counts, labels in ((real, real_labels), (fake, fake_labels)):
        if len(labels) != counts.shape[0]:
            raise DataError(
                f"{counted(len(labels), 'label')} of {counted(counts.shape[0], 'cell')}: give one for each."
            )
    found = []
    both = set(real_labels) & set(fake_labels)
    for label in sorted(label for label in both if not pd.isna(label)):
        a = _fold_changes(real, real_labels == label)
        b = _fold_changes(fake, fake_labels == label)
        if a is not None and b is not None:
            found.append(concordance(a, b))
    return float(np.mean(found)) if found else float("nan")


def _fold_changes(counts: Sparse, inside: np.ndarray) -> np.ndarray | None:
    if inside.all() or not inside.any():
        return None
    x = log_cp10k(counts)
    level = [
        np.log2(np.expm1(np.asarray(x[rows].mean(0)).ravel()) + 0.1) for rows in (inside, ~inside)
    ]
    return level[0] - level[1]
