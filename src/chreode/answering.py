"""What the verbs share: cells read and streamed, conditions encoded, results told where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from .align import condition_code, open_query
from .collect import refuse_what_cannot_be_kept
from .data.batch import CellBatch
from .data.source import Source
from .errors import CapabilityError, ConfigError, SchemaError, near, warn
from .horizon import plain, refuse_far
from .learn.phase import bar
from .module import capabilities
from .nn.attributes import attribute_names
from .read import Data
from .remember import WEIGHT
from .schema import MATRIX_ROLES, NUMBER_ROLES, Schema

if TYPE_CHECKING:
    from .fitted import Fitted

Conditions = Mapping[str, Any]


#: Questions whose names are no verbs.
_NOUNS = ("posterior", "loadings", "trajectory")


def require(self: Fitted, verb: str) -> None:
    """Refuse a question that the model cannot answer."""
    if verb not in capabilities(self.module):
        lacks = f"has no {verb}" if verb in _NOUNS else f"cannot {verb}"
        raise CapabilityError(
            f"{type(self.model).__name__} {lacks}; it can answer {', '.join(self.verbs)}."
        )


def _drawn(self: Fitted) -> dict[str, str]:
    """Return the roles that new cells have, and what their modalities are called."""
    roles = self.module.drawn or tuple(self.spec.features)[:1]
    places = dict(self.schema.places())
    names = [places[role].modality or role for role in roles]
    return dict(zip(roles, roles if len({*names}) < len(names) else names, strict=True))


def room(self: Fitted, n: int, into: str | Path | None) -> None:
    """Refuse new cells that have no place to go."""
    drawn = _drawn(self)
    width = sum(self.spec.n_features(role) for role in drawn)
    refuse_what_cannot_be_kept(n, width, into, ".h5mu" if len(drawn) > 1 else ".h5ad")


def blocks(self: Fitted, drawn: Tensor | Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return what a module drew, by the names that its modalities have in new data."""
    names = _drawn(self)
    values = {next(iter(names)): drawn} if isinstance(drawn, Tensor) else drawn
    return {name: values[role].numpy() for role, name in names.items()}


def features(self: Fitted) -> dict[str, tuple[str, ...]]:
    """Return the features of new cells, by modality."""
    return {name: self.spec.features[role] for role, name in _drawn(self).items()}


def guidance_options(self: Fitted, guidance: float | Mapping[str, float]) -> dict[str, Any]:
    """Check the weights, and return what to tell a module that has guidance."""
    if isinstance(guidance, Mapping):
        guidance = as_mapping(self, guidance)
    weights = guidance if isinstance(guidance, Mapping) else {"guidance": guidance}
    for name, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not (number and np.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"guidance: {name}={weight!r}: expected a finite number of at least 0."
            )
    if getattr(self.module, "guided", False):
        names = [*chain.from_iterable(attribute_names(self.spec))]
        for name in weights if isinstance(guidance, Mapping) else ():
            if name not in names:
                raise ConfigError(f"guidance: there is no attribute {name!r}.{near(name, names)}")
        return {"guidance": guidance}
    if guidance != 1.0:
        raise CapabilityError(f"{self.model.key} has no guidance; leave it at 1.")
    return {}


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is not whole, or too small."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}.")


def open_cells(
    self: Fitted,
    verb: str,
    data: Data,
    schema: Schema | None,
    progress: bool | None,  # noqa: FBT001 (tri-state)
    to: Conditions | str | None = None,
) -> tuple[Source, np.ndarray]:
    """Return the aligned cells and the rows that have the modalities the verb reads.

    A condition that `to` replaces is not read, unless the model looks at it first: so cells of a
    batch that was never seen can be decoded as cells of a known one.
    """
    require(self, verb)
    schema = schema or self.schema
    looks = verb if self.model.inverts and verb != "reconstruct" else "embed"
    replaced = set(as_mapping(self, to)) - set(self.model.reads(looks))
    roles = [r for r in self.model.reads(verb) if r in self.spec.roles and r not in replaced]
    _refuse_unnamed(self, schema, roles)
    source = open_query(data, schema, self.spec, roles, self.feature_weight(), progress=progress)
    self.model.refuse_missing(source)
    measured = [source.measured(role) for role in source.matrices]
    enough = np.logical_or if self.model.partial else np.logical_and
    return source, np.flatnonzero(enough.reduce(measured))


