"""CLAIRE: cells of two batches that are each other's nearest are each other's positives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ..compute.rng import Rng
from ..config import config, param
from ..data.batch import CellBatch, SparseRows
from ..data.sampler import Drawn, Paired, Rows, Sampler
from ..data.source import Source
from ..errors import ConfigError, DataError, counted
from ..learn.components import having_expression
from ..learn.exact import Exact
from ..learn.partners import refuse_labels_as_batches, refuse_one_batch
from ..learn.phase import Phase, Session, Split
from ..learn.sgd import MIN_CELLS, SGD, default_epochs
from ..losses.infonce import info_nce
from ..metrics.neighbours import mutual_neighbours, neighbours_by_group
from ..module import Loss, Step
from ..schema import Spec
from .moco import MoCo, MoCoModule
from .selfsupervised.network import View
from .selfsupervised.options import scssl, with_components
from .selfsupervised.views import Views


class MixedViews(Views):
    """Views of cells that were moved towards a neighbour, each by a share of its own."""

    def _mixed(
        self,
        own: SparseRows,
        theirs: SparseRows,
        both: Bool[Tensor, " b"],
        mixed: Tensor,  # noqa: ARG002 (all are)
    ) -> SparseRows:
        """Return λ own + (1 − λ) theirs, with λ of each cell even between `mix` and 1."""
        share = (1 - self.options.mix) * torch.rand(len(own), device=own.values.device) * both
        return SparseRows.of(torch.lerp(own.dense(), theirs.dense(), share[:, None]))


class CLAIREModule(MoCoModule):
    """MoCo, with cells of different batches as each other's positives."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.views = MixedViews(options, self.views.role, spec.n_features(self.views.role))

    def two_views(self, batch: CellBatch) -> tuple[View, View]:
        """Return a view of each cell, and one of its positive."""
        cell, near, positive, near_positive = batch.aligned(4)
        return self.views.draw(cell, near), self.views.draw(positive, near_positive)

    def loss(self, batch: CellBatch, step: Step) -> Loss:
        """Return the mean InfoNCE of both directions: of cells and of their positives."""
        views = self.two_views(batch)
        (embedded, one), (_, two) = map(self.network, views)
        (_, slow_one), (_, slow_two) = map(self.slow, views)
        both = torch.cat([slow_two, slow_one])
        objective = info_nce(torch.cat([one, two]), both, self.queue.held, self.options.temperature)
        return self.logged(objective, embedded, step, {"keys": F.normalize(both, dim=1)})


@dataclass(frozen=True)
class Positives:
    """Draws for each cell a neighbour of its batch, a positive of another batch, and a neighbour of that.

    They are drawn from the columns ``near`` and ``mutual``, where `Constructed` puts them.
    """

    def __call__(
        self,
        source: Source,
        rows: Rows,  # noqa: ARG002 (the contract)
        anchors: Rows,
        generator: np.random.Generator,
    ) -> Drawn:
        """Return positions of cells, shape (b, 3)."""

        def drawn(name: str, cells: Rows) -> Rows:
            table = source.columns[name][cells]
            at = generator.integers((table >= 0).sum(1))
            found: Rows = np.take_along_axis(table, at[:, None], 1)[:, 0]
            return found

        positives = drawn("mutual", anchors)
        return np.column_stack([drawn("near", anchors), positives, drawn("near", positives)])


@dataclass(frozen=True)
class Constructed:
    """The view of a phase in which each cell has neighbours of its batch and mutual ones of others.

    Cells without a mutual neighbour are neither learned from nor validated on, and cells without expression
    have none. Training cells and those held out have neighbours among themselves alone, of which the nearest
    two of two batches are always mutual.

    Attributes
    ----------
    n_neighbours
        Nearest cells of the own batch.
    n_mutual
        Cells of two batches are mutual neighbours if each is among so many nearest of the other.
    refined
        Whether pairs are left out that the network, as it is by then, finds unlike.
    """

    n_neighbours: int
    n_mutual: int
    refined: bool = False

    def __call__(
        self, module: Any, source: Source, split: Split, run: Session
    ) -> tuple[Source, Split]:
        """Return the source with the columns ``near`` and ``mutual``, and the cells that have these.

        Raises
        ------
        DataError
            If so few training cells have a mutual neighbour, or one that is left, that none can learn.
        """
        seen, _ = with_components(module, source, split, run)
        batch, near = source.columns["batch"], np.full((len(source), self.n_neighbours), -1)
        parts = [having_expression(source, rows) for rows in (split.train, split.validation)]
        pairs = [np.empty((0, 2), np.int64)] * 2
        for number, rows in ((i, part) for i, part in enumerate(parts) if len(part)):
            z, own = unit(seen.columns["components"][rows]), batch[rows]
            found = neighbours_by_group(z, own, max(self.n_neighbours, self.n_mutual))
            pairs[number] = rows[mutual_pairs(found[..., : self.n_mutual], own)]
            close = found[np.arange(len(rows)), own, : self.n_neighbours]
            near[rows] = np.where(close < 0, -1, rows[close])
            near[rows, 0] = np.where(close[:, 0] < 0, rows, near[rows, 0])  # alone in its batch
        n = len(np.unique(pairs[0]))
        self._refuse_few(n, len(split.train))
        if self.refined:
            pairs = _refined(pairs, _embedded(module, source, parts, run))
        mutual = _listed(np.concatenate(pairs), len(source))
        train, held_out = map(np.unique, pairs)
        if len(train) < MIN_CELLS:
            raise DataError(
                f"{counted(n, 'cell')} had a mutual nearest neighbour in another batch. CLAIRE then left out "
                f"pairs that look unlike. {len(train)} of these cells are left, and learning needs "
                f"{MIN_CELLS}. Set refine=1 to keep all pairs, or give more cells."
            )
        columns = {**source.columns, "near": near, "mutual": mutual}
        return replace(source, columns=columns), Split(train, held_out, split.named)

    def _refuse_few(self, n: int, n_train: int) -> None:
        if n < MIN_CELLS:
            raise DataError(
                f"A mutual nearest neighbour in another batch was found for {counted(n, 'cell')} out of "
                f"{n_train} to learn from, and learning needs {MIN_CELLS}. Give more cells, or raise "
                f"n_mutual (now {self.n_mutual})."
            )


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return rows of length 1; those of length 0 stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(x.dtype).tiny)


