"""How positives are drawn about their anchors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, counted
from ..losses.optima import Sampler
from .spaces import Box, Space, Sphere, generalised_normal

#: From here on, 32 bits cannot tell the logits of near points apart.
MOST = 1e5
#: Numbers that are held at once.
_NUMBERS = 2**22


class Conditional(Protocol):
    """Draws a positive for each anchor, from torch's global generator."""

    def draw(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return a positive for each anchor."""
        ...


def require_concentration(kappa: float) -> None:
    """Refuse a concentration by which nothing could be learned, or computed.

    Raises
    ------
    ConfigError
        If it is not between 0 and 100,000.
    """
    if not 0 < kappa <= MOST:
        why = (
            "at 0 positives do not depend on their anchors, so there is nothing to learn"
            if kappa == 0
            else "beyond it, positives differ from their anchors by less than 32 bits can tell"
            if kappa > MOST
            else "it is how narrowly positives are drawn about their anchors"
        )
        raise ConfigError(f"kappa={kappa}: expected a number above 0 and up to {MOST:,.0f}; {why}.")


def von_mises_fisher(
    mean: Float[Tensor, "b k"], kappa: Float[Tensor, " b"]
) -> Float[Tensor, "b k"]:
    """Return a unit vector about each mean, of density ∝ exp(κ x·mean): exact for every k.

    Parameters
    ----------
    mean
        Unit vectors.
    kappa
        Concentration about each, at least 0.

    Raises
    ------
    ConfigError
        If a concentration is negative or not finite.

    References
    ----------
    Wood (1994), Simulation of the von Mises Fisher distribution, Communications in Statistics 23:157; in
    three dimensions, the inverse of the cumulative distribution.

    Examples
    --------
    >>> mean = torch.tensor([[0.0, 0.0, 1.0]])
    >>> bool(von_mises_fisher(mean, torch.tensor([1e6]))[0, 2] > 0.999)
    True
    """
    k = mean.shape[1]
    if not bool(((kappa >= 0) & kappa.isfinite()).all()):
        raise ConfigError("kappa: expected finite numbers, 0 or more.")  # rejection would never end
    if k == 1:
        stays = torch.rand_like(kappa) < torch.sigmoid(2 * kappa)
        return torch.where(stays, 1.0, -1.0)[:, None] * mean
    # 1 − x·mean, which keeps its digits where x·mean is near 1
    short = _short_in_three(kappa) if k == 3 else _short(kappa, k)
    aside = torch.randn_like(mean)
    aside = F.normalize(aside - (aside * mean).sum(1, keepdim=True) * mean, dim=1)
    across = (short * (2 - short)).clamp_min(0).sqrt()
    return F.normalize((1 - short)[:, None] * mean + across[:, None] * aside, dim=1)


def _short_in_three(kappa: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    # u may be 0, at which a narrow density would have its antipode
    u, kappa = torch.rand_like(kappa).clamp_min(2**-24), kappa.clamp_min(1e-6)
    # −ln(u + (1 − u) e^{−2κ}), in a form that stays exact where κ is small
    return (-torch.log1p((1 - u) * torch.expm1(-2 * kappa)) / kappa).clamp(0, 2)


def _short(kappa: Float[Tensor, " b"], k: int) -> Float[Tensor, " b"]:
    """Return 1 − x·mean by rejection from a beta envelope."""
    kappa = kappa.double()
    b = (k - 1) / (2 * kappa + (4 * kappa**2 + (k - 1) ** 2).sqrt())
    x = (1 - b) / (1 + b)
    c = kappa * x + (k - 1) * torch.log1p(-(x**2))

    def propose(rows: Tensor) -> tuple[Tensor, Tensor]:
        # a coordinate of an even point on the sphere is a beta variable of (k − 1) / 2 twice, but for scale
        y = (1 + F.normalize(_normal(len(rows), k, kappa), dim=1)[:, 0]) / 2
        at = b[rows]
        short = 2 * at * y / (1 - (1 - at) * y)
        fit = kappa[rows] * (1 - short) + (k - 1) * torch.log1p(-x[rows] * (1 - short)) - c[rows]
        return short, fit

    return _until_accepted(kappa, propose).float()


def _normal(n: int, k: int, like: Tensor) -> Tensor:
    return torch.randn(n, k, dtype=like.dtype, device=like.device)


def _until_accepted(of: Tensor, propose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return one accepted proposal for each row; `propose` gives values and logs of acceptance."""
    n, found = len(of), None
    rows = torch.arange(n, device=of.device)
    while len(rows):
        values, log_chance = propose(rows)
        taken = torch.rand_like(log_chance).log() < log_chance
        if found is None:
            found = values.new_empty(n, *values.shape[1:])
        found[rows[taken]] = values[taken]
        rows = rows[~taken]
    assert found is not None
    return found


@dataclass(frozen=True)
class Full:
    """Von Mises-Fisher about the anchor: every point of the sphere may be a positive.

    Attributes
    ----------
    kappa
        Concentration.
    """

    kappa: float

    def draw(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return a positive for each anchor."""
        return von_mises_fisher(z, z.new_full((len(z),), self.kappa))


@dataclass(frozen=True)
class Restricted:
    """Positives keep the first coordinates u of their anchor; the others, v, vary on their sphere.

    Attributes
    ----------
    n_fixed
        Number of coordinates that are kept.
    kappa
        Concentration.
    sampler
        "theorem": the density is ∝ e^{κ z·z̃} on the sphere of v, whose radius is r = √(1 − ‖u‖²), so that
        the direction of v has concentration κr². "published": it has concentration κ whatever r is, as
        in the paper's algorithm 13, for which its theorem 4.6 does not hold.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, equation 6 and algorithm 13.
    """

    n_fixed: int
    kappa: float
    sampler: Sampler = "theorem"

    def draw(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return a positive for each anchor."""
        u, v, r = self._parts(z)
        if not v.shape[1]:
            return z
        kappa = z.new_full((len(z),), self.kappa)
        kappa = kappa * r[:, 0] ** 2 if self.sampler == "theorem" else kappa
        return torch.cat([u, r * von_mises_fisher(v / r, kappa)], 1)

    def support(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return, for each anchor, one point of all that its positives may be, each alike probable."""
        u, v, r = self._parts(z)
        return torch.cat([u, r * F.normalize(torch.randn_like(v), dim=1)], 1)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = z.shape[1]
        if not 0 <= self.n_fixed <= n:
            raise ConfigError(
                f"n_fixed={self.n_fixed}: latents have {counted(n, 'coordinate')}; expected 0 to {n}."
            )
        u, v = z[:, : self.n_fixed], z[:, self.n_fixed :]
        return u, v, v.norm(dim=1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class Around:
    """Noise of density ∝ exp(−|x/s|^p) about each coordinate of the anchor.

    In a box, what falls outside is drawn again; on a sphere, points are scaled to length 1.

    Attributes
    ----------
    space
        Where the anchors live.
    scale, power
        s and p.
    """

    space: Space
    scale: float
    power: float = 2.0

    def __post_init__(self) -> None:
        """Refuse noise that there is not."""
        for name, value in (("scale", self.scale), ("power", self.power)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}: expected a number above 0.")

    def draw(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return a positive for each anchor."""
        found = z + self._noise(z)
        if isinstance(self.space, Sphere):
            return F.normalize(found, dim=1)
        while isinstance(self.space, Box) and bool((outside := (found < 0) | (found > 1)).any()):
            found = torch.where(outside, z + self._noise(z), found)
        return found

    def _noise(self, z: Tensor) -> Tensor:
        return self.scale * generalised_normal(z.shape[0], z.shape[1], self.power, z.device)


@dataclass(frozen=True)
class Anisotropic:
    """Positives of density ∝ exp(−½ (z̃ − z)ᵀ Λ (z̃ − z)) on the sphere: some coordinates vary less.

    Attributes
    ----------
    precision
        The diagonal of Λ, above 0.

    References
    ----------
    Rusak et al. (2025), InfoNCE: identifying the gap between theory and practice, AISTATS. The sampler is
    rejection from an angular central Gaussian: Kent, Ganeiber & Mardia (2018), A new unified approach for
    the simulation of a wide class of directional distributions, JCGS 27:291.
    """

    precision: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse precisions by which no density is given."""
        if not all(0 < value < math.inf for value in self.precision):
            raise ConfigError(f"precision={self.precision}: expected numbers above 0.")

    def draw(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return a positive for each anchor, from exactly this density."""
        n = z.shape[1]
        if n != len(self.precision):
            raise ConfigError(
                f"precision={self.precision}: latents have {counted(n, 'coordinate')}; give one for each."
            )
        # a form of n² numbers for each anchor: of all at once there may be too many
        pieces = z.double().split(max(1, _NUMBERS // n**2))
        return torch.cat([self._drawn(piece) for piece in pieces]).float()

    def _drawn(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        n = z.shape[1]
        diagonal = z.new_tensor(self.precision)
        pull = diagonal * z  # on the sphere the density is ∝ exp(pull·x − ½ xᵀΛx)
        most = (pull * z).sum(1)
        # pull·x ≤ ½ (most + (pull·x)² / most), equal at the anchor: what is left is a Bingham density
        form = (diagonal.diag() - pull[:, :, None] * pull[:, None] / most[:, None, None]) / 2
        values, axes = torch.linalg.eigh(form)
        values = values - values[:, :1]
        b = _envelope(values)
        spread = (1 + 2 * values / b[:, None]).rsqrt()

        def propose(rows: Tensor) -> tuple[Tensor, Tensor]:
            y = F.normalize(_normal(len(rows), n, z) * spread[rows], dim=1)
            x = torch.einsum("bij,bj->bi", axes[rows], y)
            bingham = (y**2 * values[rows]).sum(1)
            central = n / 2 * (y**2 / spread[rows] ** 2).sum(1).log()
            best = (n - b[rows]) / 2 + n / 2 * (b[rows] / n).log()
            lost = ((pull[rows] * x).sum(1) - most[rows]) ** 2 / (2 * most[rows])
            return x, central - bingham + best - lost

        return _until_accepted(z, propose)


def _envelope(values: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Return b with Σ 1 / (b + 2 a_i) = 1, which makes the envelope tightest, by bisection."""
    low = values.new_zeros(len(values))
    high = low + values.shape[1]
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 / (middle[:, None] + 2 * values)).sum(1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high
