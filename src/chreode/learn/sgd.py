"""Stochastic gradients in plain torch: several players, EMA, early stopping, bit-exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import store
from ..compute.convergence import State, state_of
from ..compute.memory import keep_freed_memory
from ..compute.progress import bar
from ..data.sampler import Sampler
from ..data.source import Source
from ..errors import (
    BlowUpError,
    ConfigError,
    DataError,
    FitError,
    StoreError,
    counted,
    listed,
    warn,
)
from ..losses import kernel
from ..module import Loss, Module, Step
from ..nn.blocks import share_statistics
from .average import EVERY, Average
from .epoch import EpochMean, diagnosis
from .fingerprint import differing
from .phase import Phase, Session, Split, Trace
from .players import Players

#: Cells that a fit by minibatches needs at the least: batch norm and a split must make sense.
MIN_CELLS = 10
#: Share of the first learning rate at which steps move little.
_SMALL = 0.05


def default_epochs(n_cells: int) -> int:
    """Return 400 up to 20,000 cells and, above, as many as show 8 million cells (at least one)."""
    return max(1, min(400, round(8e6 / n_cells)))


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Minimise ``module.loss`` by Adam on minibatches.

    Attributes
    ----------
    lr
        Learning rate at the start.
    max_epochs
        Passes over the training rows, or what returns them from the number of rows (None:
        `default_epochs`).
    weight_decay
        L2 penalty of Adam, or what returns it from the number of rows; decoupled (AdamW) where
        `decoupled`.
    eps
        Adam's denominator term.
    schedule
        Constant, cosine from `lr` to 0 over the run, or step: a tenth of it after every 10 epochs.
    clip
        Largest norm of a player's gradient (None: free).
    ema
        Decay, per step, of an average of the weights, which is then what is validated and kept
        (None: off). Early on it decays faster: it holds about the last tenth of the run so far.
    patience
        Epochs without a better objective before stopping (None: run to the end).
    keep
        Which weights are left where the fit stopped early or had overfitted (see `state_of`): those of its
        best epoch, or its last. Elsewhere they are the last.
    settle
        Share of the run in which the objective still changes, as in a warm-up of one of its terms. Early
        stopping does not act before, and no epoch from before is the best: its weights minimise something
        else. Held-out cells may be most probable where the KL term of an autoencoder has hardly begun, and
        there its cells are not where the prior draws new ones. Training objectives from before are
        compared with none.
    watch
        What of the history epochs are compared by, and early stopping goes by: the objective, or a term of
        the loss. The smallest is the best.
    span
        Shares of the whole fit at which it begins and ends, where it is one of several stages:
        `Step.progress` rises from one to the other.
    chooses
        Whether cells held out choose the weights, and can tell of overfitting. Not so where the objective
        is not all that is minimised (proximal steps), or cells held out choose later.
    comparable
        Whether the objective is the same function of the weights in every epoch. Not so where cells are
        compared with what moves as the model learns: a slow copy, a queue, or an output that is held still
        for a step. Then no epoch is the best, the last weights are left, the fit never stops early, and its
        objective tells nothing of how it stood (`moving target`).

    Notes
    -----
    An objective is compared with itself alone: that of held-out cells, in which every term has its final
    weight, or else that of training cells once `settle` is over.
    """

    validates: ClassVar[bool] = True
    lr: float
    max_epochs: int | Callable[[int], int] | None = None
    weight_decay: float | Callable[[int], float] = 0.0
    decoupled: bool = False
    eps: float = 1e-8
    schedule: Literal["constant", "cosine", "step"] = "constant"
    clip: float | None = None
    ema: float | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    settle: float = 0.0
    watch: str = "objective"
    span: tuple[float, float] = (0.0, 1.0)
    chooses: bool = True
    comparable: bool = True

    def learn(
        self, module: Module, phase: Phase, source: Source, split: Split, run: Session
    ) -> Trace:
        """Train ``phase.part`` in place. Ctrl-C keeps the best weights so far and says so.

        Raises
        ------
        DataError
            If there are too few cells.
        FitError
            At the first non-finite value, naming tensors and cells.
        """
        if len(split.train) < MIN_CELLS:
            raise DataError(
                f"Minibatches need {counted(MIN_CELLS, 'training cell')}; got {len(split.train)}. "
                "Give more cells; where states alone are asked for, PCA and PPCA take fewer."
            )
        assert phase.data is not None, "SGD needs a sampler"
        keep_freed_memory()
        loop = _Loop(self, module, phase.target(module), phase.data, source, split, run)
        loop.resume()
        share_statistics(module, among_processes=not run.group.alone)
        with bar(loop.epochs, phase.name, run.progress) as shown:
            shown.update(loop.epoch)
            try:
                while loop.epoch < loop.epochs and not loop.stopped:
                    row = loop.run_epoch()
                    objective = row.get("validation_objective", row["train_objective"])
                    shown.set_postfix_str(f"objective {objective:.2f}", refresh=False)
                    shown.update()
                    loop.save()
            except (KeyboardInterrupt, BlowUpError) as cause:
                if not loop.log or not run.group.alone:
                    raise
                why = "interrupted" if isinstance(cause, KeyboardInterrupt) else f"{cause} Stopped"
                loop.notes.append(
                    f"{why} in epoch {loop.epoch}; the weights of epoch {loop.best_epoch} are kept"
                )
                warn(f"{phase.name}: {loop.notes[-1]}.")
                loop.finish(keep_best=True)
            else:
                overfitted = loop.state() == "overfitted"
                passed = self.patience is not None or overfitted
                loop.finish(keep_best=passed and self.keep == "best")
                if overfitted:
                    loop.notes.append(
                        f"{phase.name} had its best objective after {loop.best_epoch + 1} of {loop.epoch} "
                        f"epochs, and the model has {'those' if self.keep == 'best' else 'the last'} weights"
                    )
                loop.tell_end(phase.name)
            finally:
                share_statistics(module, among_processes=False)
        return Trace(pd.DataFrame(loop.log), loop.state(), tuple(loop.notes))


