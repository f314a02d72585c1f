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
from .compute.threads import pinned
from .config.arguments import checked
from .data.align import learn_spec
from .data.cells import Cells
from .data.holdout import hold_out
from .data.read import Data
from .data.remember import joined, remember
from .data.source import Source
from .data.training import Training, open_training, refuse_unlearned
from .errors import ConfigError, SchemaError, counted, warn
from .fitted import Fitted
from .learn.exact import Exact
from .learn.fingerprint import fingerprint
from .learn.phase import (
    Phase,
    Session,
    Split,
    Trace,
    join_histories,
    member_records,
    run_phases,
    unfinished,
)
from .learn.start import continue_from, start_part_from
from .losses import kernel
from .module import Module, capabilities
from .run import Run
from .schema import MATRIX_ROLES, Schema, Spec
from .verbs.state import FittedState
from .version import __version__, code_hash


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
    comparable
        Whether the objectives of two epochs can be compared (see `SGD`).
    sets
        Roles that are read as sets of names, as ``A+B``, in any combination.
    starts_from
        Keys of other models from whose fits a fit can start, each with the part of the module that is
        that model ("": the whole): its weights of the same name and shape are taken.
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
    comparable: ClassVar[bool] = True
    extends: ClassVar[bool] = True
    sets: ClassVar[tuple[str, ...]] = ()
    starts_from: ClassVar[Mapping[str, str]] = {}
    rescores: ClassVar[tuple[str, ...]] = ()

    def build(self, spec: Spec) -> Module:
        """Return the untrained tensors for data of this form."""
        raise NotImplementedError

    def phases(self) -> list[Phase]:
        """Return the stages of a fit."""
        raise NotImplementedError

    def alone(self) -> Model:
        """Return the same options for one fit, without members (see `learn.Ensemble`)."""
        return self

    def reads(self, verb: str) -> tuple[str, ...]:  # noqa: ARG002 (subclasses read it)
        """Return the roles that `verb` reads (by default all that the model knows)."""
        return (*(r for need in self.needs for r in need.split("|")), *self.uses)

    def verbs(self, cells: Cells, rows: np.ndarray) -> list[str]:
        """Return the questions that a fit of some cells could answer."""
        spec = learn_spec(cells, self.roles(cells.schema), rows, sets=self.sets)
        with torch.device("meta"):  # of which no tensor takes memory
            return capabilities(self.build(spec))

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
        from_: FittedState | None = None,
        validation: Any = 0.1,
        run: Run = Run(),
        **settings: Any,
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
            Cells to learn from: mask, positions, names, or a condition on columns of ``obs``, as
            ``'obs.cell_type != "nan"'`` (default: all).
        from_
            A fit of a model of the same form, and of the same roles, to start from. If `data` has
            categories it never saw, only their parameters are learned (query mapping: what it gave for
            the old cells stays true); otherwise training goes on from its weights. Some models start
            from a fit of another one too (`starts_from`): features, categories and units are then its
            own, all weights learn, and the notes of the fit say which were taken.
        validation
            Share of `rows` to hold out, or these rows themselves (None or 0: none are).
        run
            How to compute: device, precision, threads, checkpoint, progress, processes (see `Run`).
        settings
            Fields of `run`, one by one: ``fit(data, schema, device="cuda")``. Processes that ``torchrun``
            started (`distributed`) all call this with the same arguments and get the same fit; let the
            first one save it.

        Raises
        ------
        SchemaError, DataError
            Before any compute, if a role is absent or its values are wrong.
        FitError
            If learning meets a non-finite value.
        """
        run = run.with_(**settings)
        group = Group.join() if run.distributed else Group()
        if group.rank > 0:
            run = run.with_(progress=False)
        roles = self.roles(schema)
        if from_ is not None:
            self._refuse_to_start_from(from_, roles)
        with pinned(run.threads):
            cells = open_training(
                Cells.of(data, schema), roles, self, rows=rows, validation=validation,
                old=from_.spec if from_ else None, weight=from_.feature_weight() if from_ else None,
                same_model=from_ is None or from_.model.key == self.key, progress=run.progress,
            )  # fmt: skip
            return self._fit(cells, schema, int(seed), from_, run, group)

    def _fit(
        self,
        cells: Training,
        schema: Schema,
        seed: int,
        from_: FittedState | None,
        run: Run,
        group: Group,
    ) -> Fitted:
        source, rng, phases = cells.source, Rng(seed), self.phases()
        validates = any(phase.learner.validates for phase in phases)
        # rows that are named are never learned from; a share is for learners that look at it
        held_out = validates or not isinstance(cells.validation, float)
        split = self.split(source, cells.rows, cells.validation if held_out else 0.0, rng)
        if not cells.maps:  # then only other categories are learned
            refuse_unlearned(source, split.train, self, schema)
        session = Session(
            rng=rng, device=choose_device(run.device, double=not validates), precision=run.precision,
            compile=run.compile, progress=run.progress, group=group, mapping=cells.maps,
            checkpoint=Path(run.checkpoint) if run.checkpoint else None,
        )  # fmt: skip
        kernel.count_anew()
        module, traces, start_notes = self._learn(source, split, session, from_)
        learned = module.remarks()
        for note in learned:
            warn(f"{self.key}: {note}.")
        return Fitted(
            model=self,
            schema=schema,
            spec=source.spec,
            module=module.to("cpu").eval(),
            history=join_histories(traces, [phase.name for phase in phases]),
            statistics=self._remembered(source, split, rng, from_, maps=cells.maps),
            provenance={
                "model": self.key, "version": __version__, "code": code_hash(),
                "config": config.as_dict(self), "spec": source.spec.hash, "seed": seed,
                "cells": len(split.train), "validation_cells": len(split.validation),
                "torch": torch.__version__, "device": session.device, "precision": run.precision,
                "threads": torch.get_num_threads(), "kernel": kernel.used(),
                "state": worst(t.state for t in traces),
                "notes": [
                    *start_notes, *self.remarks(source, split), *learned,
                    *(note for t in traces for note in t.notes), *unfinished(phases, traces, self),
                ],
                **member_records(traces),
            },
        )  # fmt: skip

    def remarks(self, source: Source, split: Split) -> list[str]:
        """Return what a user should know of what a fit learns from these cells."""
        spec, found = source.spec, []
        for name, names in spec.categories.items():
            codes = source.columns["categorical" if name in spec.categorical else name]
            codes = codes[:, spec.categorical.index(name)] if name in spec.categorical else codes
            alone = np.setdiff1d(codes[split.validation], codes[split.train])
            unseen = ", ".join(names[code] for code in alone if code >= 0)
            if unseen:
                found.append(
                    f"of {name} {unseen} all cells are held out, so that this fit learned nothing of it"
                )
                share = "Set validation=0, or name cells"  # a share was held out, by chance these
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
        self, source: Source, split: Split, run: Session, from_: FittedState | None
    ) -> tuple[Module, list[Trace], list[str]]:
        """Return the module, what the learners report, and where it began if that was another model."""
        start_notes = []
        with run.rng.scope("init"):
            module = self.build(source.spec)
        learned = [p.requires_grad for p in module.parameters()]
        if from_ is not None and from_.model.key == self.key:
            continue_from(module, from_, mapping=run.mapping, extends=self.extends)
            cells = counted(from_.provenance["cells"], "cell")
            kept = ", of which all stays as it was: only new categories were learned"
            start_notes.append(f"it went on from a fit of {cells}{kept if run.mapping else ''}")
        elif from_ is not None:
            start_notes.append(start_part_from(module, self.starts_from[from_.model.key], from_))
        module.to(run.device)
        run.group.copy_from_first(module.state_dict().values())
        if run.checkpoint is not None:
            about = {"model": self.key, "options": config.as_dict(self), "spec": source.spec.hash}
            run = replace(run, fingerprint=fingerprint(about, module, source, split, run))
        traces = run_phases(module, self.phases(), source, split, run)
        for parameter, learns in zip(module.parameters(), learned, strict=True):
            parameter.requires_grad_(learns)
        return module, traces, start_notes

    def _remembered(
        self, source: Source, split: Split, rng: Rng, from_: FittedState | None, *, maps: bool
    ) -> dict[str, np.ndarray]:
        """Return what `generate` draws from: training cells, and those that an earlier fit learned from."""
        fresh = remember(source, split.train, rng)
        if from_ is None or from_.model.key != self.key:
            return fresh
        if maps:  # what the old fit gave for its cells stays true
            return joined(from_.statistics, fresh)
        return joined(fresh, from_.statistics)

    def roles(self, schema: Schema) -> list[str]:
        """Return the roles that a fit reads: all that are needed, and those that are used and named."""
        named = {role.partition("/")[0] for role, _ in schema.places()}
        roles = []
        for need in self.needs:
            options = need.split("|")
            found = [role for role in options if role in named]
            if not found:
                place = "layers/counts" if options[-1] in MATRIX_ROLES else "obs/COLUMN"
                raise SchemaError(
                    f"{type(self).__name__} needs {' or '.join(options)}; name its place, "
                    f"as in Schema({options[-1]}={place!r})."
                )
            roles.append(found[0])
        return [*roles, *(r for r in self.uses if r in named)]

    def _refuse_to_start_from(self, from_: FittedState, roles: Sequence[str]) -> None:
        """Refuse a fit whose weights are not those of this model on such data: it says what differs."""
        other = from_.model.key != self.key
        if other and from_.model.key not in self.starts_from:
            also = ", ".join(self.starts_from)
            raise ConfigError(
                f"from_ is a fitted {from_.model.key}, this is {self.key}"
                f"{f', which starts from fits of its own and of {also}' if also else ''}."
            )
        if all(isinstance(p.learner, Exact) for p in self.phases()):
            raise ConfigError(
                f"{self.key} is solved in closed form: there is nothing to start from."
            )
        old_roles = {r.partition("/")[0] for r in from_.spec.roles}
        new_roles = {r.partition("/")[0] for r in roles}
        for role in sorted(old_roles - new_roles if other else old_roles ^ new_roles):
            given, lacks = ("from_", "this fit") if role in old_roles else ("this fit", "from_")
            raise ConfigError(
                f"{given} reads {role}, which {lacks} does not: a fit can only go on with the same roles."
            )
        if other:
            return
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
