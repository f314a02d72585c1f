"""Types of cells by their nearest neighbours or by a linear probe: calibrated, with how new a cell is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Real, Shaped
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors

from ..errors import DataError, counted

#: Parts into which the linear probe leaves cells out.
FOLDS = 5
#: Cells held out that novelty needs at the least to be a rank among them.
ENOUGH = 20


class HeldOut(NamedTuple):
    """Labelled cells that the coordinates of the reference were not learned from.

    Attributes
    ----------
    x, codes
        Coordinates, and the label of each cell, as those of the reference.
    groups
        Batch of each cell, if the reference has batches.
    """

    x: Float[np.ndarray, "h z"]
    codes: Int[np.ndarray, " h"]
    groups: Shaped[np.ndarray, " h"] | None = None


@dataclass(frozen=True, eq=False)
class NearestLabels:
    r"""Labels by the votes of the k nearest reference cells.

    With a share :math:`v_c` of the votes and :math:`\pi_c` of the reference cells,

    .. math:: p_c = (1 - w) v_c + w \pi_c.

    The weight w of the shares has the least log loss on reference cells that are judged by those of the
    other groups, or by all other cells where there are no groups. Cells of a type that no other group has
    are not judged: nothing could tell them.

    Novelty is the share of some cells that lie nearer to their k nearest than a cell does, by the mean
    distance: of the cells held out where there are `ENOUGH`, else of the judged ones. Coordinates that were
    learned from the reference place its cells in another way than new ones, often farther from each other, so
    that a rank among them says little. One among cells held out is near to uniform for new cells of the same
    types and of like batches. Types that are rare or spread widely look newer. How new an unseen type looks
    depends on how far it lies from the others. Among n cells, novelty is n / (n + 1) at the most.

    Attributes
    ----------
    x, codes, n_labels
        The reference: coordinates, the label of each cell, and how many labels there are.
    weight
        The weight w of the shares.
    spacing
        Mean distance to their k nearest of the cells that novelty is a rank among, rising.
    k
        Number of neighbours; all reference cells where there are fewer.

    References
    ----------
    The weighted mean is the posterior mean under a Dirichlet prior of weight wk/(1 − w): Gelman et al.
    (2013), Bayesian Data Analysis, section 3.4. Ranks of a distance: Vovk, Gammerman & Shafer (2005),
    Algorithmic Learning in a Random World, chapter 2.

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    >>> near = NearestLabels.fit(x, np.array([0, 0, 0, 1, 1, 1]), 2, k=2)
    >>> near.probabilities(np.array([[0.0], [5.0]])).argmax(1).tolist()
    [0, 1]
    >>> near.novelty(np.array([[0.1], [99.0]])).round(2).tolist()
    [0.0, 0.86]
    """

    x: Float[np.ndarray, "n z"]
    codes: Int[np.ndarray, " n"]
    n_labels: int
    weight: float
    spacing: Float[np.ndarray, " j"]
    k: int = 11

    @classmethod
    def fit(
        cls,
        x: Float[np.ndarray, "n z"],
        codes: Int[np.ndarray, " n"],
        n_labels: int,
        *,
        k: int = 11,
        groups: Shaped[np.ndarray, " n"] | None = None,
        sample_weight: Real[np.ndarray, " n"] | None = None,
        held_out: HeldOut | None = None,
    ) -> NearestLabels:
        """Keep the reference, and calibrate on its cells.

        Parameters
        ----------
        codes
            Label of each cell, from 0.
        groups
            Batch of each cell. With two or more that share a type, what is calibrated is true of a new batch.
        sample_weight
            How many cells each one stands for, where types were drawn unevenly (default: 1). Novelty is then
            the share of all these cells; nothing else reads it.
        held_out
            Cells that novelty is a rank among, if `ENOUGH` of them have a type that the reference has, in
            another batch where types are in several.

        Raises
        ------
        DataError
            With fewer than two cells, values that are not finite, or codes out of range.
        """
        _refuse(x, codes, n_labels)
        batches = groups
        groups, judged = _left_out(codes, groups)
        shares, distances = np.zeros((len(x), n_labels)), np.zeros(len(x))
        for held, others in _by_group(groups):
            alone = held is others
            found, distance = _nearest(x[others], None if alone else x[held], k)
            shares[held] = _shares(codes[others[found]], n_labels)
            distances[held] = _mean_distance(distance, len(others) / len(x))
        own = np.arange(len(x))[judged], codes[judged]
        voted, usual = shares[own], (np.bincount(codes, minlength=n_labels) / len(x))[codes[judged]]

        def log_loss(weight: float) -> float:
            return float(-np.log((1 - weight) * voted + weight * usual).sum())

        least = 1 / (len(x) + 1)  # so many cells cannot say more (the rule of succession)
        best = minimize_scalar(log_loss, bounds=(least, 1 - least), method="bounded").x
        weight = best if judged.any() else least
        new = []
        if held_out is not None:
            for held, others in _compared(codes, batches if _grouped(groups) else None, held_out):
                distance = _nearest(x[others], held_out.x[held], k)[1]
                new.append(_mean_distance(distance, len(others) / len(x)))
        spacing = _spacing(distances, np.flatnonzero(judged), sample_weight, new)
        return cls(x, codes, n_labels, float(weight), spacing, k)

    def probabilities(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, "m c"]:
        """Return the probability of every label."""
        return self.judge(x)[0]

    def novelty(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, " m"]:
        """Return how new each cell is, from 0 to 1."""
        return self.judge(x)[1]

    def judge(
        self, x: Float[np.ndarray, "m z"]
    ) -> tuple[Float64[np.ndarray, "m c"], Float64[np.ndarray, " m"]]:
        """Return `probabilities` and `novelty` from one search."""
        found, distance = _nearest(self.x, x, self.k)
        usual = np.bincount(self.codes, minlength=self.n_labels) / len(self.codes)
        votes = _shares(self.codes[found], self.n_labels)
        novelty = _rank(distance.mean(1), self.spacing)
        return (1 - self.weight) * votes + self.weight * usual, novelty


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Labels by multinomial logistic regression, with scikit-learn's L2 penalty (C = 1).

    Coordinates are centred and divided by one number, such that their mean variance is 1. Each divided by its
    own deviation would raise the noise of small principal components to the size of the large ones.

    The logits are divided by the temperature that has the least log loss on reference cells of which the
    regression has not learned: those of other groups, in five parts, or any cells where there are no groups.
    Cells of a type that is in no other part are not judged.

    Novelty is the share of some cells that lie nearer to the nearest mean of a type than a cell does, in
    standard deviations within types (Mahalanobis distance): of the same cells as that of `NearestLabels`.

    Attributes
    ----------
    weights, bias
        The logits are ``x @ weights + bias``, the temperature included.
    known
        Labels of which there were cells; the others have a probability of 0.
    whiten, centres
        ``x @ whiten`` has a covariance of 1 within types, and there the types have their means.
    spacing
        Distance to the nearest mean of the cells that novelty is a rank among, rising.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, ICML, section 4.2 (temperature). Lee et
    al. (2018), A simple unified framework for detecting out-of-distribution samples, NeurIPS, equation 2.

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    >>> probe = LinearProbe.fit(x, np.array([0, 0, 0, 1, 1, 1]), 2)
    >>> probe.probabilities(np.array([[0.0], [5.0]])).argmax(1).tolist()
    [0, 1]
    """

    weights: Float[np.ndarray, "z c"]
    bias: Float[np.ndarray, " c"]
    known: Bool[np.ndarray, " c"]
    whiten: Float[np.ndarray, "z z"]
    centres: Float[np.ndarray, "c z"]
    spacing: Float[np.ndarray, " j"]

    @classmethod
    def fit(
        cls,
        x: Float[np.ndarray, "n z"],
        codes: Int[np.ndarray, " n"],
        n_labels: int,
        *,
        groups: Shaped[np.ndarray, " n"] | None = None,
        sample_weight: Real[np.ndarray, " n"] | None = None,
        held_out: HeldOut | None = None,
    ) -> LinearProbe:
        """Learn the regression, and calibrate it; parameters and errors as those of `NearestLabels.fit`."""
        _refuse(x, codes, n_labels)
        batches = groups
        groups, _ = _left_out(codes, groups)
        n_folds = min(FOLDS, len(np.unique(groups)))
        logits, judged, new, distances = [], [], [], np.zeros(len(x))
        whole = cls._learned(x, codes, n_labels)
        for learned, held in GroupKFold(n_folds).split(x, codes, groups):
            held = held[np.isin(codes[held], codes[learned])]
            if not len(held):
                continue
            part = cls._learned(x[learned], codes[learned], n_labels)
            logits.append(part._logits(x[held]))
            distances[held] = part._distance(x[held])
            judged.append(held)
        if held_out is not None:
            for held, others in _compared(codes, batches if _grouped(groups) else None, held_out):
                part = cls._located(x[others], codes[others], n_labels)
                new.append(part._distance(held_out.x[held]))
        if not judged:
            none = np.zeros(0, np.int64)
            return replace(whole, spacing=_spacing(distances, none, None, new))
        every, rows = np.concatenate(logits), np.concatenate(judged)
        own = np.arange(len(rows)), codes[rows]

        def log_loss(inverse: float) -> float:
            return float(-log_softmax(inverse * every, 1)[own].sum())

        inverse = minimize_scalar(log_loss, bounds=(1e-3, 10), method="bounded").x
        return cls(
            inverse * whole.weights, inverse * whole.bias, whole.known, whole.whiten, whole.centres,
            _spacing(distances, rows, sample_weight, new),
        )  # fmt: skip

    @classmethod
    def _learned(cls, x: np.ndarray, codes: np.ndarray, n_labels: int) -> LinearProbe:
        """Return the probe of some cells, of temperature 1 and without spacing."""
        located, x = cls._located(x, codes, n_labels), x.astype(np.float64)
        names, at = np.unique(codes, return_inverse=True)
        weights, bias = np.zeros((x.shape[1], n_labels)), np.zeros(n_labels)
        mean, scale = x.mean(0), float(np.sqrt(x.var(0).mean()))
        scale = scale if scale > 1e-12 * np.abs(x).max(initial=1) else 1.0
        if len(names) > 1:
            found = LogisticRegression(max_iter=5000).fit((x - mean) / scale, at)
            seen = names if len(names) > 2 else names[1:]  # of two labels it has one logit
            weights[:, seen] = found.coef_.T / scale
            bias[seen] = found.intercept_ - mean @ weights[:, seen]
        return replace(located, weights=weights, bias=bias)

    @classmethod
    def _located(cls, x: np.ndarray, codes: np.ndarray, n_labels: int) -> LinearProbe:
        """Return where the types of some cells lie, without a regression."""
        x = x.astype(np.float64)
        names, at = np.unique(codes, return_inverse=True)
        means = np.stack([x[at == i].mean(0) for i in range(len(names))])
        spread = x - means[at]
        values, axes = np.linalg.eigh(spread.T @ spread / len(x))
        floor = 1e-6 * values[-1] if values[-1] > 1e-12 else 1.0  # no direction is without any
        whiten = axes / np.sqrt(np.maximum(values, floor))
        centres = np.zeros((n_labels, x.shape[1]))
        centres[names] = means @ whiten
        known = np.isin(np.arange(n_labels), names)
        weights, bias = np.zeros((x.shape[1], n_labels)), np.zeros(n_labels)
        return cls(weights, bias, known, whiten, centres, np.zeros(0))

    def probabilities(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, "m c"]:
        """Return the probability of every label."""
        return np.asarray(softmax(self._logits(x), 1))

    def novelty(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, " m"]:
        """Return how new each cell is, from 0 to 1."""
        return _rank(self._distance(x), self.spacing)

    def judge(
        self, x: Float[np.ndarray, "m z"]
    ) -> tuple[Float64[np.ndarray, "m c"], Float64[np.ndarray, " m"]]:
        """Return `probabilities` and `novelty`."""
        return self.probabilities(x), self.novelty(x)

    def _logits(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, "m c"]:
        return np.where(self.known, x.astype(np.float64) @ self.weights + self.bias, -np.inf)

    def _distance(self, x: Float[np.ndarray, "m z"]) -> Float64[np.ndarray, " m"]:
        return np.asarray(cdist(x @ self.whiten, self.centres[self.known]).min(1))


