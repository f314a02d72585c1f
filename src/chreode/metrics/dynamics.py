"""How well dynamics forecast, how sparse they are, and whether their edges are the true ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num, Shaped
from sklearn.metrics import average_precision_score

from ..config.arguments import checked
from ..errors import DataError

Edges = Num[np.ndarray, "g g"]


def _refuse_odd(found: np.ndarray, truth: np.ndarray, weight: np.ndarray | None) -> None:
    """Refuse arrays that are not of one shape, and weights that no mean can have."""
    shapes = {x.shape for x in (found, truth, weight) if x is not None}
    if len(shapes) > 1:
        raise DataError(
            f"Shapes {', '.join(map(str, sorted(shapes)))}: expected one, times x genes."
        )
    if weight is not None and not ((weight >= 0) & np.isfinite(weight)).all():
        raise DataError("weight: expected numbers of cells, from 0 on.")


@checked
def forecast_error(
    found: Float[np.ndarray, "_ _"],
    truth: Float[np.ndarray, "t g"],
    weight: Float[np.ndarray, "t g"] | None = None,
) -> float:
    """Return the mean squared error over times and genes, weighted by the cells behind each value.

    Raises
    ------
    DataError
        If shapes differ, no cell is behind any value, or weights are not numbers from 0 on.

    Examples
    --------
    >>> forecast_error(np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    5.0
    """
    _refuse_odd(found, truth, weight)
    if not found.size or (weight is not None and not weight.any()):
        raise DataError("No value has a cell behind it, so there is nothing to compare with.")
    return float(np.average((found - truth) ** 2, weights=weight))


@checked
def explained(error: float, of_mean: float) -> float:
    """Return R² against a constant: 1 is perfect, 0 as good as the constant, below 0 worse.

    NaN where the constant is right: there is nothing to explain.
    """
    return 1.0 - error / of_mean if of_mean else float("nan")


@checked
def scaling_error(
    found: Float[np.ndarray, "_ _"],
    truth: Float[np.ndarray, "t g"],
    weight: Float[np.ndarray, "t g"] | None = None,
) -> tuple[float, float]:
    """Split the error of a forecast: what a best line per gene would correct, and what is left.

    The line is fitted to the truth (an oracle): what it corrects is offset and scale of genes, such as
    donors and laboratories differ in; what is left is wrong in its course over time.
    """
    _refuse_odd(found, truth, weight)
    w = np.ones_like(truth) if weight is None else weight
    total = np.maximum(w.sum(0), 1e-12)
    centre, aim = (w * found).sum(0) / total, (w * truth).sum(0) / total
    spread = (w * (found - centre) ** 2).sum(0)
    together = (w * (found - centre) * (truth - aim)).sum(0)
    slope = np.where(spread > 1e-12, together / np.maximum(spread, 1e-12), 0.0)
    corrected = forecast_error(aim + slope * (found - centre), truth, weight)
    return forecast_error(found, truth, weight) - corrected, corrected


@checked
def edge_precision(
    weights: Edges, signs: Edges, pairs: Shaped[np.ndarray, "g g"] | None = None
) -> dict[str, float]:
    """Compare weighted edges, row the source, with true signs; what genes do to themselves does not count.

    Parameters
    ----------
    pairs
        Those that could be edges, and are judged (default: all).

    Returns
    -------
    ``auprc`` of |weight| for edges; ``signed``, of weight for activations and of −weight for repressions
    together; ``lift`` and ``signed_lift``, these over what chance has (the density); ``hamming``, the
    share of pairs that differ where as many edges are called as there are; ``sign``, the share of true
    edges among the called ones whose sign is right (NaN without any).

    Raises
    ------
    DataError
        If there is no true edge, shapes differ, or weights or signs are not finite.

    References
    ----------
    Davis and Goadrich (2006), The relationship between precision-recall and ROC curves.
    """
    shapes = {np.shape(x) for x in (weights, signs, pairs) if x is not None}
    if len(shapes) > 1 or len(set(signs.shape)) > 1:
        raise DataError(
            f"Shapes {', '.join(map(str, sorted(shapes)))}: expected one, genes x genes."
        )
    if not (np.isfinite(weights).all() and np.isfinite(signs).all()):
        raise DataError(
            "weights or signs are NaN or infinite. Weights are so of a model that diverged; the sign of "
            "what is no edge is 0."
        )
    off = ~np.eye(len(signs), dtype=bool)
    if pairs is not None:
        off &= np.asarray(pairs, bool)
    w, s = np.asarray(weights, float)[off], np.sign(np.asarray(signs, float)[off])
    n = int((s != 0).sum())
    if n == 0:
        raise DataError("There is no true edge between different genes of those that are judged.")
    auprc = float(average_precision_score(s != 0, abs(w)))
    signed = float(average_precision_score(np.concatenate([s > 0, s < 0]), np.concatenate([w, -w])))
    called = np.zeros(len(w), bool)
    called[np.argsort(-abs(w), kind="stable")[:n]] = True
    called &= w != 0
    right = called & (s != 0)
    return {
        "auprc": auprc, "lift": auprc / (n / len(w)),
        "signed": signed, "signed_lift": signed / (n / (2 * len(w))),
        "hamming": float((called != (s != 0)).mean()),
        "sign": float((np.sign(w[right]) == s[right]).mean()) if right.any() else float("nan"),
    }  # fmt: skip


@checked
def zeros(values: Num[np.ndarray, "*shape"], tolerance: float = 1e-5) -> float:
    """Return the share of entries no larger than `tolerance`: sparsity of weights, or of edges.

    Raises
    ------
    DataError
        If there are none, or some are not finite.
    """
    if not values.size or not np.isfinite(values).all():
        raise DataError("values: expected finite numbers, one at the least.")
    return float((np.abs(values) <= tolerance).mean())
