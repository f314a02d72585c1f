"""Two views of every cell: what is told apart and what is not is all that these models learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans
from torch import Tensor, nn

from ...data.batch import CellBatch, SparseRows
from ...errors import ConfigError, near
from ...nn.augment import (
    Augmentation,
    Crossover,
    Mask,
    Mix,
    Noise,
    Programmes,
    Swap,
    Thin,
)
from .network import FURTHER, View

#: What each augmentation of log-expression is made of, by its name in `augment`, in the order they act.
MAKERS: dict[str, Callable[[Any], Augmentation]] = {
    "mask": lambda o: Mask(o.mask),
    "swap": lambda o: Swap(o.swap),
    "crossover": lambda o: Crossover(o.crossover),
}
#: Those that need more than the cells of a minibatch.
MIXING = ("mnn", "bbknn")
NAMES = ("thin", *MIXING, "programmes", *MAKERS, "noise")


def refuse_unknown(augment: Sequence[str]) -> None:
    """Refuse augmentations that there are not.

    Raises
    ------
    ConfigError
        It names the nearest.
    """
    for name in augment:
        if name in ("label", "labels", "cell_type"):
            raise ConfigError(
                f"augment={name!r}: cells of one label are no augmentation. It would show the answer to a "
                "model that is to be judged by it."
            )
        if name not in NAMES:
            raise ConfigError(f"There is no augmentation {name!r}.{near(name, NAMES)}")
    if len(set(augment)) < len(augment):
        raise ConfigError(f"augment={tuple(augment)}: an augmentation is named twice.")
    if all(name in augment for name in MIXING):
        raise ConfigError(
            f"augment={tuple(augment)}: a cell is mixed by mnn or by bbknn. Name one."
        )


class Views(nn.Module):
    """Draws views of cells.

    Parameters
    ----------
    options
        `augment`, `chance` and the strengths.
    role
        Matrix role of expression.
    """

    programmes: Int[Tensor, " g"]

    def __init__(self, options: Any, role: str, n_features: int) -> None:
        super().__init__()
        self.options, self.role = options, role
        if "programmes" in options.augment:
            self.register_buffer("programmes", torch.full((n_features,), -1))  # not known yet

    def plain(self, batch: CellBatch) -> View:
        """Return the cells as they are."""
        values: dict[str, Any] = {self.role: batch.stored_expression()}
        for role in (r for r in FURTHER if r in batch.views):
            values[role] = as_read(batch, role)
        return View(values, batch.present)

    def draw(self, batch: CellBatch, partner: CellBatch | None = None) -> View:
        """Return one augmented view; where cells are mixed with a partner, all that both have is."""
        x = self._expression(batch)
        further = {r: stored(as_read(batch, r)) for r in FURTHER if r in batch.views}
        if partner is not None:
            mixed = self._chosen(x)
            x = self._mixed(x, stored(partner.stored_expression()), self.role, partner, mixed)
            for role, own in further.items():
                theirs = stored(as_read(partner, role))
                further[role] = self._mixed(own, theirs, role, partner, mixed)
        if "programmes" in self.options.augment:
            hide = Programmes(self.programmes, self.options.n_programmes, self.options.programmes)
            x = hide(x, self._chosen(x))
        values = {role: self._changed(some) for role, some in {self.role: x, **further}.items()}
        return View(values, batch.present)

    @property
    def lacks_programmes(self) -> bool:
        """Whether gene programmes are asked for, and are still to be learned."""
        return "programmes" in self.options.augment and bool((self.programmes < 0).any())

    def learn_programmes(self, loadings: Float[np.ndarray, "g k"], seed: int) -> None:
        """Group genes that vary together, by k-means of their loadings.

        These are scaled to length 1: else all genes that vary little would be one programme.
        """
        length = np.linalg.norm(loadings, axis=1, keepdims=True)
        turned = loadings / np.where(length > 0, length, 1)
        n = min(self.options.n_programmes, len(np.unique(turned, axis=0)))
        found = KMeans(n, n_init=3, random_state=seed).fit(turned).labels_
        self.programmes.copy_(torch.from_numpy(found))

    def _expression(self, batch: CellBatch) -> SparseRows:
        """Return log-expression, of fewer counts where these are thinned."""
        if "thin" not in self.options.augment:
            return stored(batch.stored_expression())
        counts = batch.sparse("counts")
        fewer = Thin(self.options.thin)(counts, self._chosen(counts))
        return stored(CellBatch(batch.rows, {"counts": fewer}).stored_expression())

    def _changed(self, x: SparseRows) -> SparseRows | Float[Tensor, "b g"]:
        for name, make in MAKERS.items():
            if name in self.options.augment:
                x = make(self.options)(x, self._chosen(x))
        if "noise" not in self.options.augment:
            return x
        return Noise(self.options.noise_share, self.options.noise_scale)(x, self._chosen(x))

    def _mixed(
        self, own: SparseRows, theirs: SparseRows, role: str, partner: CellBatch, mixed: Tensor
    ) -> SparseRows:
        """Mix what the partners have measured."""
        return Mix(theirs, self.options.mix)(own, mixed & partner.present.get(role, mixed))

    def _chosen(self, x: SparseRows) -> Bool[Tensor, " b"]:
        return torch.rand(len(x), device=x.values.device) < self.options.chance


def stored(x: Float[Tensor, "b g"] | SparseRows) -> SparseRows:
    """Return what is stored of rows, without their zeros."""
    return SparseRows.of(x) if isinstance(x, Tensor) else x


def as_read(batch: CellBatch, role: str) -> Float[Tensor, "b p"] | SparseRows:
    """Return proteins as centred log-ratios, and of peaks which are open: 1."""
    if role == "protein":
        return centred_log(batch, role)
    counts = batch.sparse(role)
    return counts.map((counts.values > 0).to(counts.values))


def centred_log(batch: CellBatch, role: str) -> Float[Tensor, "b p"]:
    """Return log1p of counts less their mean over the features of the cell (centred log-ratio).

    What was not measured is 0: as the cell's mean.
    """
    values, measured = batch.measured(role)
    logs, known = values.log1p(), measured.expand_as(values)
    mean = (logs * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
    return (logs - mean) * known
