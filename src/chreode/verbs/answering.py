"""What the verbs share: cells read and streamed, conditions encoded, results with their provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..compute.device import choose_device
from ..compute.progress import bar
from ..compute.threads import pinned
from ..data.align import open_query, refuse_missing
from ..data.batch import CellBatch
from ..data.cells import Cells
from ..data.collect import refuse_what_cannot_be_kept
from ..data.read import Data
from ..data.source import Source
from ..errors import ConfigError, DataError, SchemaError, counted, warn
from ..run import Run
from ..schema import MATRIX_ROLES, Schema
from .conditions import Conditions, as_mapping, refuse_no_amount
from .state import FittedState


def modality_names(self: FittedState, roles: Collection[str]) -> dict[str, str]:
    """Return the names of matrix roles for a user: those of their modalities, where these differ."""
    places = dict(self.schema.places())
    names = [places[role].modality or role for role in roles]
    return dict(zip(roles, roles if len({*names}) < len(names) else names, strict=True))


def _drawn(self: FittedState) -> dict[str, str]:
    """Return the roles that new cells have, and the names of their modalities."""
    return modality_names(self, self.module.drawn or tuple(self.spec.features)[:1])


def check_output(self: FittedState, n: int, into: str | Path | None) -> None:
    """Refuse new cells that are too many for memory, or a file that cannot take them."""
    drawn = _drawn(self)
    width = sum(self.spec.n_features(role) for role in drawn)
    refuse_what_cannot_be_kept(n, width, into, ".h5mu" if len(drawn) > 1 else ".h5ad")


def blocks(self: FittedState, drawn: Tensor | Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return what a module drew, by the names that its modalities have in new data."""
    names = _drawn(self)
    values = {next(iter(names)): drawn} if isinstance(drawn, Tensor) else drawn
    return {name: values[role].numpy() for role, name in names.items()}


def features(self: FittedState, cells: Cells | None = None) -> dict[str, pd.DataFrame]:
    """Return the ``var`` of new cells by modality, with what `cells` have of it."""
    return {name: var_of(self, role, cells) for role, name in _drawn(self).items()}


def var_of(self: FittedState, role: str, cells: Cells | None = None) -> pd.DataFrame:
    """Return the ``var`` of a role's features, with what `cells` have of it."""
    names = self.spec.features[role]
    return (
        pd.DataFrame(index=pd.Index(list(names), dtype=object))
        if cells is None
        else cells.var(role, names)
    )


def settings_of(
    self: FittedState, verb: str, run: Run, settings: Mapping[str, Any]
) -> tuple[Run, dict[str, Any]]:
    """Return how to compute, and the options that the module has for a verb, checked.

    Keys of an option that is a mapping are conditions.
    """
    offered, own = self.module.verb_options(verb), dict(settings)
    asked = {name: own.pop(name, option.default) for name, option in offered.items()}
    options = {
        name: offered[name].check(as_mapping(self, value) if isinstance(value, Mapping) else value)
        for name, value in asked.items()
    }
    return run.with_(**own), options


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is not whole, or too small."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}.")


def open_cells(
    self: FittedState,
    verb: str,
    cells: Cells,
    run: Run,
    to: Conditions | str | None = None,
    *,
    hidden: Collection[str] = (),
) -> tuple[Source, np.ndarray]:
    """Return the aligned cells and the rows that have the modalities the verb reads.

    A condition that `to` replaces is not read, unless the model looks at it first: so cells of a
    batch that was never seen can be decoded as cells of a known one. Roles that are `hidden` are never
    read, such as the one that is asked for.

    Raises
    ------
    SchemaError, DataError
        If a role is absent, its values are wrong, or no cell has the modalities.
    ConfigError
        If `to` has no effect on cells, as it names a set and they have a dose of 0.
    """
    self.require(verb)
    looks = verb if self.model.inverts and verb != "reconstruct" else "embed"
    replaced = {*hidden, *(set(as_mapping(self, to)) - set(self.model.reads(looks)))}
    roles = [r for r in self.model.reads(verb) if r in self.spec.roles and r not in replaced]
    _refuse_unnamed(self, cells.schema, roles)
    source = open_query(cells, self.spec, roles, self.feature_weight(), progress=run.progress)
    measured = [source.measured(role) for role in source.matrices]
    enough = np.logical_or if self.model.partial else np.logical_and
    usable = np.flatnonzero(enough.reduce(measured))
    if not len(usable):
        raise DataError(f"No cell has every modality that this {self.model.key} reads.")
    refuse_missing(source, usable, self.model.tolerates, self.model.key)
    refuse_no_amount(self, source, usable, to)
    return source, usable


