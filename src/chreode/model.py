"""A model: hyper-parameters, the roles it needs, how to build its tensors and how to learn them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from . import config
from .compute.convergence import worst
from .compute.device import choose_device
from .compute.processes import Group
from .compute.rng import Rng
from .compute.settings import settled
from .config.arguments import checked
from .data import read
from .data.align import learn_spec, match_features, open_source
from .data.check import MAY_LACK, any_nan, findings, require
from .data.read import Data
from .data.remember import joined, remember
from .data.source import Source
from .errors import CapabilityError, ConfigError, DataError, SchemaError, warn
from .fitted import Fitted
from .learn.exact import Exact
from .learn.fingerprint import fingerprint
from .learn.phase import Phase, Run, Split, join_histories, unfinished
from .losses import kernel
from .module import Module
from .schema import MATRIX_ROLES, Schema, Spec
from .version import __version__


class Model:
    """Base of every model: subclass it once, with `config` as decorator.

    Class attributes
    ----------------
    needs
        Roles that must be named; ``"expression|counts"`` means either.
    uses
        Roles that are read where they are named.
    tolerates
        Matrix roles in which NaN (not measured) is understood.
    partial
        Whether cells that lack a whole modality, or attributes, can be used.
    scale
        What the values that `reconstruct` and `predict` return are.
    extends
        Whether a fit that starts from another one (`from_`) can learn categories that are new to it.
    inverts
        Whether `predict` first asks what a cell was under its own conditions, which are then read.
    rescores
        Options that change of what `score` is the probability: fits that differ in one of them cannot be
        compared by it, nor go on from one another.
    """

    needs: ClassVar[tuple[str, ...]]
    uses: ClassVar[tuple[str, ...]] = ()
    tolerates: ClassVar[tuple[str, ...]] = ()
    partial: ClassVar[bool] = False
    scale: ClassVar[Literal["counts", "log1p CP10k"]] = "counts"
    inverts: ClassVar[bool] = False
    extends: ClassVar[bool] = True
    rescores: ClassVar[tuple[str, ...]] = ()

    def build(self, spec: Spec) -> Module:
        """Return the untrained tensors for data of this form."""
        raise NotImplementedError

    def phases(self) -> list[Phase]:
        """Return the stages of a fit."""
        raise NotImplementedError

    def reads(self, verb: str) -> tuple[str, ...]:  # noqa: ARG002 (subclasses read it)
        """Return the roles that `verb` reads (by default all that the model knows)."""
        return (*(r for need in self.needs for r in need.split("|")), *self.uses)

    @property
    def key(self) -> str:
        """Name in the registry, in slots and on the command line."""
        return type(self).__name__.lower()

    @settled()
    @checked
    def fit(
        self,
        data: Data | str | Path,
        schema: Schema,
        *,
        seed: int = 0,
        rows: Any = None,
        from_: Fitted | None = None,
        validation: Any = 0.1,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,  # noqa: A002 (torch's word)
        checkpoint: str | Path | None = None,
        progress: bool | None = None,
        distributed: bool = False,
    ) -> Fitted:
        """Learn from data.

        Parameters
        ----------
        data
            AnnData, MuData, what `chreode.open` returned, or a path. It is not changed.
        schema
            Where each role lives. Every role named is checked, used or not.
        seed
            Same seed, same bits, on one machine, thread count and precision.
        rows
            Cells to learn from: mask, positions or names (default: all).
        from_
            A fit of a model of the same form, and of the same roles, to start from. If `data` has
            categories it never saw, only their parameters are learned (query mapping: what it said of
            the old cells stays true); otherwise training goes on from its weights.
        validation
            Share of `rows` to hold out, or these rows themselves (None or 0: none are).
        device
            ``"auto"`` takes CUDA, then MPS, then the CPU.
        precision
            ``"bf16"`` for autocast; pays on GPUs and large minibatches.
        compile
            Use `torch.compile`; pays on long fits (half a minute to start).
        checkpoint
            Folder to write the state to after every epoch, and to resume from, bit for bit.
        progress
            Show progress bars (default: on a terminal).
        distributed
            Share every minibatch with the other processes that ``torchrun`` started. All of them
            call this with the same arguments and get the same fit; let the first one save it.

        Raises
        ------
        SchemaError, DataError
            Before any compute, if a role is absent or its values are wrong.
        FitError
            If learning meets a non-finite value.
        """
        group = Group.join() if distributed else Group()
        progress = progress if group.rank == 0 else False
        data = read.read(data)
        positions = read.positions(data, rows)
        validation = named_cells(data, positions, validation, "validation")
        require(findings(data, schema, positions, progress=progress))
        roles = self._roles(schema)
        if from_ is not None:
            self._refuse_to_start_from(from_, roles)
        positions = self._complete(data, schema, roles, positions)
        if isinstance(validation, np.ndarray) and not np.isin(validation, positions).any():
            raise DataError(
                f"validation: none of the {len(validation):,} cells named has what {self.key} reads. "
                "Name cells that were measured for it, or give a share."
            )
        spec = learn_spec(data, schema, roles, positions, from_.spec if from_ else None)
        if from_ is not None:
            _refuse_other_covariates(spec, from_.spec)
        take = match_features(data, schema, spec, roles, from_.feature_weight() if from_ else None)
        mapping = from_ is not None and spec.blocks != from_.spec.blocks
        if from_ is not None and not mapping:
            _refuse_lacking(take)
        source = open_source(data, schema, spec, roles, take, positions)
        self.refuse_missing(source)
        rng = Rng(int(seed))
        validates = any(p.learner.validates for p in self.phases())
        split = self.split(source, positions, validation if validates else 0.0, rng)
        run = Run(
            rng=rng, device=choose_device(device, double=not validates), precision=precision, compile=compile,
            progress=progress, checkpoint=Path(checkpoint) if checkpoint else None, group=group,
            mapping=mapping,
        )  # fmt: skip
        kernel.count_anew()
        module, traces = self._learn(spec, source, split, run, from_)
        return Fitted(
            model=self,
            schema=schema,
            spec=spec,
            module=module.to("cpu").eval(),
            history=join_histories(traces, [p.name for p in self.phases()]),
            statistics=self._remembered(source, split, rng, from_),
            provenance={
                "model": self.key, "version": __version__, "code": code_hash(),
                "config": config.as_dict(self), "spec": spec.hash, "seed": int(seed),
                "cells": len(split.train), "validation_cells": len(split.validation),
                "torch": torch.__version__, "device": run.device, "precision": precision,
                "threads": torch.get_num_threads(), "kernel": kernel.used(),
                "state": worst(t.state for t in traces),
                "notes": [
                    *self.remarks(source, split),
                    *(note for t in traces for note in t.notes), *unfinished(self.phases(), traces, self),
                ],
            },
        )  # fmt: skip

    def remarks(self, source: Source, split: Split) -> list[str]:
        """Return what a user should know of what a fit learns from these cells."""
        spec, found = source.spec, []
        for name, names in spec.categories.items():
            codes = source.columns["categorical" if name in spec.categorical else name]
            codes = codes[:, spec.categorical.index(name)] if name in spec.categorical else codes
            alone = np.setdiff1d(codes[split.validation], codes[split.train])
            said = ", ".join(names[code] for code in alone if code >= 0)
            if said:
                found.append(
                    f"of {name} {said} all cells are held out, so that this fit learned nothing of it"
                )
                share = "Say validation=0, or name cells"  # a share was held out, by chance these
                other = "Hold out other cells, or a share" if split.named else share
                warn(f"{self.key}: {found[-1]}. {other}.")
        return found

    def split(
        self,
        source: Source,  # noqa: ARG002 (models of time read it)
        rows: np.ndarray,
        validation: float | np.ndarray,
        rng: Rng,
    ) -> Split:
        """Return `rows` to learn from, and a share of them, or those named, to validate on."""
        train, held_out = hold_out(rows, validation, rng.numpy("split"))
        return Split(train, held_out, named=not isinstance(validation, float))

    def _learn(
        self, spec: Spec, source: Source, split: Split, run: Run, from_: Fitted | None
    ) -> tuple[Module, list[Any]]:
        with run.rng.scope("init"):
            module = self.build(spec)
        learned = [p.requires_grad for p in module.parameters()]
        if from_ is not None:
            _start_from(self, module, from_, mapping=run.mapping)
        module.to(run.device)
        run.group.copy_from_first(module.state_dict().values())
        if run.checkpoint is not None:
            about = {"model": self.key, "options": config.as_dict(self), "spec": spec.hash}
            run = replace(run, fingerprint=fingerprint(about, module, source, split, run))
        traces = []
        for number, phase in enumerate(self.phases()):
            some = split.whole() if phase.whole else split
            seen = phase.view(module, source, some, run) if phase.view else source
            module.to("cpu")  # where cells are, and in double precision too
            with run.rng.scope("prepare", number), torch.no_grad():
                phase.target(module).prepare(seen, some.train, run.rng)
            module.to(run.device)
            traces.append(phase.learner.learn(module, phase, seen, some, run.for_phase(number)))
            if traces[-1].interrupted:
                # what follows begins from less than the whole: it keeps no state
                run = replace(run, checkpoint=None)
        for parameter, wish in zip(module.parameters(), learned, strict=True):
            parameter.requires_grad_(wish)
        return module, traces

    def _remembered(
        self, source: Source, split: Split, rng: Rng, from_: Fitted | None
    ) -> dict[str, np.ndarray]:
        """Return what `generate` draws from: training cells, and those that an earlier fit learned from."""
        fresh = remember(source, split.train, rng)
        if from_ is None:
            return fresh
        if source.spec.blocks != from_.spec.blocks:  # what was said of the old cells stays true
            return joined(from_.statistics, fresh)
        return joined(fresh, from_.statistics)

    def _roles(self, schema: Schema) -> list[str]:
        """Return the roles to read: all that are needed, and those that are used and named."""
        named = {role.partition("/")[0] for role, _ in schema.places()}
        roles = []
        for need in self.needs:
            options = need.split("|")
            there = [role for role in options if role in named]
            if not there:
                place = "layers/counts" if options[-1] in MATRIX_ROLES else "obs/COLUMN"
                raise SchemaError(
                    f"{type(self).__name__} needs {' or '.join(options)}; name its place, "
                    f"as in Schema({options[-1]}={place!r})."
                )
            roles.append(there[0])
        return [*roles, *(r for r in self.uses if r in named)]

    def _refuse_to_start_from(self, from_: Fitted, roles: Sequence[str]) -> None:
        """Refuse a fit whose weights are not those of this model on such data: it says what differs."""
        if from_.model.key != self.key:
            raise ConfigError(f"from_ is a fitted {from_.model.key}, this is {self.key}.")
        if all(isinstance(p.learner, Exact) for p in self.phases()):
            raise ConfigError(
                f"{self.key} is solved in closed form: there is nothing to start from."
            )
        there = {r.partition("/")[0] for r in from_.spec.roles}
        here = {r.partition("/")[0] for r in roles}
        for role in sorted(there ^ here):
            given, lacks = ("from_", "this fit") if role in there else ("this fit", "from_")
            raise ConfigError(
                f"{given} reads {role}, which {lacks} does not: a fit can only go on with the same roles."
            )
        with torch.device("meta"):  # without memory: what this model would be on the old data
            form = {name: t.shape for name, t in self.build(from_.spec).state_dict().items()}
        old, new = config.as_dict(from_.model), config.as_dict(self)
        means_other = any(old[k] != new[k] for k in self.rescores)
        if means_other or form != {k: t.shape for k, t in from_.module.state_dict().items()}:
            differ = [f"{k} ({old[k]!r} there, {new[k]!r} here)" for k in new if old[k] != new[k]]
            raise ConfigError(
                f"from_ is a {self.key} of another form. Options that differ: {', '.join(differ)}. "
                "Go on with from_.model, or fit anew."
            )

    def _complete(
        self, data: Data, schema: Schema, roles: list[str], rows: np.ndarray
    ) -> np.ndarray:
        """Drop the cells that lack a modality, for models that need every one."""
        if self.partial:
            return rows[read.measured(data, schema)[rows]]
        for role, place in schema.places():
            at = read.where(data, place) if role.partition("/")[0] in roles else None
            if at is not None and role.partition("/")[0] in MATRIX_ROLES:
                rows = rows[at[rows] >= 0]
        if len(rows) == 0:
            raise DataError("No cell has every modality that this model reads.")
        return rows

    def refuse_missing(self, source: Source) -> None:
        """Refuse entries that were not measured, unless the model understands them.

        Raises
        ------
        DataError
            If there are any.
        """
        for role, values in source.matrices.items():
            base = role.partition("/")[0]  # NaN in counts was refused before
            if base in MAY_LACK and base not in self.tolerates and any_nan(values):
                raise DataError(
                    f"{role} holds NaN (not measured), which {type(self).__name__} does not understand. "
                    "PPCA and FactorAnalysis do; or remove these cells or features."
                )


def named_cells(data: Data, rows: np.ndarray, what: Any, name: str) -> Any:
    """Return a share as it is, and the cells named in its place as positions: some of `rows`.

    Parameters
    ----------
    what
        A share (None: 0); or cells, as a mask, positions or names.
    name
        What the argument is called, for messages.

    Raises
    ------
    ConfigError
        If it is no share from 0 to below 1, or names no cells, all cells, or others than `rows`.
    """
    share = 0 if what is None else what
    if isinstance(share, (int, float, np.number)) and not isinstance(share, bool):
        if not 0 <= share < 1:
            raise ConfigError(f"{name}={share}: expected a share from 0 to below 1, or rows.")
        return float(share)
    found = read.positions(data, what, name)
    others = len(np.setdiff1d(found, rows))
    if others or not 0 < len(found) < len(rows):
        raise ConfigError(
            f"{name} names {len(found):,} cells, {others:,} of them not among the {len(rows):,} to use. "
            "Name some of those, or give a share."
        )
    return found


def hold_out(
    rows: np.ndarray, what: Any, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are left, and those held out: a share that is drawn, or positions."""
    if isinstance(what, float):
        shuffled, n = generator.permutation(rows), round(len(rows) * what)
        return np.sort(shuffled[n:]), np.sort(shuffled[:n])
    return np.setdiff1d(rows, what), np.intersect1d(rows, what)


