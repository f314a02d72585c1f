"""Runs beyond the sphere of one modality: boxes and R^n, anisotropic positives, two modalities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..compute.convergence import state_of
from ..compute.rng import Rng
from ..compute.settings import settled
from ..config import config, param
from ..errors import ConfigError
from ..losses.infonce import an_info_nce, info_nce_lp
from ..metrics.recovery import axis_r2, block_r2, matched_columns, mean_correlation
from ..trials.trial import Result
from .conditionals import MOST, Anisotropic, Around
from .encoders import Network
from .mixings import mixing_of, require_mixing
from .recovery import encoded, minimise
from .spaces import Box, Euclidean, Space, Sphere

#: Latents by which an encoder is compared with the truth.
_TEST = 4096
#: Minibatches whose positives are drawn together.
_AT_ONCE = 50


@config
class SpaceSetting:
    """Latents in a box or in R^n, positives by noise on each coordinate, and InfoNCE with L_p.

    References
    ----------
    Zimmermann et al. (2021), Contrastive learning inverts the data generating process, ICML, theorem 6.
    """

    space: Literal["box", "normal", "laplace"] = param(
        "box", "Where latents live, and how they are spread."
    )
    power: float = param(1.0, "p of the noise of positives, and of the loss.", low=1)
    scale: float = param(0.05, "Scale of the noise.", low=1e-6, high=10)
    mixing: str = param("mlp", "identity, linear, mlp or monomials.")
    n_latent: int = param(4, "Coordinates of the latents.", low=2)
    hidden: tuple[int, ...] = param((128, 128, 128), "Widths of the layers of the encoder.", low=1)
    batch_size: int = param(512, "Anchors of a step, and negatives that they share.", low=8)
    n_steps: int = param(4000, "Steps of training.", low=1)
    lr: float = param(1e-3, "Learning rate of Adam at the start.", low=0)

    def validate(self) -> None:
        """Refuse a mixing that there is not."""
        require_mixing(self.mixing, self.n_latent)

    def of(self) -> Space:
        """Return the space."""
        if self.space == "box":
            return Box(self.n_latent)
        return Euclidean(self.n_latent, 1.0 if self.space == "laplace" else 2.0)


@settled()
def recover_in_space(setting: SpaceSetting, seed: int = 0) -> Result:
    """Train an encoder by contrast in a box or in R^n, and compare what it recovers with the latents.

    Returns
    -------
    ``r2`` and ``r2_axis``: linear R²; ``mcc``, which is 1 if axes are recovered up to order, sign and scale:
    in a box if p is not 2, else they may be turned; ``r2_untrained`` and ``mcc_untrained``: before training;
    ``state``: how the fit stood when it stopped. No arrays.

    Examples
    --------
    >>> row, _ = recover_in_space(SpaceSetting(mixing="identity", n_latent=2, n_steps=200, hidden=(32,)))
    >>> row["r2"] > 0.8
    True
    """
    rng = Rng(seed)
    space = setting.of()
    law = Around(space, setting.scale, setting.power)
    with rng.scope("mixing"):
        mixing: Any = mixing_of(setting.mixing, setting.n_latent)
    with rng.scope("encoder"):
        encoder = Network(mixing.n_data, setting.n_latent, setting.hidden, sphere=False)

    def loss() -> Float[Tensor, ""]:
        anchors, others = space.draw(setting.batch_size), space.draw(setting.batch_size)
        drawn = torch.cat([anchors, law.draw(anchors), others])
        # the temperature is 1: the encoder finds the scale at which this is right for the noise
        found, of_positives, negatives = encoder(mixing(drawn)).chunk(3)
        return info_nce_lp(found, of_positives, negatives, setting.power)

    with rng.scope("test"):
        z = space.draw(_TEST)
    data = mixing(z)
    before = _compared(z, encoded(encoder, data))
    with rng.scope("train"):
        history = minimise(loss, encoder, setting.n_steps, setting.lr)
    return {**_recovered(z, encoded(encoder, data), before), **_fit(history)}, {}


@config
class AnisotropicSetting:
    """Latents on a sphere, positives that vary less in some coordinates, and AnInfoNCE, which learns it.

    References
    ----------
    Rusak et al. (2025), InfoNCE: identifying the gap between theory and practice, AISTATS.
    """

    precision: tuple[float, ...] = param(
        (5.0, 10.0, 15.0, 20.0, 25.0),
        "The diagonal of Λ, one for each latent coordinate.",
        low=1e-3,
        high=MOST,
    )
    mixing: str = param("linear", "identity, linear, mlp or monomials.")
    hidden: tuple[int, ...] = param((128, 128, 128), "Widths of the layers of the encoder.", low=1)
    batch_size: int = param(512, "Anchors of a step, and negatives that they share.", low=8)
    n_steps: int = param(4000, "Steps of training.", low=1)
    lr: float = param(1e-3, "Learning rate of Adam at the start.", low=0)

    def validate(self) -> None:
        """Refuse a line for a sphere, and a mixing that there is not."""
        require_mixing(self.mixing, len(self.precision))
        if len(self.precision) < 2:
            raise ConfigError(
                f"precision={self.precision}: give one for each of 2 coordinates or more."
            )


class _Weighed(nn.Module):
    """An encoder, and Λ's diagonal."""

    def __init__(self, encoder: nn.Module, n: int) -> None:
        super().__init__()
        self.encoder = encoder
        # a tenth of the logarithm: at the encoder's rate, the logarithm itself would move too slowly
        self.tenth = nn.Parameter(torch.full((n,), 0.2))

    def precision(self) -> Float[Tensor, " n"]:
        """Return the diagonal of Λ."""
        return (10 * self.tenth).exp()


