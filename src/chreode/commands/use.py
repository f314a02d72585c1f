"""Commands for a fitted model, from ``embed`` and ``classify`` to ``predict`` and ``augment``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, SupportsIndex

from cyclopts import Parameter

import chreode as ch

from .. import store
from ..data.foreign import refuse_other_formats
from ..errors import CapabilityError, ConfigError, StoreError, counted
from .common import (
    RUN,
    Answer,
    Conditions,
    Device,
    Json,
    Output,
    Seed,
    Switch,
    Threads,
    Whole,
    load_model,
    require_output,
    with_roles,
)
from .spelling import suggested

if TYPE_CHECKING:
    import pandas as pd

    from ..fitted import Fitted


@with_roles
def embed(
    model: Path,
    file: Path,
    /,
    *,
    output: Output | None = None,
    in_place: Switch = False,
    key_added: Annotated[str | None, Parameter(group=RUN)] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Write the latent coordinates of cells into a copy of their file.

    Parameters
    ----------
    model
        Folder of a fitted model.
    file
        An .h5ad, .h5mu or .zarr, whose features are matched by name. Roles are read
        where the fit read them, unless you name other places.
    output
        File to write, in place of an older one [default: NAME.embedded.h5ad beside FILE, which
        must not be there yet].
    in_place
        Write to FILE itself.
    key_added
        Slot of obsm [default: X_MODEL].
    """
    import numpy as np

    from ..data.collect import copy_with
    from ..data.read import read

    target = _target(file, output, "embedded", in_place=in_place)
    fitted = load_model(model, threads)
    key = key_added or f"X_{fitted.model.key}"
    data = read(file)
    z = fitted.embed(data, key_added=key, schema=fitted.schema.with_(**roles), device=device)
    records = {key: data.uns["chreode"][key]}
    copy_with(file, data.obs_names, target, {"obsm": {key: z}}, records)
    return Answer(
        f"obsm[{key!r}] written to {target}: {counted(z.shape[0], 'cell')} x "
        f"{counted(z.shape[1], 'dimension')}{_left_out(np.isnan(z).all(1).sum())}",
        {"file": str(target), "key": key, "cells": z.shape[0], "n_latent": z.shape[1]},
        json,
    )