def _refuse_unnamed(self: Fitted, schema: Schema, roles: Collection[str]) -> None:
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
        said = (
            f"This {self.model.key} was fitted on {full.replace('/', ' ')}, and this schema does not say "
            f"where that is. In the fit it was Schema({role}={getattr(self.schema, role)!r})."
        )
        if role in MATRIX_ROLES and len(self.spec.features) > 1:
            said += (
                f" What none of these cells has cannot be filled in: cells without {role} stand beside cells "
                "that have it, in one MuData. For cells of one kind alone, fit a model on that kind."
            )
        raise SchemaError(said)


def stream(
    source: Source,
    rows: np.ndarray,
    what: str,
    progress: bool | None,  # noqa: FBT001 (tri-state)
) -> Iterator[tuple[np.ndarray, CellBatch]]:
    """Yield cells in chunks of bounded size, with their positions."""
    with bar(len(rows), what, progress) as shown:
        for batch in source.batches(rows):
            yield batch.rows.numpy(), batch
            shown.update(len(batch))


def ask(capability: Callable[..., Any], *about: Any, noise: Any = None, **options: Any) -> Any:
    """Return what the module answers, without gradients, under a stream of noise.

    Both end with the call: a verb that hands out its results one by one may be left in the middle of
    them, and what follows elsewhere must not find torch changed.
    """
    with torch.inference_mode(), noise or nullcontext():
        return capability(*about, **options)


def as_mapping(self: Fitted, to: Conditions | str | None) -> dict[str, Any]:
    """Return conditions by the model's names, or those of obs columns; a bare string is a perturbation."""
    given = {"perturbation": to} if isinstance(to, str) else (to or {})
    found = {condition_named(self, name): value for name, value in given.items()}
    if len(found) < len(given):
        raise ConfigError(
            f"Of {', '.join(map(repr, given))}, two name the same condition: give one."
        )
    return found


def condition_named(self: Fitted, name: str) -> str:
    """Return the condition that is told by a name: its own, or that of its obs column if one has it.

    Raises
    ------
    SchemaError
        If the model was not fitted with any of that name.
    """
    told = self.spec.conditions
    if "trajectory" in self.verbs:  # any state goes its way, whose it is; and it may lack genes
        told = [*(condition for condition in told if condition != "trajectory"), "knockout"]
    known = {condition: self.column(condition) for condition in told}
    if name in known:
        return name
    fit = [condition for condition, column in known.items() if column == name]
    if len(fit) == 1:
        return fit[0]
    said = [k if k == column else f"{k} ({column})" for k, column in known.items()]
    hint = near(name, dict.fromkeys([*known, *known.values()]), said)
    raise SchemaError(f"This model was not fitted with a condition {name!r}.{hint}")


def encode(self: Fitted, to: Conditions | str | None) -> list[tuple[str, int | None, Any]]:
    """Return the columns and codes of conditions, as modules see them."""
    found = []
    for key, value in as_mapping(self, to).items():
        name, position, code = _coded(self, key, value)
        if isinstance(code, float):
            code = float(self.spec.narrowed(key, np.array(code)))
        found.append((name, position, code))
    return found


def _coded(self: Fitted, key: str, value: Any) -> tuple[str, int | None, Any]:
    """Return column, position and code of a condition; a number far from any training cell is refused."""
    name, position, code = condition_code(self.spec, key, value)
    seen = self.statistics.get(name)
    # paths through time are compared where they are followed
    if seen is None or "trajectory" in self.verbs:
        return name, position, code
    seen = seen if position is None else seen[:, position]
    if key in self.spec.categories and code not in seen:
        warn(f"{key}={value!r}: no training cell is of it, so that nothing was learned of it.")
    if key in self.spec.numbers:
        seen = np.asarray(seen, np.float64)
        low, high = np.nanmin(seen), np.nanmax(seen)
        asked, first, last = plain(code, low, high)
        if low == high and not np.isclose(code, low):
            raise ConfigError(
                f"{key}={asked}, and all training cells have {key}={first}: nothing was learned of others."
            )
        beyond = max(low - code, code - high) / ((high - low) or 1.0)
        refuse_far(f"{key}={asked}, and training cells have {key} from {first} to {last}", beyond)
    return name, position, code


def under(batch: CellBatch, target: Iterable[tuple[str, int | None, Any]]) -> CellBatch:
    """Return the batch with the conditions of `target` in place of its own."""
    target = list(target)
    if not target:
        return batch
    columns: dict[str, Tensor] = {}
    for name, position, code in target:
        if position is None:
            columns[name] = torch.tensor(code).expand(len(batch), *np.shape(code))
        else:
            values = columns.get(name, batch.columns[name]).clone()
            values[:, position] = code
            columns[name] = values
    return batch.with_columns(**columns)