@settled()
def recover_anisotropic(setting: AnisotropicSetting, seed: int = 0) -> Result:
    """Train an encoder and Λ by AnInfoNCE, and compare both with the truth.

    Returns
    -------
    As `recover_in_space`; ``precision``: the learned diagonal of Λ, in the order of the latent
    coordinates that the recovered ones are most correlated with; ``matched``: the place of that coordinate.
    No arrays.

    Examples
    --------
    >>> row, _ = recover_anisotropic(AnisotropicSetting(precision=(2.0, 20.0, 20.0), n_steps=20))
    >>> len(row["precision"])
    3
    """
    rng, n = Rng(seed), len(setting.precision)
    space, law = Sphere(n), Anisotropic(setting.precision)
    with rng.scope("mixing"):
        mixing: Any = mixing_of(setting.mixing, n)
    with rng.scope("encoder"):
        learned = _Weighed(Network(mixing.n_data, n, setting.hidden), n)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        while True:  # rejection takes as many rounds for a few anchors as for many
            anchors = space.draw(_AT_ONCE * setting.batch_size)
            positives = law.draw(anchors)
            yield from zip(anchors.chunk(_AT_ONCE), positives.chunk(_AT_ONCE), strict=True)

    minibatches = pairs()

    def loss() -> Float[Tensor, ""]:
        drawn = torch.cat([*next(minibatches), space.draw(setting.batch_size)])
        found, of_positives, negatives = learned.encoder(mixing(drawn)).chunk(3)
        return an_info_nce(found, of_positives, negatives, learned.precision())

    with rng.scope("test"):
        z = space.draw(_TEST)
    data = mixing(z)
    before = _compared(z, encoded(learned.encoder, data))
    with rng.scope("train"):
        history = minimise(loss, learned, setting.n_steps, setting.lr)
    found = encoded(learned.encoder, data)
    matched = matched_columns(z.double().numpy(), found.double().numpy())
    precision = learned.precision().detach()[torch.from_numpy(matched)]
    return {
        **_recovered(z, found, before), **_fit(history),
        "precision": precision.tolist(), "matched": matched.tolist(),
    }, {}  # fmt: skip


