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

#: What each augmentation of log-expression is made of, by its name in `augment`, in the order they act:
#: options, and which cells have what is to be augmented.
MAKERS: dict[str, Callable[[Any, Tensor], Augmentation]] = {
    "mask": lambda o, _: Mask(o.mask),
    "swap": lambda o, _: Swap(o.swap),
    "crossover": lambda o, present: Crossover(o.crossover, present),
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
        return View({role: as_read(batch, role) for role in self._roles(batch)}, batch.present)

    def draw(self, batch: CellBatch, partner: CellBatch | None = None) -> View:
        """Return one augmented view; where cells are mixed with a partner, all that both have is.

        What a cell lacks is not augmented, and no other cell takes it for zeros.
        """
        values = {r: self._read(batch, r) for r in self._roles(batch)}
        having = {role: batch.present.get(role, batch.rows >= 0) for role in values}
        if partner is not None:
            mixed = self._chosen(batch.rows >= 0)
            for role, own in values.items():
                both = having[role] & partner.present.get(role, having[role])
                values[role] = self._mixed(own, stored(as_read(partner, role)), both, mixed)
        if "programmes" in self.options.augment:
            hide = Programmes(self.programmes, self.options.n_programmes, self.options.programmes)
            values[self.role] = hide(values[self.role], self._chosen(having[self.role]))
        found = {role: self._changed(some, having[role]) for role, some in values.items()}
        return View(found, batch.present)

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

    def _roles(self, batch: CellBatch) -> list[str]:
        return [self.role, *(role for role in FURTHER if role in batch.views)]

    def _read(self, batch: CellBatch, role: str) -> SparseRows:
        """Return what is stored of a role, of fewer counts where these are thinned."""
        if role != self.role or "thin" not in self.options.augment:
            return stored(as_read(batch, role))
        counts = batch.sparse("counts")
        chosen = self._chosen(batch.present.get(role, batch.rows >= 0))
        fewer = Thin(self.options.thin)(counts, chosen)
        return stored(CellBatch(batch.rows, {"counts": fewer}).stored_expression())

    def _changed(
        self, x: SparseRows, present: Bool[Tensor, " b"]
    ) -> SparseRows | Float[Tensor, "b g"]:
        for name, make in MAKERS.items():
            if name in self.options.augment:
                x = make(self.options, present)(x, self._chosen(present))
        if "noise" not in self.options.augment:
            return x
        noise = Noise(self.options.noise_share, self.options.noise_scale)
        return noise(x, self._chosen(present))

    def _mixed(
        self, own: SparseRows, theirs: SparseRows, both: Bool[Tensor, " b"], mixed: Tensor
    ) -> SparseRows:
        """Mix the chosen cells, of what they and their partners both have."""
        return Mix(theirs, self.options.mix)(own, mixed & both)

    def _chosen(self, present: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Return the cells that get an augmentation: each that is there by a coin of its own."""
        drawn = torch.rand(len(present), device=present.device)
        return (drawn < self.options.chance) & present


def stored(x: Float[Tensor, "b g"] | SparseRows) -> SparseRows:
    """Return what is stored of rows, without their zeros."""
    return SparseRows.of(x) if isinstance(x, Tensor) else x


def as_read(batch: CellBatch, role: str) -> Float[Tensor, "b p"] | SparseRows:
    """Return log-expression, proteins as centred log-ratios, and of peaks which are open: 1."""
    if role in ("expression", "counts"):
        return batch.stored_expression()
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
