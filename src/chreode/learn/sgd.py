"""Stochastic gradients in plain torch: several players, EMA, early stopping, bit-exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from .. import store
from ..compute.convergence import State, state_of
from ..compute.memory import keep_freed_memory
from ..compute.processes import Group
from ..compute.progress import bar
from ..data.sampler import Sampler
from ..data.source import Source
from ..errors import BlowUpError, ConfigError, DataError, FitError, StoreError, warn
from ..losses import kernel
from ..module import Loss, Module, Step
from ..nn.blocks import share_statistics
from .phase import Phase, Session, Split, Trace

#: Cells that a fit by minibatches needs at the least: batch norm and a split must make sense.
MIN_CELLS = 10
#: Steps from one update of the average of the weights to the next, so that it costs next to nothing.
AVERAGE_EVERY = 10


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
        Constant, or cosine from `lr` to 0 over the run.
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
    chooses
        Whether cells held out choose the weights, and can tell of overfitting. Not so where the objective
        is not all that is minimised (proximal steps), or cells held out choose later.

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
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    ema: float | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    settle: float = 0.0
    chooses: bool = True

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
                f"{len(split.train)} training cells are fewer than the {MIN_CELLS} that minibatches "
                "need. Give more cells; where states alone are asked for, PCA and PPCA take fewer."
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
                passed = self.patience is not None or loop.state() == "overfitted"
                loop.finish(keep_best=passed and self.keep == "best")
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
    averaged: int = 0
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
        self.players = {
            name: [p for p in parameters if p.requires_grad]
            for name, parameters in self.target.players().items()
        }
        kind = torch.optim.AdamW if self.sgd.decoupled else torch.optim.Adam
        self.optimisers = {
            name: kind(
                parameters, lr=self.sgd.lr, eps=self.sgd.eps,
                weight_decay=_for_so_many(self.sgd.weight_decay, n_rows), fused=True,
            )
            for name, parameters in self.players.items()
        }  # fmt: skip
        self.average = store.clone_state(self.target) if self.sgd.ema else {}
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
        if len(self.split.validation):
            row |= self._validate(train.sums).result()
        row["seconds"] = time.perf_counter() - start
        settled = self.epoch >= self.sgd.settle * self.epochs
        value = self._comparable(row) if settled else None
        if value is None or value < self.best or self.best_epoch < 0:
            self.best, self.best_epoch = math.inf if value is None else value, self.epoch
            with self._averaged():
                self.best_state = store.clone_state(self.target)
        patience, over = self.sgd.patience, (self.epoch + 1) / self.epochs >= self.sgd.settle
        first = max(self.best_epoch, math.ceil(self.sgd.settle * self.epochs) - 1)
        self.stopped = patience is not None and over and self.epoch - first >= patience
        self.log.append(row)
        self.epoch += 1
        return row

    def finish(self, *, keep_best: bool) -> None:
        """Leave the final weights in the module."""
        final = self.best_state if keep_best else {**self.target.state_dict(), **self.average}
        self.target.load_state_dict(final)
        self.target.eval()

    def _comparable(self, row: Mapping[str, float]) -> float | None:
        """Return the objective by which epochs are compared; None while it is not yet the final one."""
        if "validation_objective" in row:
            return row["validation_objective"]
        return row["train_objective"] if row["epoch"] >= self.sgd.settle * self.epochs else None

    def state(self) -> State:
        """Return how the fit stood when it stopped."""
        if not self.stopped and self.epoch < self.epochs:  # after Ctrl-C
            return "still improving"
        known = [(row, v) for row in self.log if (v := self._comparable(row)) is not None]
        warm_up = sum(row["epoch"] < self.sgd.settle * self.epochs for row, _ in known)
        held_out = self.sgd.chooses and len(self.split.validation) > 0
        found = state_of([v for _, v in known], held_out=held_out, warm_up=warm_up)
        return "rested" if self.stopped and found == "still improving" else found

    # one epoch

    def _set_lr(self) -> float:
        share = self.epoch / self.epochs
        factor = 0.5 * (1 + math.cos(math.pi * share)) if self.sgd.schedule == "cosine" else 1.0
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self.sgd.lr * factor
        return self.sgd.lr * factor

    def _train(self) -> _Mean:
        self.root.eval()
        self.target.train(not self.run.mapping)
        group, generator = self.run.group, self.run.rng.numpy("data", self.epoch)
        joint = list(self.sampler.batches(self.source, self.split.train, self.epoch, generator))
        if not group.alone and min(map(len, joint)) < 2 * group.size:
            raise ConfigError(
                f"Minibatches of {min(map(len, joint))} cells are too few for {group.size} processes, "
                "which need two cells each. Raise batch_size, or start fewer."
            )
        mine = self.source.minibatches(map(group.share, joint), self.run.device)
        mean = _Mean("train", group)
        with self.run.rng.scope("noise"):
            for rows, batch in zip(joint, mine, strict=True):
                step = Step(self.run.rng, self.index, self.index / self.steps, self._rate)
                own = () if group.alone else (group.rank,)
                self.run.rng.seed_global("noise", self.index, *own)
                with self._autocast():
                    loss = self.forward(batch, step)
                self._move(loss, batch, len(batch) / len(rows))
                self.target.after_step(step)
                mean.add(loss, len(batch))
                self.index += 1
                if self.index % AVERAGE_EVERY == 0:
                    self._update_average()
        self._update_average()
        if not all(bool(p.isfinite().all()) for p in self.target.parameters()):
            raise FitError(_diagnosis(self, loss, batch))
        return mean

    def _move(self, loss: Loss, batch: Any, share: float) -> None:
        """Give every player the gradient of its own objective, then step them all.

        Objectives are means over the cells of this process, which are a `share` of the minibatch.
        """
        last = len(self.players) - 1
        for i, (name, parameters) in enumerate(self.players.items()):
            objective = loss.objectives[name]
            gradients = torch.autograd.grad(
                objective, parameters, None if share == 1 else objective.new_tensor(share),
                retain_graph=i < last, allow_unused=True,
            )  # fmt: skip
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = _laid_out_like(parameter, gradient)
        # an objective that is not finite anywhere is not finite everywhere: all stop together
        objectives = torch.stack([v.detach() for v in loss.objectives.values()])
        self._share(objectives)
        if not bool(objectives.isfinite().all()):
            raise FitError(_diagnosis(self, loss, batch))
        for name, parameters in self.players.items():
            if self.sgd.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.sgd.clip)
            self.optimisers[name].step()

    def _share(self, objectives: Tensor) -> None:
        """Add up gradients and objectives over the processes.

        What no cell of this process has to do with may be moved by those of another: all send a gradient
        of every parameter, and whether it is one.
        """
        if self.run.group.alone:
            return
        parameters = [p for of in self.players.values() for p in of]
        found = objectives.new_tensor([p.grad is not None for p in parameters])
        sent = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.run.group.add([*sent, found, objectives])
        for parameter, gradient, anywhere in zip(parameters, sent, found.tolist(), strict=True):
            parameter.grad = gradient if anywhere else None

    def _rate(self, parameter: nn.Parameter) -> Tensor:
        """Return what Adam multiplies the mean gradient of each entry by."""
        for optimiser in self.optimisers.values():
            if parameter in optimiser.state:
                group, state = optimiser.param_groups[0], optimiser.state[parameter]
                second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                rate: Tensor = group["lr"] / (second.sqrt() + group["eps"])
                return rate
        return torch.zeros_like(parameter)

    def _validate(self, names: Iterable[str]) -> _Mean:
        self.target.eval()
        group = self.run.group
        mean = _Mean("validation", group, names)  # a process may have no chunk to see
        step = Step(self.run.rng, self.index, 1.0)
        mine = list(enumerate(self.source.pieces(self.split.validation)))[group.rank :: group.size]
        batches = self.source.minibatches((rows for _, rows in mine), self.run.device)
        with self._averaged(), torch.no_grad():
            for (number, _), batch in zip(mine, batches, strict=True):
                # the same noise in every epoch: differences are then the weights' own
                with self.run.rng.scope("validation", number), self._autocast():
                    mean.add(self.forward(batch, step), len(batch))
        return mean

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.run.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.run.precision == "bf16")

    # the average of the weights

    def _update_average(self) -> None:
        """Move the average as far as an update at every step since the last one would, roughly."""
        if not self.sgd.ema:
            return
        decay = min(self.sgd.ema, (1 + self.index) / (10 + self.index))
        share = 1 - decay ** (self.index - self.averaged)
        self.averaged = self.index
        for name, value in self.target.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, share)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Look at the averaged weights, if there are any."""
        if not self.sgd.ema:
            yield
            return
        own = store.clone_state(self.target)
        self.target.load_state_dict(self.average)
        try:
            yield
        finally:
            self.target.load_state_dict(own)

    # resume

    def save(self) -> None:
        """Write the whole state, aside and renamed."""
        if self.run.checkpoint is None or self.run.group.rank > 0:
            return
        tensors = store.prefixed("root", self.root.state_dict())
        tensors |= store.prefixed("best", self.best_state) | store.prefixed("average", self.average)
        for name, optimiser in self.optimisers.items():
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= store.prefixed(f"optimiser/{name}/{i}", state)
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
            known = theirs if isinstance(theirs, dict) else {}
            differ = [p for p in {**ours, **known} if known.get(p) != ours.get(p)]
            raise StoreError(
                f"{self.run.checkpoint} belongs to another fit: {', '.join(differ)} differ. "
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
        self.average = _like(self.average, store.under("average", tensors))
        for name, optimiser in self.optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in store.under(f"optimiser/{name}", tensors).items():
                i, _, what = key.partition("/")
                state.setdefault(int(i), {})[what] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        for key in ("epoch", "index", "best", "best_epoch", "stopped", "log", "notes"):
            setattr(self, key, info[key])
        kernel.count_anew(served=bool(info["kernel"]) or bool(kernel.used()))
        self.averaged = self.index


def _for_so_many(value: float | Callable[[int], float], n_rows: int) -> float:
    return value(n_rows) if callable(value) else value


def _like(state: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        if read[name].shape != value.shape:
            raise ValueError(f"{name} has the shape {tuple(read[name].shape)}")
    return {name: read[name].to(value) for name, value in state.items()}


def _laid_out_like(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return the gradient in its parameter's memory layout: fused Adam takes that for granted."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class _Mean:
    """Means over the cells of an epoch, whichever process saw them."""

    def __init__(self, prefix: str, group: Group, names: Iterable[str] = ()) -> None:
        self.prefix, self.group, self.n = prefix, group, 0.0
        self.sums: dict[str, Any] = dict.fromkeys(names, 0.0)

    def add(self, loss: Loss, n: int) -> None:
        named = {
            f"{p}_objective" if p != "model" else "objective": v for p, v in loss.objectives.items()
        }
        for name, value in {**named, **loss.terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach() * n
        self.n += n

    def result(self) -> dict[str, float]:
        sums = {name: float(value) for name, value in self.sums.items()}
        if not self.group.alone:
            sums = self.group.add_numbers({**sums, "n": self.n})
            self.n = sums.pop("n")
        return {f"{self.prefix}_{name}": value / self.n for name, value in sums.items()}


def _diagnosis(loop: _Loop, loss: Loss, batch: Any) -> str:
    """Say what is not finite, and for which cells."""
    terms = [k for k, v in {**loss.objectives, **loss.terms}.items() if not bool(torch.isfinite(v))]
    tensors = [
        name
        for name, p in loop.target.named_parameters()
        if not bool(torch.isfinite(p).all())
        or (p.grad is not None and not bool(torch.isfinite(p.grad).all()))
    ]
    return (
        f"Learning stopped in epoch {loop.epoch}, step {loop.index}: "
        f"{', '.join(terms) or 'a gradient'} is not finite. "
        f"Tensors: {', '.join(tensors) or 'all parameters are still finite'}. "
        f"{batch.extremes(loop.source.obs_names)}. "
        f"Nothing was written. Try a lower lr (now {loop.sgd.lr:g}), or remove extreme cells."
    )