def draw_conditions(
    self: Fitted, n: int, given: Conditions | None, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the conditions of n cells: what is given, and the rest as training cells have it.

    They are codes, and numbers in the user's units, drawn from the cells that agree with most of the
    categories given.
    """
    pool = {name: values for name, values in self.statistics.items() if name != WEIGHT}
    weight = self.statistics.get(WEIGHT, np.zeros(0))
    drawn = np.zeros(n, int)
    groups = [
        ([_coded(self, *item) for item in told.items()], rows)
        for told, rows in _alike(n, as_mapping(self, given))
    ]
    for codes, rows in groups:
        agreeing = np.zeros(len(weight), int)
        for name, position, code in codes:
            if isinstance(code, int):  # numbers hardly ever agree
                values = pool[name] if position is None else pool[name][:, position]
                agreeing += values == code
        candidates = np.flatnonzero(agreeing == agreeing.max(initial=0))
        if len(candidates):
            share = weight[candidates] / weight[candidates].sum()
            drawn[rows] = generator.choice(candidates, len(rows), p=share)
    columns = {name: values[drawn] for name, values in pool.items()}
    for codes, rows in groups:
        for name, position, code in codes:
            (columns[name] if position is None else columns[name][:, position])[rows] = code
    return columns


def _alike(n: int, given: Conditions) -> Iterator[tuple[Conditions, Int[np.ndarray, " rows"]]]:
    """Yield the cells that are given the same, with what that is: values are one for all, or one each."""
    each = {k: v for k, v in given.items() if not isinstance(v, str) and np.ndim(v) == 1}
    for name, values in each.items():
        if len(values) != n:
            raise ConfigError(f"given: {name} has {len(values)} values for {n} cells.")
    if not each:
        yield given, np.arange(n)
        return
    table = pd.DataFrame({k: np.asarray(v, dtype=object) for k, v in each.items()})
    for values, rows in table.groupby(list(each), sort=True, dropna=False).indices.items():
        told = dict(zip(each, values if isinstance(values, tuple) else (values,), strict=True))
        yield {**given, **told}, rows


def decode_conditions(self: Fitted, columns: Mapping[str, np.ndarray], n: int) -> pd.DataFrame:
    """Return the obs of new cells: their conditions, as users wrote them."""
    obs = pd.DataFrame(index=pd.Index([f"{self.model.key}_{i}" for i in range(n)], dtype=object))
    for name, values in columns.items():
        stacked = {"categorical": self.spec.categorical, "continuous": self.spec.continuous}.get(
            name
        )
        for i, key in enumerate(stacked if stacked is not None else [name]):
            code = values[:, i] if stacked is not None else values
            if key in self.spec.categories:
                obs[self.column(key)] = pd.Categorical.from_codes(
                    code, list(self.spec.categories[key])
                )
            elif name in ("continuous", *NUMBER_ROLES):
                obs[self.column(key)] = code
    return obs


def told(given: Conditions | None) -> dict[str, Any]:
    """Return what was given, short enough to be kept."""
    return {
        k: v if isinstance(v, str) or np.ndim(v) == 0 else "one for each cell"
        for k, v in (given or {}).items()
    }


def _record(self: Fitted, **more: Any) -> str:
    told = {k: self.provenance[k] for k in ("model", "version", "config", "spec", "seed")}
    # users give NumPy's numbers too, as the largest of a column
    return json.dumps({**told, **more}, sort_keys=True, default=lambda value: value.tolist())


def uns(self: Fitted, verb: str, **more: Any) -> dict[str, Any]:
    """Return the uns of new cells: where they come from, and their scale."""
    return {"chreode": {verb: _record(self, scale=self.scale, **more)}}


def refuse_slot(data: Data, key: str) -> None:
    """Refuse the name of a result that no file can hold, or where something else would be lost.

    In a file a name with a slash is a place within a group, and a MuData keeps in obsm, under the name of
    a modality, which cells have it.
    """
    if {"/", "\0"} & {*key} or not key.strip("."):
        raise ConfigError(
            f"{key!r} is no name of a slot: a file takes it for a path. Say X_scvi, or the like."
        )
    if key in getattr(data, "mod", {}):
        raise ConfigError(f"{key!r} is a modality of the data: choose another name for the result.")
    told = data.uns.get("chreode", {})
    if not isinstance(told, Mapping):
        raise ConfigError(
            f"uns['chreode'] holds a {type(told).__name__}; chreode keeps there where its results come from. "
            "Move it to another name."
        )


def write_provenance(self: Fitted, data: Data, key: str, **more: Any) -> None:
    """Say in `data` where the slot `key` comes from."""
    data.uns["chreode"] = {**data.uns.get("chreode", {}), key: _record(self, **more)}