def _refuse(x: np.ndarray, codes: np.ndarray, n_labels: int) -> None:
    if len(x) < 2:
        raise DataError(
            f"Labels are learned from two cells or more; got {counted(len(x), 'cell')}."
        )
    if not np.isfinite(x).all():
        raise DataError("Coordinates of the reference are not finite: leave those cells out.")
    if codes.min() < 0 or codes.max() >= n_labels:
        raise DataError(
            f"Codes of labels must lie in 0 … {n_labels - 1}: leave unlabelled cells out."
        )


def _left_out(
    codes: Int[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"] | None
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return which cells are left out together, and the cells of whose type others remain.

    Each is left out alone where no type is in two groups.
    """
    each = np.arange(len(codes))
    at = each if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    pairs = np.unique(np.stack([codes, at]), axis=1)
    judged = (np.bincount(pairs[0])[codes]) > 1
    return (at, judged) if groups is None or judged.any() else _left_out(codes, None)


def _grouped(groups: Int[np.ndarray, " n"]) -> bool:
    """Return whether cells are left out by batches, and not each alone."""
    return bool(groups.max() + 1 < len(groups))


def _compared(
    codes: Int[np.ndarray, " n"], batches: Shaped[np.ndarray, " n"] | None, held_out: HeldOut
) -> Iterator[tuple[Int[np.ndarray, " h"], Int[np.ndarray, " o"]]]:
    """Yield cells held out, and the reference cells of other batches, if those have their type."""
    if batches is None or held_out.groups is None:
        if (mine := np.isin(held_out.codes, codes)).any():
            yield np.flatnonzero(mine), np.arange(len(codes))
        return
    for batch in np.unique(held_out.groups):
        others = np.flatnonzero(batches != batch)
        mine = (held_out.groups == batch) & np.isin(held_out.codes, codes[others])
        if mine.any():
            yield np.flatnonzero(mine), others


def _mean_distance(distance: Float[np.ndarray, "m k"], share: float) -> Float64[np.ndarray, " m"]:
    """Return the mean distance to the nearest, of which only a share was there to be found.

    Among fewer cells the nearest lie farther: as far as fewer of all would.
    """
    fewer = max(1, round(distance.shape[1] * share))
    return distance[:, :fewer].mean(1).astype(np.float64)


def _by_group(
    groups: Int[np.ndarray, " n"],
) -> Iterator[tuple[Int[np.ndarray, " h"], Int[np.ndarray, " o"]]]:
    """Yield the cells of each group, and those of the others; all at once if each is alone."""
    cells = np.arange(len(groups))
    if not _grouped(groups):
        yield cells, cells
        return
    for group in range(groups.max() + 1):
        yield cells[groups == group], cells[groups != group]


def _nearest(
    x: Float[np.ndarray, "n z"], cells: Float[np.ndarray, "m z"] | None, k: int
) -> tuple[Int[np.ndarray, "m k"], Float[np.ndarray, "m k"]]:
    """Return the k nearest among x of some cells, or of each of x among the others, and how far they lie."""
    search = NearestNeighbors(n_neighbors=min(k, len(x) - (cells is None)), algorithm="brute")
    distances, found = search.fit(x).kneighbors(cells)
    return found, distances


def _shares(votes: Int[np.ndarray, "m k"], n_labels: int) -> Float64[np.ndarray, "m c"]:
    """Return the share of every label among the votes of each cell."""
    flat = votes + n_labels * np.arange(len(votes))[:, None]
    counts = np.bincount(flat.ravel(), minlength=n_labels * len(votes))
    return counts.reshape(-1, n_labels) / votes.shape[1]


def _spacing(
    distances: Float[np.ndarray, " n"],
    judged: Int[np.ndarray, " j"],
    sample_weight: Real[np.ndarray, " n"] | None,
    new: Sequence[Float[np.ndarray, " _"]],
) -> Float[np.ndarray, " _"]:
    """Return the distances that novelty is a rank among, rising: of enough new cells, or of the judged ones.

    Those of the judged cells are drawn by weight, as many as there are.
    """
    if sum(map(len, new)) >= ENOUGH:
        return np.sort(np.concatenate(new))
    n = len(judged)
    if sample_weight is None or not n:
        return np.sort(distances[judged])
    at, weights = (np.arange(n) + 0.5) / n, sample_weight[judged]
    return np.quantile(distances[judged], at, weights=weights, method="inverted_cdf")


def _rank(
    distance: Float[np.ndarray, " m"], spacing: Float[np.ndarray, " j"]
) -> Float64[np.ndarray, " m"]:
    """Return the share of distances that are smaller, the cell itself counted as one that is not."""
    return np.searchsorted(spacing, distance) / (len(spacing) + 1)
