"""``chreode check FILE``: what a file holds, what is wrong with it, and which models can read it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import counted, visible
from ..registry import find, keys
from ..schema import MATRIX_ROLES, Place, Schema
from .common import Answer, Json, Rows, narrows, with_roles
from .fit import chosen
from .spelling import as_flags, spoken, suggested

if TYPE_CHECKING:
    import pandas as pd

    from ..data.cells import Cells
    from ..data.look import Look
    from ..data.read import Data
    from ..model import Model

#: Names that columns and modalities of a role often have, the likeliest first. They are suggested,
#: never used.
_COLUMN_NAMES = {
    "batch": ("batch", "donor|patient|subject", "sample", "lane|library|plate|replicate",
              "(^|_)rep(_|$)", "dataset|tech"),
    "label": ("^cell[_ .]?type$", "cell[_ .]?type", "label|annot", "cluster|leiden|louvain|ident"),
    "perturbation": ("^perturbation", "perturb|guide|grna", "treatment|stim|condition|drug"),
    "time": ("time", "(^|_)(day|hour|stage)s?(_|$)"),
}  # fmt: skip
_MODALITY_NAMES = {
    "counts": "rna|gex|gene|expr",
    "protein": "adt|prot|antibod|cite",
    "accessibility": "atac|peak|access",
}
#: Columns that ask for a model which reads them, and what is suggested first of models that read as many.
_ASKED = ("time", "trajectory", "perturbation", "dose")
#: Letters of a name that a table shows.
_LONGEST = 80
_USUAL = ("scvi", "neuralode", "cfgen", "pca")
_CONTROL = r"(^|[^a-z])(ctrl|control|non[-_ ]?targeting|nt|dmso|mock|vehicle|unperturbed)([^a-z]|$)"


@with_roles
def check(
    file: Path,
    /,
    *,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    rows: Rows = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Show what a file holds, what is wrong with it, and which models can read it.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr.
    for_
        Look for this model alone.
    """
    from ..data.cells import Cells
    from ..data.check import SCALED_ROLES, Finding, findings

    wanted = [find(for_)] if for_ else [find(key) for key in keys()]
    schema = Schema.from_dict(roles)
    cells = Cells.of(file, schema)
    data = cells.data
    looks: dict[str, Any] = {}
    summed = {str(place) for role, place in schema.places() if role in SCALED_ROLES}
    matrices, columns = list(_matrices(cells, summed, looks)), list(_columns(data))
    # what was seen of the matrices is of all cells
    found = findings(cells, chosen(cells, rows), looks=looks if rows is None else {})
    feeds = [_fed(model, schema) for model in wanted] if roles or for_ else []
    if for_ and feeds[0]["missing"]:
        found.append(Finding("error", "schema", f"{for_} needs {feeds[0]['missing'][0]}."))
    failed = any(finding.level == "error" for finding in found)
    following = None if failed else _next(file, cells, feeds, matrices, columns, rows)
    pending = " that can use this file once the errors above are fixed" if failed else ""
    text = "\n".join(
        [
            f"{file}: {_sizes(data)}",
            *_tables(matrices, columns),
            *(["", "Findings", *_shown(found)] if found or roles else []),
            *(["", f"Models{pending}", *_shown_feeds(feeds)] if feeds else []),
            *(["", "Next", f"  {visible(following)}"] if following else []),
        ]
    )
    report = {
        "file": str(file), "cells": data.n_obs, "matrices": matrices, "columns": columns,
        "findings": [asdict(f) | {"text": spoken(f.text)} for f in found],
        "models": feeds, "suggested": following,
    }  # fmt: skip
    return Answer(text, report, json, code=int(failed))


# what the file holds


def _parts(data: Data) -> Iterator[tuple[str, Any]]:
    """Yield (prefix of its places, object) of the data and of each modality."""
    yield "", data
    for name, part in getattr(data, "mod", {}).items():
        yield f"{name}:", part


