"""``chreode identify``: when a loss recovers the truth, and what an augmentation leaves as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import chreode as ch

from ..text import spreadsheet
from . import studies
from .common import (
    RUN,
    UNREAD_ROLES,
    Answer,
    Json,
    Seed,
    Threads,
    Whole,
    Words,
    records,
    require_output,
    use_threads,
    with_roles,
)

identify = App(
    name="identify",
    help_epilogue="Example: chreode identify coverage pbmc.h5ad --augment mask thin --factors obs/cell_type "
    "obs/donor --counts layers/counts --report coverage.html",
)


for _name in studies.names():
    identify.command(
        f"chreode.commands.studies:{_name}", name=_name, help=studies.first_line(_name)
    )


@identify.command
@partial(with_roles, hidden=UNREAD_ROLES)
def coverage(
    file: Path,
    /,
    *,
    augment: Words,
    factors: Words,
    groups: str | None = None,
    n_views: Whole = 8,
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), group=RUN, help="Write the table to this .csv file."),
    ] = None,
    report: Annotated[
        Path | None, Parameter(group=RUN, help="Write a report: one HTML file.")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Show how much of each factor an augmentation changes, which a contrastive loss gains by forgetting.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr.
    augment
        Augmentations of self-supervised models, with their default strengths. Several, such as mask thin,
        are compared. A plus, as in mask+thin, takes both for the same positives.
    factors
        Columns of obs, such as obs/cell_type. Numbers are continuous factors, all else are classes.
    groups
        Column of obs whose cells belong together, such as replicates of a well: readers of a cell learn from
        no other cell of its group.
    n_views
        Positives of each cell.
    """
    from .. import store  # which loads torch

    if output:
        require_output(output, [".csv"], file)
    if report:
        require_output(report, [".html"], file)
    use_threads(threads)
    schema = ch.Schema.from_dict(roles)
    named = {word: word.split("+") for word in augment}
    positives = named if len(named) > 1 else next(iter(named.values()), ())
    found = ch.identify.coverage(
        positives, file, factors, schema=schema, groups=groups, n_views=n_views, seed=seed
    )
    table = found.table()
    if output:
        with store.aside(output) as path:
            spreadsheet(table.reset_index()).to_csv(path, index=False)
    if report:
        found.report(report)
    files = [str(path) for path in (output, report) if path]
    text = "\n".join([str(found), *(f"written to {path}" for path in files)])
    return Answer(text, {"table": records(table), "about": dict(found.about), "files": files}, json)