@with_roles
def classify(
    model: Path,
    file: Path,
    /,
    *,
    output: Output | None = None,
    in_place: Switch = False,
    method: str | None = None,
    unseen: float | None = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Write the most probable label of each cell into a copy of their file.

    Give cells that the model was not fitted on: one of its own cells is its own nearest neighbour.

    Parameters
    ----------
    model
        Folder of a fitted model.
    file
        An .h5ad, .h5mu or .zarr, whose features are matched by name. Roles are read
        where the fit read them, unless you name other places.
    output
        File to write, in place of an older one [default: NAME.classified.h5ad beside FILE, which
        must not be there yet].
    in_place
        Write to FILE itself.
    method
        Of self-supervised models: neighbours (the nearest training cells, calibrated, so that a rare type
        may lose to a common one against their majority), or linear (a linear probe) [default: neighbours].
    unseen
        Of self-supervised models: novelty above which a cell is labelled unseen, from 0 to 1
        [default: 0.95].
    """
    from ..data.collect import copy_with
    from ..data.read import read
    from ..verbs.labels import COLUMNS

    target = _target(file, output, "classified", in_place=in_place)
    fitted = load_model(model, threads)
    fitted.require("classify")
    options = _offered(fitted, "classify", method=method, unseen=unseen)
    data = read(file)
    table = fitted.classify(data, schema=fitted.schema.with_(**roles), device=device, **options)
    slots = [f"{fitted.model.key}_{what}" for what in COLUMNS if what in table]
    columns = {
        slots[0]: data.obs[slots[0]].array,
        **{slot: data.obs[slot].to_numpy() for slot in slots[1:]},
    }
    records = {slot: data.uns["chreode"][slot] for slot in slots}
    copy_with(file, data.obs_names, target, {"obs": columns}, records)
    found = table["label"].value_counts()
    found = found[found > 0]
    told = f"{', '.join(f'{n:,} {label}' for label, n in found.items())}"
    return Answer(
        f"{' and '.join(f'obs[{slot!r}]' for slot in slots)} written to {target}: {told}"
        f"{_left_out(table['label'].isna().sum())}{_unseen(fitted, table, options)}",
        {
            "file": str(target), "keys": slots, "cells": len(table),
            "labels": {str(label): int(n) for label, n in found.items()},
        },
        json,
    )  # fmt: skip


def _unseen(fitted: Fitted, table: pd.DataFrame, options: dict[str, Any]) -> str:
    """Say how many cells are called unseen, and what would call more of them so; "" where none can be."""
    if "novelty" not in table:
        return ""
    limit = options.get("unseen", fitted.verb_options("classify")["unseen"].default)
    n = int((~table["label"].isin([*fitted.spec.categories["label"], None])).sum())
    return (
        f"\n{counted(n, 'cell')} of {len(table):,} {'is' if n == 1 else 'are'} called unseen, at a novelty "
        f"above {limit:g}. A lower limit (--unseen) marks more cells, also of known types."
    )


def _left_out(n: SupportsIndex) -> str:
    """Say how many cells lack what the model reads; "" where none does."""
    return f"; {counted(n, 'cell')} without what the model reads: NaN" if n else ""


def _offered(fitted: Fitted, verb: str, **options: Any) -> dict[str, Any]:
    """Return the options that are given, and refuse those that the model does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in fitted.verb_options(verb):
            raise CapabilityError(f"{fitted.model.key} has no {name}; leave it out.")
    return given


def _target(file: Path, output: Path | None, done: str, *, in_place: bool) -> Path:
    if in_place and output is not None:
        raise ConfigError("--in-place writes to the file itself: leave --output out.")
    refuse_other_formats(file)
    if in_place:
        store.require_writable(file)
        return file
    target = output or file.with_suffix(f".{done}{file.suffix}")
    if output is None and os.path.lexists(target):  # of another model, maybe, or a link
        raise StoreError(f"{target} is there already. To replace it, name it: -o {target}")
    require_output(target, [file.suffix], file, "If it is to be overwritten, add --in-place.")
    return target


def generate(
    model: Path,
    /,
    *,
    n_cells: Annotated[Whole, Parameter(name=("--n-cells", "-n"))],
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    given: Conditions | None = None,
    guidance: float | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> Answer:
    """Draw new cells from a fitted model.

    Parameters
    ----------
    model
        Folder of a fitted model.
    n_cells
        Number of new cells.
    output
        The .h5ad file to write; an .h5mu from a model of several modalities.
    given
        A condition, by role, covariate or obs column: --given.batch p3 --given.label NK. Conditions that you
        leave out are drawn as they occur in the training cells.
    guidance
        Weight of the conditions, for models that have one. 1 is the model as trained.
    """
    from ..verbs.answering import at_least

    at_least("n", n_cells, 1)
    require_output(output, [".h5ad", ".h5mu"])
    fitted = load_model(model, threads)
    options = _offered(fitted, "generate", guidance=guidance)
    fitted.generate(n_cells, given=given, seed=seed, into=output, device=device, **options)
    under = ", ".join(f"{role} {value}" for role, value in (given or {}).items())
    return Answer(
        f"{counted(n_cells, 'cell')}{f' ({under})' if under else ''} written to {output}",
        {"file": str(output), "cells": n_cells, "given": given or {}, "seed": seed},
        json,
    )


@with_roles
def correct(
    model: Path,
    file: Path,
    /,
    *,
    to: Conditions,
    output: Output,
    latent: Switch = False,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Write cells as they would be measured under other conditions, such as one batch for all.

    Parameters
    ----------
    model
        Folder of a fitted model.
    file
        An .h5ad, .h5mu or .zarr, whose features are matched by name.
    to
        A condition, by role, covariate or obs column: --to.batch p3.
    output
        The file to write: an .h5ad (.h5mu of several modalities) of counts, or of expression where the
        model learned that; with --latent a copy of FILE with coordinates.
    latent
        Write latent coordinates under these conditions, and no counts or expression.
    """
    from ..data.collect import copy_with
    from ..data.read import read

    fitted = load_model(model, threads)
    if fitted.module.fills:
        raise CapabilityError(
            f"{fitted.model.key} has no conditions to change. What it fills in is written by: "
            f"{suggested('predict', model, file, '-o', output)}"
        )
    schema = fitted.schema.with_(**roles)
    conditions = ", ".join(f"{role} {value}" for role, value in to.items())
    if latent:
        refuse_other_formats(file)
        require_output(output, [file.suffix], file)
        data = read(file)
        key = f"X_{fitted.model.key}_to"
        z = fitted.embed(data, to=to, schema=schema, device=device)
        records = {key: data.uns["chreode"][key]}
        copy_with(file, data.obs_names, output, {"obsm": {key: z}}, records)
        written = (
            f"obsm[{key!r}], {counted(z.shape[0], 'cell')} x {counted(z.shape[1], 'dimension')},"
        )
    else:
        require_output(output, [".h5ad", ".h5mu"], file)
        fitted.predict(file, to=to, seed=seed, into=output, schema=schema, device=device)
        written = "counts" if fitted.model.scale == "counts" else "expression"
    return Answer(
        f"{written} as of {conditions} written to {output}", {"file": str(output), "to": to}, json
    )


@with_roles
def predict(
    model: Path,
    file: Path,
    /,
    *,
    output: Output,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Fill in a modality that was not measured, such as protein of cells with RNA alone.

    Parameters
    ----------
    model
        Folder of a fitted self-supervised model that has learned from protein and expression.
    file
        An .h5ad, .h5mu or .zarr with expression, whose features are matched by name. Roles are read
        where the fit read them, unless you name other places.
    output
        The .h5ad file to write: expected counts.
    """
    require_output(output, [".h5ad"], file)
    fitted = load_model(model, threads)
    if not fitted.module.fills:
        raise CapabilityError(
            f"This {fitted.model.key} fills in nothing. Self-supervised models such as simclr do, if they "
            "are fitted with --counts and --protein. For cells under other conditions: chreode correct"
        )
    schema = fitted.schema.with_(**roles)
    fitted.predict(file, into=output, schema=schema, device=device)
    sizes = {role: fitted.spec.n_features(role) for role in fitted.module.drawn}
    filled = " and ".join(f"{role} ({counted(n, 'feature')})" for role, n in sizes.items())
    return Answer(
        f"expected counts of {filled} written to {output}",
        {"file": str(output), "features": sizes},
        json,
    )


@with_roles
def augment(
    model: Path,
    file: Path,
    /,
    *,
    output: Output,
    by: str = "label",
    floor: Whole | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Add generated cells to the classes of a file that have few.

    Parameters
    ----------
    model
        Folder of a fitted model.
    file
        An .h5ad, .h5mu or .zarr. Roles are read where the fit read them, unless you name other
        places.
    output
        The .h5ad file to write: real cells, then new ones, marked by obs["generated"]. X holds raw
        counts of the genes of the fit. Layers, obsm and uns of FILE are not copied.
    by
        Role or covariate whose classes are filled up.
    floor
        Smallest number of cells of a class [default: as many as the largest has].
    """
    from ..data.collect import storable, writable

    require_output(output, [".h5ad"], file)
    fitted = load_model(model, threads)
    schema = fitted.schema.with_(**roles)
    cells = ch.augment(file, fitted, by=by, floor=floor, seed=seed, schema=schema, device=device)
    cells.obs = storable(cells.obs)
    with store.aside(output) as made, writable(output):
        cells.write_h5ad(made)
    new = int(cells.obs["generated"].sum())
    return Answer(
        f"{counted(cells.n_obs - new, 'real cell')} and {counted(new, 'generated one')} written to {output}",
        {"file": str(output), "real": cells.n_obs - new, "generated": new, "seed": seed},
        json,
    )
