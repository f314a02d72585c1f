"""What a contrastive loss recovers of known latents: spheres before and after, R² of runs, and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from scipy.linalg import orthogonal_procrustes

from ..config.arguments import checked
from ..errors import ConfigError, DataError, counted
from ..losses.optima import Sampler, rescaled
from ..metrics.recovery import axis_r2
from ..text import picture
from .style import GREY, PALETTE, axes, bare, panels, picture_of, require_columns, short

#: Panels side by side, and half the distance between the middles of the two halves of a sphere.
_WIDE, _APART = 3, 1.08
_MARKERS = "osD^vP*X"
#: λ of the maps that are drawn, evenly spaced in its logarithm.
_FACTORS = np.logspace(-1, 1, 61)
#: Samplers and what they look like, and losses with their names.
_STYLES: dict[Sampler, str] = {"theorem": "-", "published": "--"}
_LOSSES = {False: "InfoNCE", True: "corrected"}
_RUNS = ("run", "r2", "r2_untrained", "published", "failed")


@checked
def spheres(
    latents: Float[np.ndarray, "b n"], recovered: Mapping[str, Float[np.ndarray, "b n"]]
) -> Figure:
    r"""Draw latents on their sphere, and what runs recovered of them, coloured by the first coordinate.

    Each recovered set is turned by the nearest orthogonal map, as no loss can tell a turned sphere from the
    true one. Of three coordinates both halves of the sphere are shown, seen from opposite sides of the
    third axis; the first coordinate points upwards. Of more than three the first three are shown. Titles
    have linear R² of all coordinates.

    Parameters
    ----------
    latents
        Unit vectors.
    recovered
        The name of each run, and a unit vector for each row of `latents`.

    Raises
    ------
    DataError
        If a set has another shape than the latents, or is not finite.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(100, 3))
    >>> z /= np.linalg.norm(z, axis=1, keepdims=True)
    >>> figure = spheres(z, {"mirrored": -z})
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['truth', 'mirrored\nR² 1.00']
    """
    found = {"truth": latents}
    for name, points in recovered.items():
        if points.shape != latents.shape or not np.isfinite(points).all():
            raise DataError(
                f"{name!r} has shape {points.shape}: expected {latents.shape}, as the latents have, and "
                "finite values."
            )
        r2 = float(axis_r2(latents, points).mean())
        title = f"{picture(short(name, 44))}\nR² {r2:z.2f}"
        found[title] = points @ orthogonal_procrustes(points, latents)[0]
    n_rows = math.ceil(len(found) / _WIDE)
    figure = picture_of(3.0 * min(len(found), _WIDE), 2.0 * n_rows)
    grid = panels(figure, n_rows, min(len(found), _WIDE)).ravel()
    for ax, (title, points) in zip(grid, found.items(), strict=False):
        _halves(ax, points[:, :3], latents[:, 0])
        ax.set_title(title, fontsize="small")
    for ax in grid[len(found) :]:
        ax.set_visible(False)
    return figure


def _halves(ax: Axes, points: Float[np.ndarray, "b d"], colour: Float[np.ndarray, " b"]) -> None:
    """Draw points of a sphere as its two halves, or those of a circle as they are."""
    right, up = points[:, 1], points[:, 0]
    middles = [0.0]
    if points.shape[1] == 3:
        near = points[:, 2] >= 0
        middles = [-_APART, _APART]
        # seen from behind, right and left change sides
        right = np.where(near, right - _APART, _APART - right)
    for x in middles:
        ax.add_patch(Circle((x, 0), 1, fill=False, edgecolor=GREY, linewidth=0.6))
    size = float(np.clip(4e3 / len(points), 1.5, 16))
    ax.scatter(
        right, up, s=size, c=colour, cmap=colormaps["viridis"], vmin=-1, vmax=1, linewidths=0,
        rasterized=True,
    )  # fmt: skip
    ax.set(xlim=(middles[0] - 1.06, middles[-1] + 1.06), ylim=(-1.06, 1.06), aspect="equal")
    ax.axis("off")


@checked
def recovery_over_ratio(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw R² over the share of negatives from the anchor's own support: a line for each mixing and sampler.

    A dot is a seed, and lines are their means: solid if positives are drawn as the theorem has it, dashed
    as it was published. Grey marks are the paper's, with the marker of their mixing.

    Parameters
    ----------
    rows
        `Study.rows` of `chreode.identify.ratio`. Failed runs are left out.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    SchemaError
        If the table holds something else.
    """
    columns = ("mixing", "sampler", "ratio", "r2", "published", "failed")
    require_columns(rows, columns, "the rows of a study")
    done = rows[rows["failed"] == ""]
    ax = axes(ax, 6.2, 3.6)
    for i, (mixing, of_mixing) in enumerate(done.groupby("mixing", sort=False)):
        colour, marker = PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)]
        for sampler, runs in of_mixing.groupby("sampler", sort=False):
            mean = runs.groupby("ratio")["r2"].mean()
            ax.plot(
                mean.index, mean, _STYLES[sampler], color=colour, linewidth=1.4,
                label=picture(f"{mixing}, {sampler}"),
            )  # fmt: skip
            look: dict[str, Any] = {"color": colour}
            if sampler != "theorem":
                look = {"facecolors": "none", "edgecolors": colour}
            ax.scatter(runs["ratio"], runs["r2"], s=14, marker=marker, **look)
        paper = of_mixing.groupby("ratio")["published"].first().dropna()
        if len(paper):
            label = picture(f"{mixing}, paper")
            ax.plot(paper.index, paper, ":", marker=marker, color=GREY, markersize=5, label=label)
    ax.set(xlabel="share of negatives from the anchor's own support (ρ)", ylabel="R²")
    ax.set(xlim=(-0.03, 1.03), ylim=(min(-0.03, done["r2"].min() - 0.03), 1.03))
    _beside(ax)
    return ax