def _refuse_lacking(take: Mapping[str, np.ndarray]) -> None:
    """Refuse to go on learning without features that are known: all else would move on without them."""
    for role, found in take.items():
        if lacking := int((found < 0).sum()):
            raise DataError(
                f"{role}: training cannot go on from a fit of {len(found):,} features with {lacking:,} of "
                "them missing. Give cells that have them all, or fit anew on those that are there. (Mapping "
                "cells of a new batch may lack some: nothing but the new batch is learned.)"
            )


def _refuse_other_covariates(spec: Spec, old: Spec) -> None:
    for kind in ("categorical", "continuous"):
        there, here = getattr(old, kind), getattr(spec, kind)
        if there != here:
            raise ConfigError(
                f"from_ has the {kind} covariates {', '.join(there)}; this fit has {', '.join(here)}. "
                "Name the same ones, in the same order."
            )


def _start_from(model: Model, module: Module, from_: Fitted, *, mapping: bool) -> None:
    """Copy the old parameters; in a mapping, those of new categories are beside them, and alone learn."""
    old = from_.module.state_dict()
    if mapping:
        fresh = {name for name, _ in module.named_parameters() if name not in old}
        if not (model.extends and fresh):
            raise CapabilityError(
                f"{model.key} cannot learn categories that are new to the fit it starts from: "
                "fit it on the old and the new cells together."
            )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in fresh)
    module.load_state_dict({**module.state_dict(), **old})
