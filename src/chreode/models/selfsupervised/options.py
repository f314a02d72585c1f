"""What the self-supervised models have in common: options, roles and phases."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from ...compute.rng import Rng
from ...config import config, param
from ...data.sampler import Paired, Sampler, Shuffled
from ...data.source import Source
from ...errors import ConfigError, SchemaError
from ...learn.components import components, having_expression
from ...learn.exact import Exact
from ...learn.partners import (
    BatchBalanced,
    MutualNeighbours,
    refuse_labels_as_batches,
    refuse_one_batch,
)
from ...learn.phase import Phase, Session, Split
from ...learn.sgd import SGD
from ...model import Model
from ...schema import Spec
from .network import FURTHER
from .reference import refuse_too_few
from .views import MIXING, refuse_unknown

#: The settings of scSSL-Bench: its optimiser, and the augmentations that it calls default and tuned.
SCSSL: dict[str, Any] = {
    "lr": 1e-4, "weight_decay": 1e-6, "schedule": "step", "max_epochs": 100, "batch_size": 256,
    "n_latent": 64, "n_hidden": 128, "n_layers": 1, "chance": 0.5,
    "augment": ("mask", "noise", "swap", "crossover"),
    "mask": 0.2, "noise_scale": 0.2, "noise_share": 0.8, "swap": 0.1, "crossover": 0.25,
}  # fmt: skip
SCSSL_TUNED = {
    **SCSSL, "augment": ("mask", "noise", "swap", "mnn"), "mask": 0.5, "noise_share": 0.3, "swap": 0.3,
    "mix": 0.5, "n_neighbours": 3,
}  # fmt: skip


def scssl(**own: Any) -> dict[str, dict[str, Any]]:
    """Return the presets of a model: the settings of scSSL-Bench, and `own` ones of its method."""
    return {"default": {}, "scssl": {**SCSSL, **own}, "scssl-tuned": {**SCSSL_TUNED, **own}}


@config
class Encoding(Model):
    """Options, roles and phases of all models that learn an encoder without labels.

    Class attributes
    ----------------
    keeps
        Weights to keep of a fit that overfitted: those of its best epoch or its last (see `SGD`).
    """

    keeps: ClassVar[Literal["best", "last"]] = "best"

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    uses: ClassVar[tuple[str, ...]] = ("protein", "batch", "label")
    tolerates: ClassVar[tuple[str, ...]] = ("protein",)
    partial: ClassVar[bool] = True
    extends: ClassVar[bool] = False
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"
    presets: ClassVar[dict[str, dict[str, Any]]] = scssl()

    preset: Literal["default", "scssl", "scssl-tuned"] = param(
        "default",
        "Values of the options that are not given: those below (default), or those of scSSL-Bench, with its "
        "first (scssl) or its second set of augmentations (scssl-tuned).",
    )
    n_latent: int = param(64, "Number of dimensions of the embedding of each modality.", low=1)
    n_hidden: int = param(128, "Number of units in each hidden layer of the encoder.", low=1)
    n_layers: int = param(1, "Number of hidden layers of the encoder.", low=0, high=20)
    augment: tuple[str, ...] = param(
        ("mask",),
        "Augmentations, which act in this order: thin (counts), mnn or bbknn, programmes, mask, swap, "
        "crossover, noise.",
    )
    chance: float = param(
        0.5, "Chance of a view to get each augmentation, of thinning and mixing too.", low=0, high=1
    )
    mask: float = param(0.2, "mask: share of genes set to 0.", low=0, high=1)
    noise_scale: float = param(0.2, "noise: standard deviation, in units of log-expression.", low=0)
    noise_share: float = param(0.8, "noise: share of genes that get it.", low=0, high=1)
    swap: float = param(
        0.1, "swap: share of genes that swap their values within a cell.", low=0, high=1
    )
    crossover: float = param(
        0.25, "crossover: share of genes that take the value of another cell.", low=0, high=1
    )
    thin: float = param(
        0.1, "thin: lowest share of the counts that is kept; the share is log-uniform up to 1.",
        low=1e-6, high=1,
    )  # fmt: skip
    programmes: float = param(0.2, "programmes: share of gene programmes set to 0.", low=0, high=1)
    n_programmes: int = param(
        50, "programmes: number of gene programmes, learned by k-means.", low=2
    )
    mix: float = param(
        0.5, "mnn, bbknn: weight of the cell itself, beside its neighbour.",
        low=0, high=1,
    )  # fmt: skip
    n_neighbours: int = param(5, "mnn, bbknn: number of nearest cells of each batch.", low=1)
    fusion: Literal["concat", "mean", "add", "clip"] = param(
        "concat",
        "How several modalities become one: side by side, averaged, added, or side by side and trained to "
        "find each other (clip).",
    )
    batch_size: int = param(256, "Number of cells per minibatch.", low=3)
    max_epochs: int | None = param(
        None,
        "Largest number of passes over the training cells; None: 400, and fewer above 20,000 cells.",
        low=1,
    )
    lr: float = param(1e-3, "Learning rate of Adam at the start.", low=0)
    weight_decay: float = param(1e-6, "Weight decay of Adam (an L2 penalty on the weights).", low=0)
    schedule: Literal["constant", "cosine", "step"] = param(
        "cosine",
        "Learning rate over the run: constant, falling to 0 as a cosine, or a tenth after every 10 epochs.",
    )

    def validate(self) -> None:
        """Refuse what cannot be."""
        refuse_unknown(self.augment)

    @property
    def n_partners(self) -> int:
        """Cells that the sampler draws beside each: one for either view, where cells are mixed."""
        return 2 if self._mixing else 0

    @property
    def _mixing(self) -> str | None:
        return next((name for name in MIXING if name in self.augment), None)

    def sampler(self) -> Sampler:
        """Return what draws minibatches."""
        if self._mixing is None:
            return Shuffled(self.batch_size, compares=True)
        partner = MutualNeighbours if self._mixing == "mnn" else BatchBalanced
        return Paired(self.batch_size, partner(self.n_neighbours))

    def phases(self) -> list[Phase]:
        """Return gradient descent, and a look at what it made of the training cells."""
        learner = SGD(
            lr=self.lr, max_epochs=self.max_epochs, weight_decay=self.weight_decay, schedule=self.schedule,
            keep=self.keeps, comparable=self.comparable,
        )  # fmt: skip
        name = type(self).__name__
        return [
            Phase(
                learner, data=self.sampler(), name=name, lasts="max_epochs",
                view=with_components if self._mixing else None,
            ),
            Phase(Exact(), name="reference"),
        ]  # fmt: skip

    def refuse_form(self, spec: Spec) -> None:
        """Refuse augmentations of what the schema does not name.

        Raises
        ------
        ConfigError
            If counts are to be thinned and there are none.
        SchemaError
            If cells of other batches are asked for, and no batch is named.
        """
        if "thin" in self.augment and spec.either("expression", "counts") == "expression":
            raise ConfigError(
                "augment: thin draws from counts, and the schema names expression. Name counts in its place, "
                "or leave thin out."
            )
        if self._mixing and "batch" not in spec.categories:
            raise SchemaError(
                f"augment: cells of two batches are mixed by {self._mixing}, and the schema names none. Name "
                f"batch, as in Schema(batch='obs/donor'), or leave {self._mixing} out."
            )

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Hold out cells; refuse too few of a modality, and batches among which there is no cell to mix with.

        Raises
        ------
        ConfigError
            If every batch holds one label alone.
        DataError
            If the cells to learn from, or those held out, are of one batch.
        """
        split = super().split(source, rows, validation, rng)
        refuse_too_few(source, split.train, self)
        if self._mixing and "batch" in source.columns:
            refuse_labels_as_batches(source, rows, self._mixing)
            train, held_out = (
                having_expression(source, r) for r in (split.train, split.validation)
            )
            refuse_one_batch(source, split.train, train, self._mixing)
            if (
                len(split.validation)
                and not split.named
                and len(np.unique(source.columns["batch"][held_out])) < 2
            ):
                return split.whole()  # by chance, where few are held out
            if len(split.validation):
                refuse_one_batch(source, split.validation, held_out, self._mixing)
        return split

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads: batches and labels are of the fit alone."""
        return ("expression", "counts", *(FURTHER if verb != "predict" else ()))


@config
class SelfSupervised(Encoding):
    """Options of those that compare views of cells through a projector.

    What they compare with moves: a queue fills, a slow copy follows, and cells that all lie together are easy
    to foretell. So the lowest objective may be that of the first epoch, and the last weights are kept.
    """

    keeps: ClassVar[Literal["best", "last"]] = "last"

    projector: tuple[int, ...] = param(
        (64, 64), "Widths of the projector, through which the loss sees the embedding.", low=1
    )

    def validate(self) -> None:
        """Refuse what cannot be."""
        super().validate()
        if not self.projector:
            raise ConfigError("projector=(): name at least one width.")

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Return `rows` to learn from, and a share of them, or those named, to validate on.

        Nothing can be compared with a single cell. If a share comes to one, none is held out.

        Raises
        ------
        ConfigError
            If a single cell is named.
        """
        found = super().split(source, rows, validation, rng)
        if len(found.validation) != 1:
            return found
        if found.named:
            raise ConfigError(
                "validation names 1 cell, and the loss compares cells. Name 2 cells or more, or none "
                "(validation=0)."
            )
        return found.whole()


def with_components(
    module: Any, source: Source, split: Split, run: Session
) -> tuple[Source, Split]:
    """Return the view of a phase in which neighbours are sought in 50 principal components, or in all."""
    role = source.spec.either("expression", "counts")
    k = min(50, len(having_expression(source, split.train)) - 1, source.spec.n_features(role))
    return components(k)(module, source, split, run)