@checked
def recovery_dots(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw R² of each run: a dot for each seed, a tick for their mean, and what to compare them with.

    A grey diamond is the paper's value, and a hollow circle the mean of the encoders before training. A run
    that failed has no dots and says so.

    Parameters
    ----------
    rows
        `Study.rows`.
    ax
        Where to draw (default: a new figure).

    Raises
    ------
    SchemaError
        If the table holds something else.
    """
    require_columns(rows, _RUNS, "the rows of a study")
    runs = list(rows.groupby("run", sort=False))
    ax = axes(ax, 6.8, 0.9 + 0.24 * len(runs))
    for y, (_, of) in enumerate(runs):
        done = of[of["failed"] == ""]
        ax.axhline(y, color=GREY, alpha=0.25, linewidth=0.6, zorder=0)
        if done.empty:
            ax.text(0.5, y, "failed", color=GREY, ha="center", va="center", fontsize="small")
            continue
        ax.plot(
            [done["r2_untrained"].mean()], [y], "o", markerfacecolor="none", markeredgecolor=GREY,
            markersize=7, gid="untrained",
        )  # fmt: skip
        ax.plot(done["published"].iloc[:1], [y], "D", color=GREY, markersize=5, gid="paper")
        ax.plot(
            done["r2"], [y] * len(done), "o", color=PALETTE[0], alpha=0.6, markersize=4, gid="seeds"
        )
        ax.plot([done["r2"].mean()], [y], "|", color=PALETTE[5], markersize=12, mew=2, gid="mean")
    ax.set_yticks(
        range(len(runs)), [picture(short(name, 60)) for name, _ in runs], fontsize="small"
    )
    low = rows["r2"].min() if rows["r2"].notna().any() else 0.0
    ax.set(xlabel="R²", xlim=(min(-0.03, low - 0.03), 1.03), ylim=(len(runs) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    look: dict[str, dict[str, Any]] = {
        "a seed": {"marker": "o", "color": PALETTE[0], "markersize": 4},
        "mean": {"marker": "|", "color": PALETTE[5], "markersize": 10, "mew": 2},
        "paper": {"marker": "D", "color": GREY, "markersize": 5},
        "untrained": {"marker": "o", "color": GREY, "markerfacecolor": "none", "markersize": 7},
    }
    handles = [Line2D([], [], linestyle="", label=name, **how) for name, how in look.items()]
    _beside(ax, handles=handles)
    return ax


@checked
def rescaled_losses(kappa: float, n_latent: int, n_fixed: int, *, ax: Axes | None = None) -> Axes:
    """Draw the loss of the maps h(u, v) = (u, λv) / ‖(u, λv)‖ over λ, if positives keep u: two theorems.

    Losses are closed forms for many negatives, less that of the identity (λ = 1), which is that of all
    orthogonal maps. Where a line is below 0, a map that bends the sphere has a lower loss. A dot is the
    lowest point of its line, a triangle if the line still falls at the edge of the picture.

    Parameters
    ----------
    kappa
        Concentration of positives, and one over the temperature.
    n_latent
        Coordinates of the latents.
    n_fixed
        Coordinates u that positives keep.

    Raises
    ------
    ConfigError
        If none or all coordinates are fixed: there is then nothing to rescale. Or if kappa is not above 0.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, theorems 4.5 and 4.6.

    Examples
    --------
    >>> ax = rescaled_losses(1 / 0.3, 3, 1)
    >>> [text.get_text() for text in ax.get_legend().get_texts()[:2]]
    ['InfoNCE, theorem', 'corrected, theorem']
    """
    if not 0 < n_fixed < n_latent:
        raise ConfigError(
            f"n_fixed={n_fixed} of {counted(n_latent, 'coordinate')}: expected 1 to {n_latent - 1}, so that "
            "some are fixed and others vary."
        )
    if not (kappa > 0 and math.isfinite(kappa)):
        raise ConfigError(f"kappa={kappa}: expected a number above 0.")
    ax = axes(ax, 6.2, 3.6)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axvline(1, color=GREY, linewidth=0.8)
    lines = []
    for sampler, style in _STYLES.items():
        for corrected, loss in _LOSSES.items():
            how: dict[str, Any] = {"sampler": sampler, "corrected": corrected}
            values = np.array([rescaled(f, kappa, n_latent, n_fixed, 1, **how) for f in _FACTORS])
            values -= rescaled(1.0, kappa, n_latent, n_fixed, 1, **how)
            colour = PALETTE[0 if corrected else 5]
            label = f"{loss}, {sampler}"
            lines += ax.plot(_FACTORS, values, style, color=colour, linewidth=1.4, label=label)
            at = int(values.argmin())
            edge = {0: "<", len(_FACTORS) - 1: ">"}
            ax.plot(_FACTORS[at], values[at], edge.get(at, "o"), color=colour, markersize=7)
    ax.set_xscale("log")
    ax.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="λ: how far v is stretched", ylabel="loss above the identity's (nats)")
    _beside(ax, handles=lines)
    return ax


def _beside(ax: Axes, **look: Any) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small", **look)
    bare(ax)
