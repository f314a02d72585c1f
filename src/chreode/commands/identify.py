"""``chreode identify``: when a loss recovers the truth, and what an augmentation leaves as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import chreode as ch

from ..errors import ConfigError
from ..text import spreadsheet
from . import studies
from .common import (
    RUN,
    UNREAD_ROLES,
    Answer,
    Json,
    NGenes,
    Rows,
    Seed,
    Threads,
    Whole,
    Words,
    load_model,
    records,
    require_output,
    use_threads,
    with_roles,
)

#: Options that an augmentation has under another name.
_STRENGTHS = {"noise": "noise_scale", "mnn": "mix", "bbknn": "mix"}

identify = App(
    name="identify",
    help_epilogue="Example: chreode identify coverage pbmc.h5ad --augment mask mask:0.6 thin "
    "--factors obs/cell_type obs/donor --counts layers/counts --report coverage.html",
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
    rows: Rows = None,
    n_genes: NGenes = None,
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
        Augmentations of self-supervised models, or folders of fitted ones. Several, such as mask thin, are
        compared. A plus, as in mask+thin, takes both for the same positives. A number, as in mask:0.6, is the
        strength in place of the default: the option of SimCLR of that name (of noise: noise_scale, of mnn
        and bbknn: mix).
    factors
        Columns of obs, such as obs/cell_type. Numbers are continuous factors, all else are classes. One that
        cannot be read has a note that says why.
    groups
        Column of obs whose cells belong together, such as replicates of a well: readers of a cell learn from
        no other cell of its group.
    n_views
        Positives of each cell.
    """
    from .. import store  # which loads torch
    from .fit import narrowed

    if output:
        require_output(output, [".csv"], file)
    if report:
        require_output(report, [".html"], file)
    use_threads(threads)
    named = {word: _positives(word) for word in augment}
    fits = [each for each in named.values() if isinstance(each, ch.Fitted)]
    if fits and n_genes is not None:
        raise ConfigError("--n-genes: a fitted model reads its own genes. Leave --n-genes out.")
    schema = (fits[0].schema if fits else ch.Schema()).with_(**roles)
    positives = named if len(named) > 1 else next(iter(named.values()), ())
    found = ch.identify.coverage(
        positives, narrowed(file, schema, rows, n_genes), factors, schema=schema, groups=groups,
        n_views=n_views, seed=seed,
    )  # fmt: skip
    table = found.table()
    if output:
        with store.aside(output) as path:
            spreadsheet(table.reset_index()).to_csv(path, index=False)
    if report:
        found.report(report)
    files = [str(path) for path in (output, report) if path]
    text = "\n".join([str(found), *(f"written to {path}" for path in files)])
    told = {"table": records(table), "classes": records(found.classes)}
    return Answer(text, {**told, "about": dict(found.about), "files": files}, json)


def _positives(word: str) -> Any:
    """Return what a word of ``--augment`` names: a fitted model, or SimCLR with some augmentations.

    Raises
    ------
    ConfigError
        If there is no such augmentation, or its strength is no number that it takes.
    """
    if Path(word, "model.json").exists():
        return load_model(Path(word))
    parts = [part.partition(":") for part in word.split("+")]
    augment = tuple(name for name, _, _ in parts)
    # which refuses other names, before they are taken for those of options
    ch.SimCLR(augment=augment)
    strengths = dict[str, float]()
    for name, sign, text in parts:
        option = _STRENGTHS.get(name, name)
        if sign and option in strengths:
            raise ConfigError(f"--augment {word!r} gives {option} twice. Give one strength.")
        try:
            strengths |= {option: float(text)} if sign else {}
        except ValueError:
            raise ConfigError(
                f"--augment {word!r}: the strength {text!r} is no number. Write {name}:0.5, for example."
            ) from None
    return ch.SimCLR(augment=augment, **strengths)