@config
class ModalSetting:
    """Two modalities of each cell: they share some latents, and each has others of its own.

    References
    ----------
    Daunhawer et al. (2023), Identifiability results for multimodal contrastive learning, ICLR.
    """

    n_shared: int = param(3, "Latents that both modalities show.", low=1)
    n_private: int = param(2, "Latents that one modality alone shows, for each of both.", low=0)
    mixing: str = param("mlp", "linear, mlp or monomials: one for each modality.")
    hidden: tuple[int, ...] = param(
        (128, 128, 128), "Widths of the layers of both encoders.", low=1
    )
    temperature: float = param(1.0, "Of the loss.", low=1e-3)
    batch_size: int = param(512, "Cells of a step; the others are the negatives of each.", low=8)
    n_steps: int = param(3000, "Steps of training.", low=1)
    lr: float = param(1e-3, "Learning rate of Adam at the start.", low=0)

    def validate(self) -> None:
        """Refuse a mixing that there is not."""
        require_mixing(self.mixing, self.n_shared + self.n_private)


@settled()
def recover_shared(setting: ModalSetting, seed: int = 0) -> Result:
    """Train an encoder for each modality so that both find the same cell, and see what they kept.

    Returns
    -------
    ``shared`` and ``private``: R² of both blocks of latents by the first encoder, which has as many outputs
    as latents are shared, read by kernel ridge regression, as theory leaves open in which shape they are
    recovered; ``shared_untrained`` and ``private_untrained``: before training; ``state``. No arrays.

    Examples
    --------
    >>> row, _ = recover_shared(ModalSetting(n_shared=1, n_private=1, n_steps=20))
    >>> sorted(row)
    ['loss', 'private', 'private_untrained', 'shared', 'shared_untrained', 'state']
    """
    rng = Rng(seed)
    n = setting.n_shared + setting.n_private
    with rng.scope("mixing"):
        mixings: list[Any] = [mixing_of(setting.mixing, n) for _ in range(2)]
    with rng.scope("encoder"):
        encoders = nn.ModuleList(
            Network(m.n_data, setting.n_shared, setting.hidden, sphere=False) for m in mixings
        )
    blocks = {"shared": range(setting.n_shared), "private": range(setting.n_shared, n)}
    blocks = {name: axes for name, axes in blocks.items() if axes}

    def cells(size: int) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        shared = torch.randn(size, setting.n_shared)
        one, two = (torch.cat([shared, torch.randn(size, setting.n_private)], 1) for _ in range(2))
        return one, two

    def loss() -> Float[Tensor, ""]:
        one, two = (
            encode(mix(z))
            for encode, mix, z in zip(encoders, mixings, cells(setting.batch_size), strict=True)
        )
        exact = "donot_use_mm_for_euclid_dist"  # products lose the digits of points near each other
        logits = -(torch.cdist(one, two, compute_mode=exact) ** 2) / setting.temperature
        at = torch.arange(setting.batch_size)
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2

    def kept() -> dict[str, float]:
        found = encoded(encoders[0], mixings[0](z)).double().numpy()
        return block_r2(z.double().numpy(), found, blocks, linear=False)

    with rng.scope("test"):
        z = cells(_TEST // 4)[0]  # kernel regression takes the square of it
    before = {f"{name}_untrained": value for name, value in kept().items()}
    with rng.scope("train"):
        history = minimise(loss, encoders, setting.n_steps, setting.lr)
    return {**kept(), **before, **_fit(history)}, {}


def _compared(z: Float[Tensor, "b n"], found: Float[Tensor, "b n"]) -> dict[str, Any]:
    truth, recovered = z.double().numpy(), found.double().numpy()
    by_axis = axis_r2(truth, recovered)
    return {
        "r2": float(by_axis.mean()), "r2_axis": by_axis.tolist(),
        "mcc": mean_correlation(truth, recovered),
    }  # fmt: skip


def _recovered(z: Tensor, found: Tensor, before: dict[str, Any]) -> dict[str, Any]:
    untrained = {f"{name}_untrained": before[name] for name in ("r2", "mcc")}
    return {**_compared(z, found), **untrained}


def _fit(history: list[float]) -> dict[str, Any]:
    return {"loss": history[-1], "state": state_of(history, held_out=False)}