def tell_left_out(source: Source, usable: np.ndarray) -> None:
    """Warn of cells that the answer lacks, as nothing that the model reads was measured in them."""
    n = len(source) - len(usable)
    if n:
        warn(f"{counted(n, 'cell')} of {len(source):,} without what the model reads: left out.")


def _refuse_unnamed(self: FittedState, schema: Schema, roles: Collection[str]) -> None:
    """Refuse a schema that names no place of what a model reads.

    Attributes of cells may be unknown to a model that takes cells without a modality, all of a kind at once.
    """
    stacked = {"categorical": self.spec.categorical, "continuous": self.spec.continuous}
    wanted = [(r, f"{r}/{n}") for r in roles for n in stacked.get(r, ())]
    wanted += [(r, r) for r in roles if r not in stacked]
    places = {role for role, _ in schema.places()}
    named = {place.partition("/")[0] for place in places}
    for role, full in wanted:
        if full in places | named or (self.model.partial and role not in (*MATRIX_ROLES, *named)):
            continue
        text = (
            f"This {self.model.key} was fitted on {full.replace('/', ' ')}, and this schema does not say "
            f"where that is. In the fit it was Schema({role}={getattr(self.schema, role)!r})."
        )
        if role in MATRIX_ROLES and len(self.spec.features) > 1:
            text += (
                f" What none of these cells has cannot be filled in: cells without {role} stand beside cells "
                "that have it, in one MuData. For cells of one kind alone, fit a model on that kind."
            )
        raise SchemaError(text)


@contextmanager
def on_device(self: FittedState, run: Run) -> Iterator[tuple[Any, str]]:
    """Yield the module on the device to compute on, and that device, with as many threads as are wanted.

    The fitted model's own tensors stay on the CPU.
    """
    device = choose_device(run.device, double=True)
    with pinned(run.threads):
        yield (self.module if device == "cpu" else deepcopy(self.module).to(device)), device


def stream(
    source: Source, rows: np.ndarray, what: str, run: Run, device: str
) -> Iterator[tuple[np.ndarray, CellBatch]]:
    """Yield cells in chunks of bounded size, with their positions."""
    with bar(len(rows), what, run.progress) as shown:
        for batch in source.batches(rows, device):
            yield batch.rows.cpu().numpy(), batch
            shown.update(len(batch))


def evaluate(
    capability: Callable[..., Any], *arguments: Any, noise: Any = None, **options: Any
) -> Any:
    """Return what a method of the module gives, on the CPU, without gradients, under a stream of noise.

    Both end with the call: a verb that hands out its results one by one may be left in the middle of
    them, and what follows elsewhere must not find torch changed.
    """
    with torch.inference_mode(), noise or nullcontext():
        found = capability(*arguments, **options)
    if isinstance(found, Mapping):
        return {name: values.cpu() for name, values in found.items()}
    return found.cpu()


def _record(self: FittedState, **more: Any) -> str:
    record = {k: self.provenance[k] for k in ("model", "version", "config", "spec", "seed")}
    return json.dumps({**record, **more}, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """Return a value that JSON knows: users give NumPy's numbers too, as the largest of a column."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def uns(self: FittedState, verb: str, **more: Any) -> dict[str, Any]:
    """Return the uns of new cells: where they come from, and their scale."""
    return {"chreode": {verb: _record(self, **{"scale": self.scale, **more})}}


def refuse_slot(data: Data, key: str) -> None:
    """Refuse the name of a result that no file can hold, or where something else would be lost.

    In a file a name with a slash is a place within a group, and a MuData keeps in obsm, under the name of
    a modality, which cells have it.
    """
    if {"/", "\0"} & {*key} or not key.strip("."):
        raise ConfigError(
            f"{key!r} is no name of a slot: a file takes it for a path. Use X_scvi, or the like."
        )
    if key in getattr(data, "mod", {}):
        raise ConfigError(f"{key!r} is a modality of the data: choose another name for the result.")
    records = data.uns.get("chreode", {})
    if not isinstance(records, Mapping):
        raise ConfigError(
            f"uns['chreode'] holds a {type(records).__name__}; chreode keeps there where its results come "
            "from. Move it to another name."
        )


def write_provenance(self: FittedState, data: Data, key: str, **more: Any) -> None:
    """Store in `data` where the slot `key` comes from."""
    data.uns["chreode"] = {**data.uns.get("chreode", {}), key: _record(self, **more)}
