"""The contract between a model's mathematics and everything that feeds and trains it: tensors only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .compute.processes import Group
from .compute.rng import Rng
from .data.batch import CellBatch, SparseRows
from .data.source import Source
from .schema import Spec

#: What a fitted model may be able to answer; a module answers what it has a method for.
CAPABILITIES = (
    "embed", "posterior", "reconstruct", "classify", "generate",
    "predict", "score", "loadings", "variance_explained", "trajectory", "rank",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """The clock of a fit: warm-ups, temperatures and momenta read it.

    Attributes
    ----------
    rng
        Source of named random streams.
    index
        Steps taken so far.
    progress
        Share of the planned run, 0 to 1, or of all stages where these say so (`SGD.span`); 1 in
        validation, so that a warm-up never flatters it.
    rate
        What the optimiser multiplies the gradient of each entry of a parameter by, which is how far its
        proximal steps go; 0 in validation.
    group
        The processes that share this minibatch, for what is of all its cells, such as negatives
        (`Group.gather`). In validation every minibatch is of one process alone.
    outputs
        In `after_step`: what `loss` returned as such of this minibatch, detached.
    """

    rng: Rng
    index: int
    progress: float
    rate: Callable[[nn.Parameter], Tensor] = torch.zeros_like
    group: Group = field(default_factory=Group)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def mean(
        self, values: Float[Tensor, "b ..."], known: Shaped[Tensor, "b ..."]
    ) -> Float[Tensor, ""]:
        """Return the mean of the values that are known, such as the losses of labelled cells; 0 of none.

        Processes that share a minibatch may know different numbers of them. Each is returned its part of
        the joint mean, so that their objectives and gradients add up to those of one process.

        Parameters
        ----------
        values
            A loss for every cell, or for every entry of a matrix.
        known
            Of the same shape: 1 or True where a value counts.
        """
        cells = torch.tensor([float(len(values))], device=values.device)
        joint = torch.stack([known.sum().to(cells), cells[0]])
        self.group.add([joint])
        share = joint[1] / cells[0] / joint[0].clamp_min(1)
        return torch.where(known.bool(), values, 0).sum() * share

    def warm_up(self, share: float) -> float:
        """Return a weight that rises from 0 to 1 over the first `share` of the run."""
        return min(1.0, self.progress / share) if share else 1.0


@dataclass(frozen=True)
class Player:
    """Parameters that are moved to lower an objective of their own.

    Attributes
    ----------
    parameters
        What is moved.
    lr
        Its learning rate, as a multiple of the learner's.
    every
        Minibatches from one of its steps to the next.
    begins
        Share of the run in which it does not move yet, as a warm-up of the others.
    """

    parameters: Iterable[nn.Parameter]
    lr: float = 1.0
    every: int = 1
    begins: float = 0.0

    def moves(self, index: int, progress: float) -> bool:
        """Return whether it takes a step after the minibatch of this number, at this share of the run."""
        return index % self.every == 0 and progress >= self.begins


@dataclass(frozen=True)
class Loss:
    """What is minimised, and what is written to the history.

    Attributes
    ----------
    objectives
        One scalar per player, each the mean over the minibatch's cells.
    terms
        Named scalars to log, alike.
    outputs
        What `after_step` is to have of this minibatch, such as the keys that a queue takes in.
    """

    objectives: Mapping[str, Float[Tensor, ""]]
    terms: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """What a question to some models may be given beside what all take.

    Attributes
    ----------
    default
        What is meant where it is left out.
    doc
        What it is, in a line.
    check
        Returns the value as the capability takes it, or refuses it.
    """

    default: Any
    doc: str
    check: Callable[[Any], Any]


class Module(nn.Module):
    """Base of every model's tensors.

    A module trained by gradients has `loss`; one trained by EM, CAVI or in closed form has `collect` and
    `update` instead. What it can answer is found by its methods (see `CAPABILITIES`).
    """

    #: Capabilities that this configuration lacks although the class has the method; as a mapping, each with
    #: a sentence that says what would give it.
    unable: Collection[str] = ()
    #: Matrix roles of which `generate` and `predict` return counts, if not the first one's alone: they
    #: then return a tensor by role.
    drawn: tuple[str, ...] = ()
    #: Whether `predict` fills in what was not measured (`drawn`), as expected counts: then there are no
    #: conditions to change.
    fills: bool = False
    #: Conditions of the fit that no question can change: a path, where any state goes its way.
    fixed: tuple[str, ...] = ()
    #: Conditions whose values it compares with those of the fit by itself.
    compares: tuple[str, ...] = ()
    #: Its own buffers in which NaN means that something is not known; anywhere else it is a fault.
    unknown: tuple[str, ...] = ()
    #: Its own submodules that hold training cells, such as labelled ones to classify by: a fit that goes on
    #: from this one begins them anew, as it may have other cells, or another number of them.
    of_cells: tuple[str, ...] = ()

    def prepare(self, source: Source, rows: Any, rng: Rng) -> None:
        """Take statistics of the training rows when a phase begins: priors, scales; on the CPU."""

    def loss(self, batch: Any, step: Step) -> Loss:
        """Return the objectives of a minibatch: a `CellBatch`, or what a phase's view makes of cells."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradients")

    def forward(self, *args: Any) -> Loss:
        """Return `loss`, so that wrappers such as DDP and `compile` apply."""
        return self.loss(*args)

    def players(self) -> Mapping[str, Player | Iterable[nn.Parameter]]:
        """Return who follows each objective, as a `Player` or as its parameters alone.

        An adversary is a second player. Members do not move.
        """
        own = [p for name, p in self.named_parameters() if not name.startswith("members.")]
        return {"model": Player(own)}

    def after_step(self, step: Step) -> None:
        """Change what gradients do not: EMA targets, queues, proximal steps, pruning.

        It is not called in query mapping, where all that an older fit learned stays as it is.
        """

    def collect(self, *args: Any, **kwargs: Any) -> Any:
        """Return sums of sufficient statistics over the cells of a batch (see `learn.EM`, `learn.CAVI`)."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by EM")

    def update(self, statistics: Mapping[str, Tensor]) -> None:
        """Set the parameters from the sums over all cells."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by EM")

    def start(self, batch: CellBatch) -> dict[str, Tensor]:
        """Return where the posterior of each cell begins, a function of the cell alone (`learn.CAVI`)."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by CAVI")

    def global_elbo(self) -> Tensor:
        """Return what the posteriors that all cells share add to the ELBO (`learn.CAVI`)."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by CAVI")

    def solve(self, batches: Any, rng: Rng) -> bool | None:
        """Set the parameters in closed form, or by a solver that returns whether it came to rest.

        ``batches()`` streams all cells, as often as called.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed form")

    def fresh(self) -> Module:
        """Return new weights for the same data, without members (`learn.Ensemble`)."""
        raise NotImplementedError(f"{type(self).__name__} has no members")

    def keep_members(self, others: Sequence[Any]) -> None:
        """Take from the fits beside this one what they tell of it, such as a confidence."""

    def verb_options(self, verb: str) -> Mapping[str, Option]:  # noqa: ARG002 (subclasses read it)
        """Return what more a verb takes by name, such as the weight of guidance; its method is given all."""
        return {}

    def further_conditions(self) -> Mapping[str, Callable[[Any], Any]]:
        """Return the conditions that may be named beside those of the fit, such as genes that are absent.

        Each comes with what checks a value and returns its code, as `embed` and the others find it in
        the columns of a batch.
        """
        return {}

    def implied(self, verb: str) -> Mapping[str, Any]:  # noqa: ARG002 (subclasses read it)
        """Return the values, in the user's units, of conditions that are meant where they are not named."""
        return {}

    def remarks(self) -> list[str]:
        """Return what a user must know of what was learned, such as that an embedding has collapsed.

        Each is a clause, which becomes a note of the fit, and is warned of.
        """
        return []

    def feature_weight(self) -> dict[str, Tensor]:
        """Return, per matrix role, how much each feature matters to `embed` (non-negative)."""
        return {}


