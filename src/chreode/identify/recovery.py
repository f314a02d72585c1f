"""One run of the laboratory: an encoder learns from data of known latents, and is judged by these."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import beta
from torch import Tensor, nn

from ..compute.convergence import state_of
from ..compute.rng import Rng
from ..compute.settings import settled
from ..config import config, param
from ..errors import ConfigError, FitError, counted
from ..losses import optima
from ..losses.infonce import info_nce, support_corrected
from ..losses.optima import Sampler
from ..losses.sphere import alignment, uniformity
from ..metrics.recovery import (
    angle_error,
    axis_r2,
    distance_to_orthogonal,
    mean_correlation,
)
from ..trials.trial import Result
from .conditionals import Restricted, require_concentration
from .encoders import Network, inverse_of, require_inverse
from .mixings import mixing_of, require_mixing
from .spaces import Sphere

#: Latents by which an encoder is compared with the truth, and of which some are kept for pictures.
_TEST, _KEPT = 4096, 1500
#: Of these, a kernel regression learns from half of so many, and reads the others.
_READ = 1000
#: The final loss is measured on so many sets of negatives, anchors for each, and negatives in each.
N_SETS, N_ANCHORS, N_NEGATIVES = 100, 400, 2000
#: Steps of which the mean loss is one point of the history.
_STRIDE = 50
#: Minibatches that are drawn together, which takes little longer than one.
_AT_ONCE = 16


@config
class Setting:
    """What one run is: latents on a sphere, what positives keep, how data are made, and what learns.

    The conditions of theorem 4.4 hold for ``n_fixed=0``. They are violated for ``n_fixed=1`` and more.

    References
    ----------
    The Loss Is Not Enough (2026), arXiv:2606.04280, section 5.
    """

    mixing: str = param("identity", "identity, linear, mlp, patches, spiral or monomials.")
    n_latent: int = param(
        3, "Coordinates of the latents, which lie on the unit sphere.", low=2, high=_READ // 5
    )
    n_fixed: int = param(0, "Coordinates that positives keep.", low=0)
    sampler: Sampler = param(
        "theorem", "How the others are drawn: κr² as the theorem has it, or κ as it was published."
    )
    kappa: float = param(
        1 / 0.3, "Concentration of positives about their anchors; the temperature is 1 / kappa."
    )
    ratio: float = param(
        0.0,
        "Share of negatives from the anchor's own support: 0 InfoNCE, 1 corrected.",
        low=0,
        high=1,
    )
    encoder: Literal["mlp", "inverse"] = param(
        "mlp",
        "A network that could be anything, or one that is made like the inverse of the mixing.",
    )
    hidden: tuple[int, ...] = param(
        (128, 128, 128), "Widths of the layers of the mlp; of none, it is a linear map.", low=1
    )
    n_negatives: int = param(31, "Negatives of each anchor in training.", low=1)
    batch_size: int = param(512, "Anchors of a step, or a few less, to make groups.", low=8)
    n_steps: int = param(2000, "Steps of training.", low=1)
    lr: float = param(
        1e-3, "Learning rate of Adam at the start; it falls to 0 along a cosine.", low=0
    )

    def validate(self) -> None:
        """Refuse what may not be together."""
        require_concentration(self.kappa)
        require_mixing(self.mixing, self.n_latent)
        if self.encoder == "inverse":
            require_inverse(self.mixing)
        if self.n_fixed > self.n_latent:
            raise ConfigError(
                f"n_fixed={self.n_fixed}: latents have {counted(self.n_latent, 'coordinate')}, so at most "
                f"{self.n_latent} can be fixed."
            )
        if 0 < self.ratio < 1 and self.n_own in (0, self.n_negatives):
            enough = math.ceil(0.5 / min(self.ratio, 1 - self.ratio)) + 1
            raise ConfigError(
                f"ratio={self.ratio:g} of n_negatives={self.n_negatives} is {self.n_own} of them, which is "
                f"a ratio of {self.n_own // self.n_negatives}. Raise n_negatives to {enough}."
            )
        groups = self.batch_size // self.group_size
        if not groups:
            raise ConfigError(
                f"n_negatives={self.n_negatives} of batch_size={self.batch_size}: an anchor and its "
                f"{counted(self.n_own, 'negative')} of its own support are more. Raise batch_size or lower "
                "n_negatives."
            )
        most = (groups - 1) * self.group_size
        if self.n_negatives - self.n_own > most:
            raise ConfigError(
                f"n_negatives={self.n_negatives} of batch_size={self.batch_size}: at most {max(most, 0)} "
                "other anchors can serve as negatives. Raise batch_size or lower n_negatives."
            )

    @property
    def n_own(self) -> int:
        """Negatives of an anchor from its own support."""
        return round(self.ratio * self.n_negatives)

    @property
    def group_size(self) -> int:
        """Anchors of a step that share what is fixed: each is a negative of the others."""
        return self.n_own + 1 if self.n_own < self.n_negatives else self.n_negatives + 1

    def positives(self) -> Restricted:
        """Return how positives are drawn."""
        return Restricted(self.n_fixed, self.kappa, self.sampler)

    def least(self) -> float:
        """Return the loss of an orthogonal map in closed form, for the negatives of the final loss.

        NaN where there is none: all is fixed, negatives are of both kinds, or they are too few for κ.
        """
        if not optima.outweighed(self.kappa, self.n_latent, N_NEGATIVES):
            return math.nan
        if self.n_fixed == 0:
            return optima.full_support(self.kappa, self.n_latent, N_NEGATIVES)
        if self.n_fixed == self.n_latent or 0 < self.ratio < 1:
            return math.nan
        return optima.rescaled(
            1.0, self.kappa, self.n_latent, self.n_fixed, N_NEGATIVES,
            sampler=self.sampler, corrected=self.ratio == 1,
        )  # fmt: skip


class Minibatch(NamedTuple):
    """Anchors, a positive of each, and which anchors are the negatives of each, own support first."""

    anchors: Float[Tensor, "b n"]
    positives: Float[Tensor, "b n"]
    negatives: Int[Tensor, "b m"]


def negatives_of(setting: Setting) -> Int[Tensor, "b m"]:
    """Return which anchors of a minibatch are the negatives of each; see `minibatches`."""
    size = setting.group_size
    n_groups = setting.batch_size // size
    group = torch.arange(n_groups).repeat_interleave(size)[:, None]
    member = torch.arange(size).repeat(n_groups)[:, None]
    own = group * size + (member + torch.arange(1, setting.n_own + 1)) % size
    shift = torch.arange(setting.n_negatives - setting.n_own)
    further = max(n_groups - 1, 1)
    others = (group + 1 + shift % further) % n_groups * size + (member + shift // further) % size
    return torch.cat([own, others], 1)


def minibatches(setting: Setting, at_once: int = _AT_ONCE) -> Iterator[Minibatch]:
    """Yield minibatches without end, drawn from torch's global generator, so many at once.

    Anchors come in groups that share their fixed coordinates and are even on what is left of the sphere.
    So those of an anchor's group are negatives from its own support, and those of other groups are
    negatives from everywhere, without an encoding more.
    """
    size, law, negatives = setting.group_size, setting.positives(), negatives_of(setting)
    while True:
        z = Sphere(setting.n_latent).draw(at_once * (len(negatives) // size))
        z = law.support(z.repeat_interleave(size, 0)) if size > 1 else z
        for anchors, positives in zip(z.chunk(at_once), law.draw(z).chunk(at_once), strict=True):
            yield Minibatch(anchors, positives, negatives)


@settled()
def recover(setting: Setting, seed: int = 0) -> Result:
    """Train an encoder by contrast, and compare what it recovers with the latents.

    Parameters
    ----------
    setting
        What is run.
    seed
        Of mixing, encoder and draws.

    Returns
    -------
    Values for a table, and arrays for pictures: ``latents`` and ``recovered`` of the same test points,
    ``history``, the loss in training as means of 50 steps.

    - ``r2`` and ``r2_axis``: linear R² of latents by what was recovered, mean and by axis;
      ``r2_untrained``: by the encoder before training.
    - ``r2_kernel`` and ``r2_kernel_axis``: read by kernel ridge regression, which also sees latents that
      were recovered in another shape, as where v is turned by an angle that depends on u.
    - ``mcc``, ``angle`` (from 0 to 2), ``orthogonal``: see `chreode.metrics.recovery`.
    - ``alignment``, ``uniformity``: see `chreode.losses.sphere`.
    - ``loss``: with 2,000 negatives for each anchor, on latents that were not trained on; ``identity``: the
      loss of h(x) = z on the same draws; ``closed``: the same in closed form.
    - ``state``: how the fit stood when it stopped; ``seconds``: of training.

    Raises
    ------
    FitError
        If the loss is not finite.

    Examples
    --------
    >>> row, arrays = recover(Setting(n_steps=200, hidden=(32,)))
    >>> row["r2"] > 0.9, arrays["recovered"].shape
    (True, (1500, 3))
    """
    rng = Rng(seed)
    with rng.scope("mixing"):
        mixing: Any = mixing_of(setting.mixing, setting.n_latent)
    with rng.scope("encoder"):
        encoder = (
            Network(mixing.n_data, setting.n_latent, setting.hidden)
            if setting.encoder == "mlp"
            else inverse_of(setting.mixing, mixing.n_data, setting.n_latent)
        )
    with rng.scope("test"):
        latents = Sphere(setting.n_latent).draw(_TEST)
        positives = setting.positives().draw(latents)
    data = mixing(latents)
    before = axis_r2(latents.numpy(), encoded(encoder, data).numpy()).mean()
    start = time.perf_counter()
    with rng.scope("train"):
        drawn = minibatches(setting)
        history = minimise(
            lambda: _loss(next(drawn), setting, encoder, mixing),
            encoder, setting.n_steps, setting.lr,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    found = encoded(encoder, data)
    with rng.scope("loss"):
        loss, of_identity = final_losses(
            setting, [lambda z: encoded(encoder, mixing(z)), lambda z: z]
        )
    z, h = latents.numpy().astype(np.float64), found.numpy().astype(np.float64)
    by_axis, by_kernel = axis_r2(z, h), axis_r2(z[:_READ], h[:_READ], linear=False)
    row = {
        "r2": float(by_axis.mean()), "r2_axis": by_axis.tolist(), "r2_untrained": float(before),
        "r2_kernel": float(by_kernel.mean()), "r2_kernel_axis": by_kernel.tolist(),
        "mcc": mean_correlation(z, h), "angle": angle_error(z, h),
        "orthogonal": distance_to_orthogonal(z, h),
        "alignment": float(alignment(found, encoded(encoder, mixing(positives)))),
        "uniformity": float(uniformity(found)),
        "loss": loss, "identity": of_identity, "closed": setting.least(),
        "state": state_of(history, held_out=False), "seconds": seconds,
    }  # fmt: skip
    kept = {"latents": latents[:_KEPT].numpy(), "recovered": found[:_KEPT].numpy()}
    return row, {**kept, "history": np.asarray(history, np.float32)}


def _loss(
    minibatch: Minibatch, setting: Setting, encoder: nn.Module, mixing: nn.Module
) -> Float[Tensor, ""]:
    z, positives, negatives = minibatch
    found, of_positives = encoder(mixing(torch.cat([z, positives]))).chunk(2)
    own, others = negatives[:, : setting.n_own], negatives[:, setting.n_own :]
    return support_corrected(found, of_positives, found[own], found[others], 1 / setting.kappa)


def minimise(
    loss_of_step: Callable[[], Tensor], learned: nn.Module, n_steps: int, lr: float
) -> list[float]:
    """Minimise what each step draws by Adam, whose rate falls to 0; return the means of every 50 steps.

    Raises
    ------
    FitError
        If the loss is not finite.
    """
    optimizer = torch.optim.Adam(learned.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    learned.train()
    history: list[float] = []
    recent: list[Tensor] = []
    for step in range(n_steps):
        loss = loss_of_step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.detach())
        if len(recent) == _STRIDE or step + 1 == n_steps:
            history.append(float(torch.stack(recent).mean()))
            recent.clear()
            if not math.isfinite(history[-1]):
                raise FitError(f"The loss is {history[-1]} after {step + 1} steps: lower lr.")
    return history


def final_losses(setting: Setting, maps: list[Callable[[Tensor], Tensor]]) -> list[float]:
    """Return the loss of each map from latents to unit vectors, all on the same draws.

    There are 100 sets of 2,000 negatives, which 400 anchors each share; a share `ratio` of them is from
    the anchors' own support. The lengths of what is fixed are spread evenly over the sets.
    """
    law, space = setting.positives(), Sphere(setting.n_latent)
    n_own = round(setting.ratio * N_NEGATIVES)
    total = torch.zeros(len(maps))
    for i in range(N_SETS):
        u = _with_quantile(setting, (i + 0.5) / N_SETS)
        anchors = law.support(u.expand(N_ANCHORS, -1)) if n_own else space.draw(N_ANCHORS)
        positives = law.draw(anchors)
        negatives = torch.cat([law.support(u.expand(n_own, -1)), space.draw(N_NEGATIVES - n_own)])
        total += torch.stack(
            [info_nce(f(anchors), f(positives), f(negatives), 1 / setting.kappa) for f in maps]
        )
    return (total / N_SETS).tolist()


def _with_quantile(setting: Setting, share: float) -> Float[Tensor, "1 n"]:
    """Return a latent whose fixed coordinates have the length that this share of latents stays below."""
    n, m = setting.n_latent, setting.n_fixed
    square = float(beta.ppf(share, m / 2, (n - m) / 2)) if 0 < m < n else float(m > 0)
    u, v = Sphere(m).draw(1), Sphere(n - m).draw(1)
    return torch.cat([math.sqrt(square) * u, math.sqrt(1 - square) * v], 1)


@torch.no_grad()
def encoded(encoder: nn.Module, data: Float[Tensor, "b d"]) -> Float[Tensor, "b n"]:
    """Return what an encoder says when it does not learn."""
    return encoder.eval()(data)