def _sizes(data: Data) -> str:
    parts = [
        f"{counted(part.n_obs, 'cell')} x {counted(part.n_vars, 'feature')}"
        for _, part in _parts(data)
    ]
    if len(parts) == 1:
        return parts[0] + (
            f", such as {', '.join(map(_short, data.var_names[:3]))}" if data.n_vars else ""
        )
    inside = "; ".join(f"{visible(n)} {s}" for n, s in zip(data.mod, parts[1:], strict=True))
    return f"{counted(data.n_obs, 'cell')} in {counted(len(data.mod), 'modality')} ({inside})"


def _matrices(
    cells: Cells, summed: Collection[str], looks: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what stands in every slot that a matrix role can name; put what was seen into `looks`.

    Of those at the places `summed`, sums of cells are looked at too.
    """
    import numpy as np

    from ..data.disk import is_sparse
    from ..data.look import look
    from ..errors import ChreodeError

    data = cells.data
    for prefix, part in _parts(data):
        whole = bool(getattr(data, "mod", {})) and not prefix
        slots = [] if whole or part.X is None else ["X"]
        slots += [] if whole or part.raw is None else ["raw"]
        slots += [] if whole else [f"layers/{name}" for name in part.layers]
        # a MuData keeps which cells a modality has in obsm, under the modality's name
        slots += [f"obsm/{name}" for name in part.obsm if not (whole and name in data.mod)]
        for slot in slots:
            place = str(Place.parse(prefix + slot))
            row = {"place": place, "shape": [], "dtype": "", "sparse": False, "counts": False}
            try:
                values = cells.matrix_at(Place.parse(place)).matrix
                row |= {"shape": list(values.shape), "dtype": str(values.dtype)}
                row |= {"sparse": is_sparse(values), "holds": f"{values.dtype}, no numbers"}
                if not values.shape[1]:
                    row["holds"] = "no features"
                elif values.dtype.kind in "fiub":
                    looks[place] = look(
                        values, np.arange(values.shape[0]), f"look at {place}",
                        sums=place in summed,
                    )  # fmt: skip
                    row["counts"], row["holds"] = _verdict(looks[place])
            except ChreodeError as error:  # one damaged slot does not hide the others
                row["holds"] = str(error)
            yield row
        for slot, why in getattr(part, "unreadable", {}).items():
            yield {"place": prefix + slot, "shape": [], "dtype": "", "sparse": False,
                   "counts": False, "holds": f"cannot be read ({why})"}  # fmt: skip


def _verdict(seen: Look) -> tuple[bool, str]:
    """Return whether all values look like raw counts, and what speaks for or against it."""
    span = f"{_figure(seen.low)} to {_figure(seen.high)}"
    odd = seen.lacking + seen.infinite
    span += f", {odd:,} NaN or infinite" if odd else ""
    if seen.broken:
        centred = "centred or scaled" if seen.low < 0 else "normalised or continuous"
        return False, f"no counts: not whole (such as {seen.example:.4g}), {centred}; {span}"
    if seen.low < 0:
        return False, f"no counts: negative values; {span}"
    if seen.high == 0:
        return False, f"zeros alone; {span}" if odd else "zeros alone"
    if seen.high <= 1:
        return not odd, f"0 and 1 alone: detected or not; {span}"
    return not odd, f"{'' if seen.scale else 'raw counts: '}whole numbers, {span}"


def _columns(data: Data) -> Iterator[dict[str, Any]]:
    from ..data.places import agree

    for prefix, part in _parts(data):
        for name in part.obs.columns:
            if prefix and name in data.obs and agree(data.obs[name], part.obs[name]):
                continue  # a copy of the whole's column
            yield {"place": f"{prefix}obs/{name}", **_column(str(name), part.obs[name])}


def _column(name: str, values: pd.Series) -> dict[str, Any]:
    text = values.astype(str)
    absent = values.isna() | (text == "")
    levels = list(map(str, text[~absent].unique()))
    if not levels:
        kind, holds = "empty", "no value at all"
    elif values.dtype.kind == "f" or (values.dtype.kind in "iu" and len(levels) > 20):
        low, high = _figure(float(values.min())), _figure(float(values.max()))
        kind, holds = "numbers", f"numbers, {low} to {high}"
    elif len(levels) > len(values) / 2:
        kind, holds = "names", f"{counted(len(levels), 'name')}, such as {_short(levels[0])}"
    else:
        kind = "categories"
        shown = ", ".join(map(_short, levels[:4])) + (", …" if len(levels) > 4 else "")
        one = f"{_short(levels[0])} alone"
        holds = f"{counted(len(levels), 'category')}: {shown}" if len(levels) > 1 else one
    control = next((level for level in levels if re.search(_CONTROL, level.lower())), None)
    fits = {"time": kind == "numbers", "perturbation": kind == "categories" and bool(control)}
    suits = [
        role
        for role in _COLUMN_NAMES
        if _rank(role, name) is not None
        and fits.get(role, kind == "categories" and len(levels) > 1)
    ]
    return {
        "kind": kind, "holds": holds, "lacking": int(absent.sum()), "suits": suits,
        "control": control if "perturbation" in suits else None,
    }  # fmt: skip


def _rank(role: str, name: str) -> int | None:
    """Return how likely a name is for a role: 0 is the likeliest, None is none of its names."""
    return next(
        (i for i, known in enumerate(_COLUMN_NAMES[role]) if re.search(known, name.lower())), None
    )


def _figure(number: float) -> str:
    whole = float(number).is_integer() and abs(number) < 1e16
    return f"{number:,.0f}" if whole else f"{number:,.4g}"


def _short(name: object) -> str:
    """Return a name as a table shows it: visible, and no longer than a line."""
    text = visible(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


# what it can feed, and what to type next


def _fed(model: type[Model], schema: Schema) -> dict[str, Any]:
    named = {role.partition("/")[0] for role, _ in schema.places()}
    missing = [need for need in model.needs if not named & set(need.split("|"))]
    return {
        "key": model.__name__.lower(),
        "missing": [need.replace("|", " or ") for need in missing],
        "reads": [r for r in (*"|".join(model.needs).split("|"), *model.uses) if r in named],
        "could_read": [role for role in model.uses if role not in named],
    }


def _next(
    file: Path,
    cells: Cells,
    feeds: list[dict[str, Any]],
    matrices: list[dict[str, Any]],
    columns: list[dict[str, Any]],
    rows: str | None,
) -> str | None:
    """Return the command line that comes next: name the roles, then fit."""
    schema = cells.schema
    named = schema.as_dict()
    if not named:
        roles = _candidates(matrices, columns)
        return suggested("check", file, *roles) if roles else None
    asked = _asked(cells)
    ready = [
        feed
        for feed in feeds
        if not feed["missing"] and ("time" in asked or "time" not in find(feed["key"]).needs)
    ]
    if not ready:
        return None

    def fit(feed: dict[str, Any]) -> tuple[int, int, int]:
        """Return how many of these roles a model reads, how many it is made for, and how usual it is."""
        key = feed["key"]
        made_for = len(asked & {*find(key).needs})
        return len(asked & {*feed["reads"]}), made_for, -(*_USUAL, key).index(key)

    best = max(ready, key=fit)
    model, place = best["key"], getattr(schema, next(r for r in best["reads"] if r in MATRIX_ROLES))
    width = next((m["shape"][1] for m in matrices if m["place"] == place and m["shape"]), 0)
    # most genes of a whole transcriptome carry no information and cost time; models of time follow each
    wide = width > 5000 and narrows(schema)
    fewer = {"n_genes": "100" if "time" in find(model).needs else "2000"} if wide else {}
    some = {} if rows is None else {"rows": rows}
    return suggested("fit", model, file, *as_flags(named | some | fewer), "-o", f"runs/{model}")


def _asked(cells: Cells) -> set[str]:
    """Return the roles named that some models alone read, where these have something to learn of them."""
    values_of = {role: cells.column(role) for role in cells.places if role in _ASKED}
    found = {role for role, values in values_of.items() if values.nunique() > 1}
    if "time" in found and "trajectory" in values_of:  # nothing moves in a trajectory of one time
        of_each = (
            values_of["time"].groupby(values_of["trajectory"].to_numpy(), observed=True).nunique()
        )
        found -= {"time"} if (of_each < 2).any() else set()
    return found | {role for role in ("protein", "accessibility") if getattr(cells.schema, role)}


def _candidates(matrices: list[dict[str, Any]], columns: list[dict[str, Any]]) -> list[str]:
    """Return flags for the places that look like a role."""
    roles = dict[str, str]()
    for role, names in _MODALITY_NAMES.items():
        fit = [m["place"] for m in matrices if m["counts"] and _modality_suits(m, role, names)]
        fit.sort(key=lambda place: not re.search(r"count|raw|umi", place))
        if fit:
            roles[role] = fit[0]
    flags = [word for role, place in roles.items() for word in (f"--{role}", place)]
    if not roles:
        views = [m["place"] for m in matrices if m["place"].endswith(":X")]
        flags = ["--views", *views] if views else _expression(matrices)
    for role in ("batch", "label", "perturbation"):
        fit = sorted(
            (c for c in columns if role in c["suits"] and ":" not in c["place"]),
            key=lambda c: (_rank(role, c["place"].removeprefix("obs/")), c["lacking"]),
        )
        if fit and fit[0]["place"] not in flags:
            flags += [f"--{role}", fit[0]["place"]]
            flags += as_flags({"control": fit[0]["control"]}) if role == "perturbation" else []
    return flags


def _modality_suits(matrix: dict[str, Any], role: str, names: str) -> bool:
    place = Place.parse(matrix["place"])
    if place.slot == "obsm":
        return role != "counts" and bool(re.search(names, place.key.lower()))
    return bool(re.search(names, place.modality.lower())) if place.modality else role == "counts"


def _expression(matrices: list[dict[str, Any]]) -> list[str]:
    places = [m["place"] for m in matrices if m["place"] == "X" and "no numbers" not in m["holds"]]
    return ["--expression", places[0]] if places else []


# what is shown


def _tables(matrices: list[dict[str, Any]], columns: list[dict[str, Any]]) -> Iterator[str]:
    wide = max((len(_short(row["place"])) for row in (*matrices, *columns)), default=0)
    yield "\nMatrices"
    for row in matrices:
        shape = " x ".join(f"{n:,}" for n in row["shape"])
        form = f"{'sparse' if row['sparse'] else 'dense'} {row['dtype']}" if row["dtype"] else ""
        yield f"  {_short(row['place']):<{wide}}  {shape:<20}{form:<16}{visible(row['holds'])}"
    if columns:
        yield "\nColumns"
    for row in columns:
        lacking = f"; none in {counted(row['lacking'], 'cell')}" if row["lacking"] else ""
        suits = f"  ({' or '.join(row['suits'])}?)" if row["suits"] else ""
        yield f"  {_short(row['place']):<{wide}}  {visible(row['holds'])}{lacking}{suits}"


def _shown(found: list[Any]) -> list[str]:
    order = {"error": 0, "warning": 1, "note": 2}
    lines = [
        f"  {f'{finding.level}:':<9}{visible(spoken(finding.text))}"
        for finding in sorted(found, key=lambda finding: order[finding.level])
    ]
    return lines or ["  none: every role is sound"]


def _shown_feeds(feeds: list[dict[str, Any]]) -> Iterator[str]:
    for feed in feeds:
        if feed["missing"]:
            text = f"needs {', '.join(feed['missing'])}"
        else:
            text = f"can be fitted, reads {', '.join(feed['reads'])}"
            text += (
                f"; could also read {', '.join(feed['could_read'])}" if feed["could_read"] else ""
            )
        yield f"  {feed['key']:<18}{text}"
