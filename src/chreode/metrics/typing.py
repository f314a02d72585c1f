"""How well types of new cells are told by a classifier of reference cells, and how sure it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Real

from ..config.arguments import checked
from ..errors import DataError, counted
from .score import SHARE, Score

#: Bins of confidence, of equal width, in a calibration curve.
BINS = 10
#: Share of query cells of shared types that are marked as new where cells of unseen types are looked for.
FALSE_RATE = 0.05
#: Name, best value and meaning of every score.
METRICS: Mapping[str, tuple[str, float, str]] = {
    "f1": ("macro-F1", 1.0, "F1 of each type of the query, averaged over types; 0 of an unseen type"),
    "accuracy": ("accuracy", 1.0, "share of query cells whose type is told right"),
    "shared_f1": (
        "macro-F1, shared types", 1.0, "macro-F1 of the query cells whose type the reference has"
    ),
    "shared_accuracy": ("accuracy, shared types", 1.0, "accuracy of these cells"),
    "worst": ("worst type", 1.0, "F1 of the shared type that is told worst"),
    "ece": ("calibration error", 0.0, "distance of confidence from accuracy, over shared types"),
    "unseen_auroc": (
        "unseen types, AUROC", 1.0, "how often a cell of an unseen type looks newer than one of a shared type"
    ),
    "unseen_found": (
        "unseen types, found at 5 %", 1.0,
        "share of cells of unseen types that are marked as new where 5 % of those of shared types are; "
        "0.05 by chance"
    ),
}  # fmt: skip


@checked
def typing_scores(
    truth: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "_ c"],
    novelty: Float[np.ndarray, " _"] | None = None,
    *,
    n_shared: int | None = None,
) -> dict[str, Score]:
    r"""Score what a classifier says of query cells; the keys are those of `METRICS`.

    The F1 of a type is :math:`2 n_{tt} / (n_{t·} + n_{·t})`, of n_tt cells that are told right, n_t· cells
    of the type and n_·t cells that are said to be of it. Means are over the types that query cells
    have. (scikit-learn's also count types that were only said, as 0.)

    The calibration error is :math:`\sum_b n_b / n \, |a_b - c_b|` over bins of the confidence, which is the
    largest probability of a cell, with accuracy a_b and mean confidence c_b.

    Cells of unseen types are found by a limit of novelty above which 5 % of the query cells of shared types
    lie. This needs the truth, so that it judges the order of cells and no limit that a user could set. Of
    cells that tie with the limit, as large a share is marked as gives 5 %.

    Parameters
    ----------
    truth
        Type of each cell: columns of `probabilities`, and from c on types that the reference lacks.
    probabilities
        Of every type of the reference.
    novelty
        How new each cell looks; only the order of cells counts.
    n_shared
        Number of types that the reference has, where there are probabilities of others too (default: c).

    Returns
    -------
    Scores that are resampled over all cells; NaN with a reason where there is nothing to score.

    Raises
    ------
    DataError
        If lengths differ, or probabilities or novelties are not finite.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, ICML, equation 3. Fawcett (2006), An
    introduction to ROC analysis, Pattern Recognition Letters 27:861, sections 5 to 7.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> scores = typing_scores(np.array([0, 1, 1]), sure)
    >>> round(scores["accuracy"].value, 3), round(scores["f1"].value, 3)
    (0.667, 0.667)
    """
    n, n_known = probabilities.shape
    if len(truth) != n or not np.isfinite(probabilities).all():
        raise DataError(
            f"Got {counted(len(truth), 'type')} and probabilities of {counted(n, 'cell')}: expected one type "
            "for each, and finite probabilities."
        )
    if novelty is not None and (len(novelty) != n or not np.isfinite(novelty).all()):
        raise DataError(
            f"Got {counted(len(novelty), 'novelty')} of {counted(n, 'cell')}: expected one for "
            "each, all finite."
        )
    said = probabilities.argmax(1)
    shared = truth < (n_known if n_shared is None else n_shared)
    right = (said == truth).astype(float)
    found = {
        "f1": f1(truth, said),
        "accuracy": _mean(right),
        "shared_f1": f1(truth[shared], said[shared]),
        "shared_accuracy": _mean(right[shared]),
        "worst": f1(truth[shared], said[shared], worst=True),
        "ece": _calibration_error(probabilities[shared], right[shared]),
    }
    if novelty is not None:
        found |= {
            "unseen_auroc": _of_curve(novelty, ~shared, np.trapezoid),
            "unseen_found": _of_curve(novelty, ~shared, _at_false_rate),
        }
    new, known = ("unseen_auroc", "unseen_found"), ("shared_f1", "shared_accuracy", "worst", "ece")
    why, without = "every type of the query is in the reference.", [*new] if shared.all() else []
    if not shared.any():
        why, without = "no query cell is of a type that the reference has.", [*known, *new]
    nothing = Score.undefined(why, n)
    return {
        key: nothing if key in without else score.within(shared) if key in known else score
        for key, score in found.items()
    }


@checked
def f1(truth: Int[np.ndarray, " n"], said: Int[np.ndarray, " n"], *, worst: bool = False) -> Score:
    """Return the mean F1 over the types that cells have, or that of the worst.

    Examples
    --------
    >>> round(f1(np.array([0, 0, 1]), np.array([0, 1, 1])).value, 3)
    0.667
    """
    size = int(max(truth.max(initial=0), said.max(initial=0))) + 1
    pairs = truth * size + said

    def statistic(counts: Int[np.ndarray, " n"]) -> float:
        values = _f1_of(np.bincount(pairs, counts, size**2).reshape(size, size))
        known = values[~np.isnan(values)]
        if not len(known):
            return float("nan")
        return float(known.min() if worst else known.mean())

    return Score.of(statistic, len(truth), SHARE)


def _f1_of(confusion: Real[np.ndarray, "t t"]) -> Float[np.ndarray, " t"]:
    """Return the F1 of every type; NaN of those that no cell has."""
    cells, said = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(cells > 0, 2 * confusion.diagonal() / (cells + said), np.nan)


@checked
def of_types(truth: Int[np.ndarray, " n"], said: Int[np.ndarray, " n"]) -> pd.DataFrame:
    """Return F1, precision, recall and the number of cells of every type that cells have.

    Precision is 0 of a type that is never said.

    Examples
    --------
    >>> of_types(np.array([0, 0, 1]), np.array([0, 1, 1])).loc[1].round(3).tolist()
    [0.667, 0.5, 1.0, 1.0]
    """
    size = int(max(truth.max(initial=0), said.max(initial=0))) + 1
    confusion = np.bincount(truth * size + said, minlength=size**2).reshape(size, size)
    hit, cells, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    table = pd.DataFrame(
        {
            "f1": _f1_of(confusion),
            "precision": hit / np.maximum(told, 1),
            "recall": hit / np.maximum(cells, 1),
            "cells": cells,
        }
    )
    return table[cells > 0]


@checked
def calibration(
    truth: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]
) -> pd.DataFrame:
    """Return mean confidence, accuracy and number of cells of every bin that has any.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.1], [0.08, 0.92], [0.7, 0.3]])
    >>> calibration(np.array([0, 1, 1]), sure).round(2).values.tolist()
    [[0.7, 0.0, 1.0], [0.91, 1.0, 2.0]]
    """
    confidence, bins = _binned(probabilities)
    cells = np.bincount(bins, minlength=BINS)
    right = (probabilities.argmax(1) == truth).astype(float)
    sums = [np.bincount(bins, values, BINS) for values in (confidence, right)]
    table = pd.DataFrame(
        {"confidence": sums[0], "accuracy": sums[1]}, dtype=float
    ).div(np.maximum(cells, 1), axis=0)  # fmt: skip
    return table.assign(cells=cells)[cells > 0].reset_index(drop=True)


def _binned(
    probabilities: Float[np.ndarray, "n c"],
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    confidence = probabilities.max(1)
    return confidence, np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _calibration_error(
    probabilities: Float[np.ndarray, "n c"], right: Float[np.ndarray, " n"]
) -> Score:
    if not len(right):
        return Score.undefined("there is no cell.", 0)
    confidence, bins = _binned(probabilities)
    gap = right - confidence

    def statistic(counts: Int[np.ndarray, " n"]) -> float:
        if not counts.any():
            return float("nan")
        return float(np.abs(np.bincount(bins, counts * gap)).sum() / counts.sum())

    return Score.of(statistic, len(right), SHARE)


def _mean(values: Float[np.ndarray, " n"]) -> Score:
    def statistic(counts: Int[np.ndarray, " n"]) -> float:
        return float(np.average(values, weights=counts)) if counts.any() else float("nan")

    return Score.of(statistic, len(values), SHARE)


def _at_false_rate(found: Float[np.ndarray, " p"], false: Float[np.ndarray, " p"]) -> float:
    return float(np.interp(FALSE_RATE, false, found))


def _of_curve(
    values: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    of: Callable[[Float[np.ndarray, " p"], Float[np.ndarray, " p"]], float],
) -> Score:
    """Return a statistic of the ROC curve: shares of positives, and of others, that have the largest values.

    A tie of both is a slope. So it counts as half in the area, which is how often a positive is larger.
    """
    at = np.unique(-values, return_inverse=True)[1].ravel()

    def statistic(counts: Int[np.ndarray, " n"]) -> float:
        passed = [
            np.append(0, np.bincount(at, counts * side).cumsum()) for side in (positive, ~positive)
        ]
        if not all(side[-1] for side in passed):
            return float("nan")
        return float(of(*(side / side[-1] for side in passed)))

    return Score.of(statistic, len(values), SHARE)
