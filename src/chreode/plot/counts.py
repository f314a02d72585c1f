"""Do the counts vary as counts do? Mean against variance of every gene."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from matplotlib.axes import Axes

from ..config.arguments import checked
from ..errors import DataError, counted
from ..text import picture
from .style import GREY, PALETTE, axes, bare, opaque

Counts: TypeAlias = sp.csr_matrix | sp.csr_array | np.ndarray


@checked
def mean_variance(
    counts: Counts,
    other: Counts | None = None,
    *,
    theta: float | None = None,
    names: tuple[str, str] = ("data", "model"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the variance of every gene over its mean, both on log scales, with the Poisson line.

    Parameters
    ----------
    counts
        Raw counts, shape (cells, genes); sparse ones stay sparse.
    other
        Counts to compare with, such as generated cells; their genes may be others.
    theta
        Inverse dispersion of a negative binomial, whose curve mean + mean²/theta is added.
    names
        What the legend calls `counts` and `other`.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    DataError
        If there are fewer than two cells, or no gene has a count.

    Examples
    --------
    >>> counts = sp.csr_array(np.random.default_rng(0).poisson(3.0, size=(50, 20)))
    >>> mean_variance(counts).get_xscale()
    'log'
    """
    ax = axes(ax, 4.6, 3.8)
    clouds = [moments(counts)] if other is None else [moments(counts), moments(other)]
    for (mean, variance), name, colour in zip(clouds, names, PALETTE, strict=False):
        seen = (mean > 0) & (variance > 0)
        if not seen.any():
            raise DataError(f"No gene of {name} varies, so there is nothing to draw.")
        ax.scatter(
            mean[seen], variance[seen], s=6, color=colour, alpha=0.5, linewidths=0,
            rasterized=True, label=picture(name),
        )  # fmt: skip
    line = np.geomspace(
        min(m[m > 0].min() for m, _ in clouds), max(m.max() for m, _ in clouds), 100
    )
    ax.plot(line, line, "--", color=GREY, linewidth=1.2, label="Poisson: variance = mean")
    if theta is not None:
        line_label = f"negative binomial, θ = {theta:.3g}"
        ax.plot(line, line + line**2 / theta, color=PALETTE[5], linewidth=1.2, label=line_label)
    ax.set(xscale="log", yscale="log", xlabel="mean count per gene", ylabel="variance")
    opaque(ax.legend(frameon=False, fontsize="small", loc="upper left"))
    bare(ax)
    return ax


def moments(counts: Counts) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Return mean and unbiased variance of every gene; sparse counts stay sparse.

    Raises
    ------
    DataError
        If there are fewer than two cells.
    """
    if len(counts.shape) != 2 or counts.dtype.kind not in "biuf":
        raise DataError(f"Expected numbers, cells x genes; got {counts.dtype} {counts.shape}.")
    n = counts.shape[0]
    if n < 2:
        raise DataError(f"There is no variance in {counted(n, 'cell')}: give two or more.")
    x = sp.csr_array(counts, dtype=np.float64)
    mean = np.asarray(x.sum(axis=0)).ravel() / n
    square = np.asarray(x.power(2).sum(axis=0)).ravel() / n
    # the difference of the moments may fall a rounding below zero
    return mean, np.maximum(square - mean**2, 0) * n / (n - 1)
