"""Commands for models of time: ``trajectory`` and ``rank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from .. import store
from ..errors import counted
from ..text import shown, spreadsheet
from .common import (
    Answer,
    Device,
    Json,
    Output,
    Threads,
    Whole,
    load_model,
    records,
    require_output,
    with_roles_of_time,
)


@with_roles_of_time
def trajectory(
    model: Path,
    file: Path | None = None,
    /,
    *,
    output: Output,
    times: Annotated[tuple[float, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    start: str | None = None,
    knockout: str | None = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Write where cells were, and where they will be.

    Parameters
    ----------
    model
        Folder of a fitted model.
    file
        An .h5ad, .h5mu or .zarr of cells to begin from.
    output
        The .h5ad file to write: cells x times.
    times
        Times to write [default: 20 times from the first to the last of the fit].
    start
        In place of FILE: a trajectory of the fit, from its start.
    knockout
        Genes that are knocked out from the start, such as GATA1 or GATA1+SPI1.
    """
    require_output(output, [".h5ad"], file)
    fitted = load_model(model, threads)
    to = None if knockout is None else {"knockout": knockout}
    schema = None if file is None else fitted.schema.with_(**roles)
    fitted.trajectory(
        file, times or None, start=start, to=to, into=output, schema=schema, device=device
    )
    without = f" without {knockout}" if knockout else ""
    return Answer(
        f"paths of {start or file}{without} written to {output}",
        {"file": str(output), "start": start, "knockout": knockout}, json,
    )  # fmt: skip


def rank(
    model: Path,
    /,
    *,
    output: Output | None = None,
    n: Annotated[Whole, Parameter(name=("--n", "-n"), validator=Number(gte=1))] = 20,
    json: Json = False,
) -> Answer:
    """Show which genes drive which, or how much each gene matters.

    Parameters
    ----------
    model
        Folder of a fitted model.
    output
        Write all edges, or all features, to this .csv file.
    n
        Rows to print, the most important first.
    """
    if output is not None:
        require_output(output, [".csv"])
    table = load_model(model).rank()
    if output is not None:
        with store.aside(output) as path:
            spreadsheet(table).to_csv(path, index=False)
    first = table.head(n)
    text = (
        shown(first).to_string(index=False, float_format=lambda v: f"{v:.3g}")
        if len(first)
        else "Nothing is ranked."
    )
    written = f"\n{counted(len(table), 'row')} written to {output}" if output else ""
    return Answer(f"{text}{written}", records(first), json)