def mutual_pairs(
    near: Int[np.ndarray, "n batches k"], batch: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "pairs 2"]:
    """Return positions of cells of two batches that are each among the nearest of the other.

    Parameters
    ----------
    near
        Positions of the nearest cells in each batch (see `neighbours_by_group`).

    Examples
    --------
    >>> batch = np.array([0, 0, 1, 1])
    >>> near = neighbours_by_group(np.array([[0.0], [1.0], [0.1], [5.0]]), batch, k=1)
    >>> mutual_pairs(near, batch).tolist()
    [[0, 2]]
    """
    mutual = mutual_neighbours(near, batch)
    at = np.nonzero(mutual > np.arange(len(near))[:, None, None])  # of each pair one
    return np.column_stack([at[0], mutual[at]])


def _listed(pairs: Int[np.ndarray, "pairs 2"], n: int) -> Int[np.ndarray, "n most"]:
    """Return the partners of each cell, and -1 behind the last."""
    cells, partners = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.argsort(cells, kind="stable")
    cells, partners = cells[order], partners[order]
    place = np.arange(len(cells)) - np.searchsorted(cells, cells)
    table = np.full((n, place.max(initial=0) + 1), -1)
    table[cells, place] = partners
    return table


@torch.no_grad()
def _embedded(
    module: Any, source: Source, parts: list[Rows], run: Session
) -> Float[np.ndarray, "cells z"]:
    """Return the embedding of some cells, of length 1, and NaN for the others."""
    module.eval()
    rows = np.sort(np.concatenate(parts))
    found = torch.cat([module.embed(batch).cpu() for batch in source.batches(rows, run.device)])
    table = np.full((len(source), found.shape[1]), np.nan)
    table[rows] = unit(found.double().numpy())
    return table


def _refined(
    pairs: list[Int[np.ndarray, "_ 2"]], embedded: Float[np.ndarray, "cells z"]
) -> list[Int[np.ndarray, "_ 2"]]:
    """Leave out the pairs that the network finds unlike; the first ones say which these are.

    Of those held out all stay if none would be left, so that there is something to validate on.
    """
    cosines = [(embedded[found[:, 0]] * embedded[found[:, 1]]).sum(1) for found in pairs]
    train, held_out = (found[alike(cosines[0], c)] for found, c in zip(pairs, cosines, strict=True))
    return [train, held_out if len(held_out) else pairs[1]]


def alike(
    known: Float[np.ndarray, " n"], cosines: Float[np.ndarray, " m"]
) -> Bool[np.ndarray, " m"]:
    """Return which cosines belong to the higher of two Gaussians that are mixed in the known ones.

    Examples
    --------
    >>> known = np.r_[np.linspace(0.8, 0.95, 40), np.linspace(0.0, 0.3, 10)]
    >>> alike(known, np.array([0.1, 0.7, 0.9])).tolist()
    [False, True, True]
    """
    if len(np.unique(known)) < 2 or not len(cosines):
        return np.ones(len(cosines), bool)
    mixture = GaussianMixture(2, random_state=0).fit(known[:, None])
    high = int(mixture.means_.argmax())
    return (mixture.predict(cosines[:, None]) == high) | (cosines >= mixture.means_.max())