@dataclass
class _Loop:
    """The moving parts of one fit; everything that a checkpoint must hold is here."""

    sgd: SGD
    root: Module
    target: Module
    sampler: Sampler
    source: Source
    split: Split
    run: Session
    epoch: int = 0
    index: int = 0
    best: float = math.inf
    best_epoch: int = -1
    stopped: bool = False
    log: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        n_batches = self.sampler.n_batches(self.source, self.split.train)
        n_rows = len(self.split.train)
        self.epochs = int(_for_so_many(self.sgd.max_epochs or default_epochs, n_rows))
        self.steps = self.epochs * n_batches
        held_out, generator = self.split.validation, self.run.rng.numpy("held out")
        self.held_out = (
            self.sampler.held_out(self.source, held_out, generator) if len(held_out) else []
        )
        decay = _for_so_many(self.sgd.weight_decay, n_rows)
        self.players = Players(self.target, self.sgd, decay, self.run.group)
        self.average = Average(self.target, self.sgd.ema)
        self.best_state = store.clone_state(self.target)
        self.forward = self.target
        if self.run.compile:
            self.forward = torch.compile(self.target)  # type: ignore[assignment]  # OptimizedModule

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, validate, and remember the best."""
        start = time.perf_counter()
        row: dict[str, float] = {"epoch": self.epoch, "lr": self._set_lr()}
        train = self._train()
        row |= train.result()
        if f"train_{self.sgd.watch}" not in row:
            known = ", ".join(name.removeprefix("train_") for name in train.sums)
            raise ConfigError(
                f"watch={self.sgd.watch!r}: the loss has no such term. It has {known}."
            )
        if len(self.split.validation):
            row |= self._validate().result()
        row["seconds"] = time.perf_counter() - start
        settled = self.epoch >= self.sgd.settle * self.epochs
        value = self._comparable(row) if settled else None
        if value is None or value < self.best or self.best_epoch < 0:
            self.best, self.best_epoch = math.inf if value is None else value, self.epoch
            with self.average.shown():
                self.best_state = store.clone_state(self.target)
        patience, over = self.sgd.patience, (self.epoch + 1) / self.epochs >= self.sgd.settle
        first = max(self.best_epoch, math.ceil(self.sgd.settle * self.epochs) - 1)
        self.stopped = patience is not None and over and self.epoch - first >= patience
        self.log.append(row)
        self.epoch += 1
        return row

    def finish(self, *, keep_best: bool) -> None:
        """Leave the final weights in the module."""
        final = self.best_state if keep_best else {**self.target.state_dict(), **self.average.state}
        self.target.load_state_dict(final)
        self.target.eval()

    def _comparable(self, row: Mapping[str, float]) -> float | None:
        """Return the objective by which epochs are compared; None if it is not, or not yet, the final one."""
        if not self.sgd.comparable:
            return None
        if f"validation_{self.sgd.watch}" in row:
            return row[f"validation_{self.sgd.watch}"]
        settled = row["epoch"] >= self.sgd.settle * self.epochs
        return row[f"train_{self.sgd.watch}"] if settled else None

    def state(self) -> State:
        """Return how the fit stood when it stopped."""
        if not self.stopped and self.epoch < self.epochs:  # after Ctrl-C
            return "still improving"
        if not self.sgd.comparable:
            return "moving target"
        known = [(row, v) for row in self.log if (v := self._comparable(row)) is not None]
        warm_up = sum(row["epoch"] < self.sgd.settle * self.epochs for row, _ in known)
        held_out = self.sgd.chooses and len(self.split.validation) > 0
        found = state_of([v for _, v in known], held_out=held_out, warm_up=warm_up)
        return "rested" if self.stopped and found == "still improving" else found

    def tell_end(self, stage: str) -> None:
        """Note what the state of a fit that ran to its end does not tell."""
        if not self.sgd.comparable and (terms := self.terms()):
            self.notes.append(f"at the end of {stage}: {terms}")
        # Steps of no length change nothing, so that every such fit comes to rest, wherever it is. Where
        # nothing is chosen by the objective (dynamics), rounds of fits tell whether one has.
        fell = self.log[-1]["lr"] < _SMALL * self.log[0]["lr"]
        if fell and self.sgd.chooses and not self.stopped and self.state() == "rested":
            self.notes.append(
                f"the learning rate of {stage} fell to {self.log[-1]['lr']:.2g}, and so its objective had to "
                "level off: only a fit of more epochs shows whether they would lower it"
            )

    def terms(self) -> str:
        """Return in words what the last epoch logged beside objectives."""
        part, cells = ("validation", "held out") if self.held_out else ("train", "learned from")
        logged = {n.partition("_"): value for n, value in self.log[-1].items()}
        told = [
            f"{name.replace('_', ' ')} {value:.3g}"
            for (of, _, name), value in logged.items()
            if of == part and not name.endswith("objective")
        ]
        return f"{listed(told)} (in minibatches of cells {cells})" if told else ""

    # one epoch

    def _set_lr(self) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * self.epoch / self.epochs))
        factors = {"constant": 1.0, "cosine": cosine, "step": 0.1 ** (self.epoch // 10)}
        return self.players.set_rate(factors[self.sgd.schedule])

    def _train(self) -> EpochMean:
        self.root.eval()
        self.target.train(not self.run.mapping)
        group, generator = self.run.group, self.run.rng.numpy("data", self.epoch)
        joint = list(self.sampler.batches(self.source, self.split.train, self.epoch, generator))
        if not group.alone and min(map(len, joint)) < 2 * group.size:
            raise ConfigError(
                f"A minibatch of {counted(min(map(len, joint)), 'cell')} is too small for "
                f"{counted(group.size, 'process')}: each needs two cells. Raise batch_size, or start fewer."
            )
        mine = self._minibatches(map(group.share, joint))
        mean = EpochMean("train", group)
        with self.run.rng.scope("noise"):
            for rows, batch in zip(joint, mine, strict=True):
                progress, n = self._progress(), _anchors(batch, rows)
                step = Step(self.run.rng, self.index, progress, self.players.rate, group)
                own = () if group.alone else (group.rank,)
                self.run.rng.seed_global("noise", self.index, *own)
                with self._autocast():
                    loss = self.forward(batch, step)
                objectives = self.players.gradients(loss.objectives, step, n / len(rows))
                # one that is not finite anywhere is not finite everywhere: all stop together
                if not bool(objectives.isfinite().all()):
                    raise self._failure(loss, batch)
                self.players.move(step)
                if not self.run.mapping:
                    outputs = {name: value.detach() for name, value in loss.outputs.items()}
                    self.target.after_step(replace(step, outputs=outputs) if outputs else step)
                mean.add(loss, n)
                self.index += 1
                if self.index % EVERY == 0:
                    self.average.update(self.index)
        self.average.update(self.index)
        if not all(bool(p.isfinite().all()) for p in self.target.parameters()):
            raise self._failure(loss, batch)
        return mean

    def _progress(self) -> float:
        begins, ends = self.sgd.span
        return begins + (ends - begins) * self.index / self.steps

    def _failure(self, loss: Loss, batch: Any) -> FitError:
        where = (
            f"{batch.extremes(self.source.obs_names)}. Nothing was written. Try a lower lr (now "
            f"{self.sgd.lr:g}), or remove extreme cells"
        )
        found = diagnosis(self.target, loss, where)
        return FitError(f"Learning stopped in epoch {self.epoch}, step {self.index}: {found}")

    def _validate(self) -> EpochMean:
        self.target.eval()
        group = self.run.group
        mean = EpochMean("validation", group)
        step = Step(self.run.rng, self.index, 1.0)
        mine = list(enumerate(self.held_out))[group.rank :: group.size]
        batches = self._minibatches(rows for _, rows in mine)
        with self.average.shown(), torch.no_grad():
            for (number, rows), batch in zip(mine, batches, strict=True):
                # the same noise in every epoch: differences are then the weights' own
                with self.run.rng.scope("validation", number), self._autocast():
                    mean.add(self.forward(batch, step), _anchors(batch, rows))
        return mean

    def _minibatches(self, drawn: Iterable[np.ndarray]) -> Iterator[Any]:
        """Read minibatches: of anchors with partners all anchors, then all first partners, and so on."""
        return self.source.minibatches((rows.T.ravel() for rows in drawn), self.run.device)

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.run.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.run.precision == "bf16")

    # resume

    def save(self) -> None:
        """Write the whole state, aside and renamed."""
        if self.run.checkpoint is None or self.run.group.rank > 0:
            return
        tensors = store.prefixed("root", self.root.state_dict())
        tensors |= store.prefixed("best", self.best_state) | store.prefixed(
            "average", self.average.state
        )
        tensors |= store.prefixed("optimiser", self.players.state())
        info = {
            "fingerprint": dict(self.run.fingerprint), "kernel": kernel.used(),
            "epoch": self.epoch, "index": self.index,
            "best": self.best, "best_epoch": self.best_epoch, "stopped": self.stopped,
            "log": self.log, "notes": self.notes,
        }  # fmt: skip
        with store.aside(self.run.checkpoint) as path:
            store.write_tensors(path, tensors, info)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of the same fit."""
        if self.run.checkpoint is None or not self.run.checkpoint.exists():
            return
        tensors, info = store.read_tensors(self.run.checkpoint)
        ours, theirs = self.run.fingerprint, info.get("fingerprint")
        if theirs != ours:
            differ = differing(ours, theirs if isinstance(theirs, dict) else {})
            raise StoreError(
                f"{self.run.checkpoint} belongs to another fit, with other {', '.join(differ)}. "
                "Remove it to begin anew, or name another checkpoint."
            )
        try:
            self._restore(tensors, info)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{self.run.checkpoint} holds no state of this fit ({type(error).__name__}: {error}). "
                "Remove it to begin anew."
            ) from error

    def _restore(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        self.root.load_state_dict(store.under("root", tensors))
        self.best_state = _like(self.best_state, store.under("best", tensors))
        self.average.state = _like(self.average.state, store.under("average", tensors))
        self.players.load(store.under("optimiser", tensors))
        for key in ("epoch", "index", "best", "best_epoch", "stopped", "log", "notes"):
            setattr(self, key, info[key])
        kernel.count_anew(served=bool(info["kernel"]) or bool(kernel.used()))
        self.average.index = self.index


def _for_so_many(value: float | Callable[[int], float], n_rows: int) -> float:
    return value(n_rows) if callable(value) else value


def _anchors(batch: Any, drawn: np.ndarray) -> int:
    """Return how many anchors a batch has: all of its cells, but for their partners."""
    return len(batch) // math.prod(drawn.shape[1:])


def _like(state: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        if read[name].shape != value.shape:
            raise ValueError(f"{name} has the shape {tuple(read[name].shape)}")
    return {name: read[name].to(value) for name, value in state.items()}
