"""What the self-supervised models have in common: options, roles and phases."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from ...compute.rng import Rng
from ...config import config, param
from ...data.sampler import Sampler, Shuffled
from ...data.source import Source
from ...errors import ConfigError
from ...learn.exact import Exact
from ...learn.phase import Phase, Split
from ...learn.sgd import SGD
from ...model import Model
from .reference import refuse_too_few
from .views import refuse_unknown

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


@config
class SelfSupervised(Model):
    """Options, roles and phases of the self-supervised models."""

    needs: ClassVar[tuple[str, ...]] = ("expression|counts",)
    uses: ClassVar[tuple[str, ...]] = ("protein", "batch", "label")
    tolerates: ClassVar[tuple[str, ...]] = ("protein",)
    partial: ClassVar[bool] = True
    extends: ClassVar[bool] = False
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "log1p CP10k"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {}, "scssl": SCSSL, "scssl-tuned": SCSSL_TUNED,
    }  # fmt: skip

    preset: Literal["default", "scssl", "scssl-tuned"] = param(
        "default",
        "Values of the options that are not given: those below (default), or those of scSSL-Bench, with its "
        "first (scssl) or its second set of augmentations (scssl-tuned).",
    )
    n_latent: int = param(64, "Number of dimensions of the embedding of each modality.", low=1)
    n_hidden: int = param(128, "Number of units in each hidden layer of the encoder.", low=1)
    n_layers: int = param(1, "Number of hidden layers of the encoder.", low=0, high=20)
    projector: tuple[int, ...] = param(
        (64, 64), "Widths of the projector, through which the loss sees the embedding.", low=1
    )
    augment: tuple[str, ...] = param(
        ("mask", "noise", "swap", "crossover"),
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
        0.5, "mnn, bbknn: weight of the cell itself, beside its neighbour in another batch.",
        low=0, high=1,
    )  # fmt: skip
    n_neighbours: int = param(5, "mnn, bbknn: number of nearest cells of each batch.", low=1)
    fusion: Literal["concat", "mean", "add", "clip"] = param(
        "concat",
        "How several modalities become one: side by side, averaged, added, or side by side and trained to "
        "find each other (clip).",
    )
    batch_size: int = param(256, "Number of cells per minibatch.", low=2)
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

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        refuse_unknown(self.augment)
        if not self.projector:
            raise ConfigError("projector=(): name at least one width.")

    @property
    def n_partners(self) -> int:
        """Cells that the sampler draws beside each."""
        return 0

    def sampler(self) -> Sampler:
        """Return what draws minibatches."""
        return Shuffled(self.batch_size, compares=True)

    def split(
        self, source: Source, rows: np.ndarray, validation: float | np.ndarray, rng: Rng
    ) -> Split:
        """Return the cells to learn from and to validate on; too few of what is needed are refused."""
        found = super().split(source, rows, validation, rng)
        refuse_too_few(source, found.train, self.fusion)
        return found

    def phases(self) -> list[Phase]:
        """Return gradient descent, and a look at what it made of the training cells."""
        learner = SGD(
            lr=self.lr, max_epochs=self.max_epochs, weight_decay=self.weight_decay, schedule=self.schedule,
        )  # fmt: skip
        name = type(self).__name__
        return [
            Phase(learner, data=self.sampler(), name=name, lasts="max_epochs"),
            Phase(Exact(), name="reference"),
        ]

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads: batches and labels are of the fit alone."""
        return ("expression", "counts", *(("protein",) if verb != "predict" else ()))