@config
class CLAIRE(MoCo):
    """CLAIRE: cells of two batches that are each other's nearest are each other's positives.

    Cells x and y of two batches are a pair if each is among the `n_mutual` nearest cells of the other's
    batch in principal components. Each is moved towards a neighbour of its own batch, x', y'::

        a = λ x + (1 − λ) x',   b = μ y + (1 − μ) y',   λ, μ ~ U(mix, 1)

    and the query of each finds the key of the other among keys of earlier cells (see `MoCo`). Later, pairs
    that the network itself finds unlike are left out: cosines of all pairs are a mixture of two Gaussians,
    and those of the higher one stay. No label is read.

    References
    ----------
    Yan et al. (2023), CLAIRE: contrastive learning-based batch correction framework for better balance
    between batch mixing and preservation of cellular heterogeneity, Bioinformatics 39:btad099.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = scssl(augment=(), mix=0.5, n_neighbours=10)
    needs: ClassVar[tuple[str, ...]] = ("expression|counts", "batch")
    uses: ClassVar[tuple[str, ...]] = ("protein", "label")

    augment: tuple[str, ...] = param(
        (),
        "Augmentations, beside moving a cell towards a neighbour, which act in this order: thin (counts), "
        "programmes, mask, swap, crossover, noise.",
    )
    mix: float = param(
        0.5, "Least weight of the cell itself where it is moved towards a neighbour of its batch.",
        low=0, high=1,
    )  # fmt: skip
    n_neighbours: int = param(
        10, "Number of nearest cells of its batch that it may be moved to.", low=1
    )
    n_mutual: int = param(
        5,
        "Number of nearest cells of another batch among which each of a pair must be the other.",
        low=1,
    )
    refine: float = param(
        0.05, "Share of the run after which pairs that look unlike are left out; 1: never.",
        low=0, high=1,
    )  # fmt: skip
    temperature: float = param(0.07, "Temperature τ of the loss.", low=1e-3)
    momentum: float = param(
        0.999, "Momentum of the slow copy at the start; it rises to 1 as a cosine.", low=0, high=1
    )

    def validate(self) -> None:
        """Refuse what cannot be."""
        super().validate()
        for name in ("mnn", "bbknn"):
            if name in self.augment:
                raise ConfigError(
                    f"augment={name!r}: CLAIRE pairs cells of different batches by itself. Leave it out."
                )

    def build(self, spec: Spec) -> CLAIREModule:
        """Return the untrained tensors."""
        return CLAIREModule(self, spec)

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Return `rows` to learn from, and a share of them, or those named, to validate on.

        Raises
        ------
        ConfigError
            If every batch holds one label alone.
        DataError
            If all cells with expression are of one batch, of those to learn from or those named to validate
            on; or none of them has what else is read.
        """
        found = super().split(source, rows, validation, rng)
        refuse_labels_as_batches(source, rows, "CLAIRE")
        compared = having_expression(source, found.train)
        refuse_one_batch(source, found.train, compared, "CLAIRE", "take CLEAR")
        if len(found.validation):
            held_out = having_expression(source, found.validation)
            if found.named:
                refuse_one_batch(source, found.validation, held_out, "CLAIRE", "give validation=0")
            elif len(np.unique(source.columns["batch"][held_out])) < 2:
                found = found.whole()  # too few were drawn to be each other's positives
        for role in source.matrices:
            if not source.measured(role)[compared].any():
                raise DataError(
                    f"No cell to learn from has both expression and {role}, and CLAIRE learns from no cell "
                    f"without expression. Leave {role} out of the schema, or take CLEAR."
                )
        return found

    @property
    def n_partners(self) -> int:
        """Cells that the sampler draws beside each (see `Positives`)."""
        return 3

    def sampler(self) -> Sampler:
        """Return what draws minibatches."""
        return Paired(self.batch_size, Positives())

    def phases(self) -> list[Phase]:
        """Return gradient descent on all pairs, then on those that are left, and a look at the outcome."""

        def epochs(n: int) -> int:
            return self.max_epochs or default_epochs(n)

        def first(n: int) -> int:
            return min(max(1, round(self.refine * epochs(n))), max(1, epochs(n) - 1))

        def rest(n: int) -> int:
            return max(1, epochs(n) - first(n))

        refines = self.refine < 1 and self.max_epochs != 1
        view = Constructed(self.n_neighbours, self.n_mutual)
        begins = self.refine if refines else 0.0
        learner = SGD(
            lr=self.lr, max_epochs=rest if refines else epochs, weight_decay=self.weight_decay,
            schedule=self.schedule, comparable=self.comparable, span=(begins, 1.0),
        )  # fmt: skip
        begun = replace(learner, max_epochs=first, schedule="constant", span=(0.0, begins))
        return [
            *([Phase(begun, data=self.sampler(), name="all pairs", view=view)] if refines else []),
            Phase(
                learner, data=self.sampler(), name="CLAIRE", view=replace(view, refined=refines),
                lasts="max_epochs",
            ),
            Phase(Exact(), name="reference"),
        ]  # fmt: skip
