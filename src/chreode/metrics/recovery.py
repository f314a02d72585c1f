"""How well latents are recovered, up to what no contrastive loss can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..errors import DataError, counted

#: Rows that are compared with all others at once.
_AT_ONCE = 1024


def axis_r2(
    latents: Float[np.ndarray, "b n"], recovered: Float[np.ndarray, "b d"], *, linear: bool = True
) -> Float[np.ndarray, " n"]:
    """Return R² of each latent coordinate, foretold from what was recovered, on the second half of the rows.

    A regression learns from the first half. R² may be below 0, where the mean would have been better.

    Parameters
    ----------
    linear
        Linear regression; else kernel ridge regression with radial basis functions, which also sees
        what was recovered in another shape.

    Raises
    ------
    DataError
        If there are fewer than two rows per column and half, values are not finite, or a coordinate is
        constant.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(100, 2))
    >>> axis_r2(z, z @ np.array([[1.0], [0.0]])).round(1) + 0.0  # the first alone was kept
    array([1., 0.])
    """
    _require(latents, recovered)
    half = len(latents) // 2
    model, mean = LinearRegression() if linear else _kernel_regression(), latents[:half].mean(0)
    model.fit(recovered[:half], latents[:half] - mean)  # kernel regression has no intercept
    told, truth = model.predict(recovered[half:]) + mean, latents[half:]
    lost = ((truth - told) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)
    return np.asarray(1 - lost, np.float64)


def block_r2(
    latents: Float[np.ndarray, "b n"],
    recovered: Float[np.ndarray, "b d"],
    blocks: Mapping[str, Sequence[int]],
    *,
    linear: bool = True,
) -> dict[str, float]:
    """Return the mean of `axis_r2` over each block of coordinates, such as those that positives share."""
    by_axis = axis_r2(latents, recovered, linear=linear)
    return {name: float(by_axis[list(axes)].mean()) for name, axes in blocks.items()}


def mean_correlation(
    latents: Float[np.ndarray, "b n"], recovered: Float[np.ndarray, "b n"]
) -> float:
    """Return MCC: the mean absolute correlation of coordinates, matched one to one as well as can be.

    It is 1 if all were recovered up to order, sign and scale; a rotation lowers it.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(mean_correlation(z, -3 * z[:, ::-1]), 6)
    1.0
    """
    crossed = _correlations(latents, recovered)
    return float(crossed[np.arange(len(crossed)), matched_columns(latents, recovered)].mean())


def matched_columns(
    latents: Float[np.ndarray, "b n"], recovered: Float[np.ndarray, "b n"]
) -> Int[np.ndarray, " n"]:
    """Return, for each latent coordinate, the column of what was recovered that is matched with it.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(50, 2))
    >>> matched_columns(z, z[:, ::-1])
    array([1, 0])
    """
    return linear_sum_assignment(-_correlations(latents, recovered))[1]


def _correlations(latents: np.ndarray, recovered: np.ndarray) -> Float[np.ndarray, "n n"]:
    """Return absolute correlations; a constant column, which tells nothing, has 0."""
    _require(latents, recovered)
    n = latents.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        crossed = np.abs(np.corrcoef(latents.T, recovered.T)[:n, n:])
    return np.where(np.ptp(recovered, axis=0) > 0, crossed, 0.0)


def angle_error(latents: Float[np.ndarray, "b n"], recovered: Float[np.ndarray, "b d"]) -> float:
    """Return the mean of |z_i·z_j − ẑ_i·ẑ_j| over pairs of different rows, from 0 to 2; all are unit vectors.

    In three dimensions it is 2/3 for vectors that have nothing to do with the latents. The published code
    halves it and counts each row with itself.

    Examples
    --------
    >>> z = np.eye(2)
    >>> angle_error(z, -z), angle_error(z, z[:1].repeat(2, axis=0))
    (0.0, 1.0)
    """
    _require_pairs(latents, recovered)
    n, total = len(latents), 0.0
    for at in range(0, n, _AT_ONCE):  # of all pairs there may be too many to be held
        rows = slice(at, at + _AT_ONCE)
        apart = np.abs(latents[rows] @ latents.T - recovered[rows] @ recovered.T)
        total += apart.sum() - np.trace(apart, offset=at)
    return float(total / (n * (n - 1)))


def distance_to_orthogonal(
    latents: Float[np.ndarray, "b n"], recovered: Float[np.ndarray, "b n"]
) -> float:
    """Return the least root mean square of ‖ẑ − Q z‖ over orthogonal maps Q: 0 if the sphere is recovered.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(distance_to_orthogonal(z, z[:, ::-1]), 6)
    0.0
    """
    _require_pairs(latents, recovered)
    turn, _ = orthogonal_procrustes(latents, recovered)
    return float(np.sqrt((((latents @ turn) - recovered) ** 2).sum(1).mean()))


def _kernel_regression() -> GridSearchCV:
    grid = {"kernelridge__gamma": [0.03, 0.1, 0.3, 1.0], "kernelridge__alpha": [1e-3, 1e-1]}
    return GridSearchCV(make_pipeline(StandardScaler(), KernelRidge(kernel="rbf")), grid, cv=3)


def _require(latents: np.ndarray, recovered: np.ndarray) -> None:
    """Refuse what a regression cannot learn from."""
    _require_pairs(latents, recovered)
    least = 4 * (recovered.shape[1] + 1)
    if len(latents) < least:
        raise DataError(
            f"{counted(len(latents), 'row')}: expected {least} or more, to tell latents from "
            f"{counted(recovered.shape[1], 'column')}."
        )
    if (np.ptp(latents, axis=0) == 0).any():
        raise DataError("A latent coordinate is constant: it has no variance to be explained.")


def _require_pairs(latents: np.ndarray, recovered: np.ndarray) -> None:
    """Refuse rows that do not belong together, fewer than two, and values that are not finite."""
    if len(latents) != len(recovered):
        raise DataError(
            f"{counted(len(latents), 'row')} of latents, {counted(len(recovered), 'row')} of what was "
            "recovered: give one for each."
        )
    if len(latents) < 2:
        raise DataError("Rows are compared with each other: give two or more.")
    if not (np.isfinite(latents).all() and np.isfinite(recovered).all()):
        raise DataError("There are values that are not finite among latents or what was recovered.")