@runtime_checkable
class DrawsViews(Protocol):
    """A module whose loss compares views of cells: what it says of them, without its loss."""

    def prepare(self, source: Source, rows: Any, rng: Rng) -> None:
        """Learn what views need from the training rows (see `Module`)."""
        ...

    def draw_views(self, batch: CellBatch) -> Sequence[Float[Tensor, "b g"] | SparseRows]:
        """Return the log-expression of the views that the loss compares, one after the other.

        Each has a row for every anchor of the minibatch, in the order of the anchors.
        """
        ...


def capabilities(module: Module) -> list[str]:
    """Return the questions that `module` can answer."""
    unable = getattr(module, "unable", ())
    return [n for n in CAPABILITIES if callable(getattr(module, n, None)) and n not in unable]


@runtime_checkable
class Recipe(Protocol):
    """What a fitted model keeps of its `Model`: options, the roles it reads, and how it is built.

    See `chreode.model.Model`, which has them, for what each is.
    """

    tolerates: ClassVar[tuple[str, ...]]
    partial: ClassVar[bool]
    scale: ClassVar[Literal["counts", "log1p CP10k"]]
    inverts: ClassVar[bool]
    comparable: ClassVar[bool]

    @property
    def key(self) -> str:
        """Name in the registry, in slots and on the command line."""
        ...

    def alone(self) -> Any:
        """Return the same options for one fit, without members."""
        ...

    def build(self, spec: Spec) -> Module:
        """Return the untrained tensors for data of this form."""
        ...

    def reads(self, verb: str) -> tuple[str, ...]:
        """Return the roles that `verb` reads."""
        ...
