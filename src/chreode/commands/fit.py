"""``chreode fit MODEL FILE``: a command per model, with the flags of its dataclass."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, Group, Parameter

import chreode as ch

from .. import config, registry
from ..errors import ConfigError, SchemaError, counted, near, warn
from ..schema import ROLES, Schema
from .common import (
    RUN,
    Answer,
    Device,
    Json,
    NGenes,
    Output,
    Rows,
    Seed,
    Switch,
    Threads,
    flags,
    load_model,
    narrows,
    records,
    refuse_input,
    rows_of,
    say_replaced,
    schema_flags,
    signed,
    use_threads,
)
from .spelling import spoken

if TYPE_CHECKING:
    import numpy as np

    from ..data.cells import Cells
    from ..fitted import Fitted
    from ..model import Model

fit = App(
    name="fit",
    help_epilogue="Example: chreode fit scvi pbmc.h5ad --counts layers/counts --batch obs/donor "
    "-o runs/scvi\nThe flags of a model: chreode fit scvi --help",
)


def first_line(key: str) -> str:
    """Return what a model is, without importing it: that would take seconds."""
    tree = ast.parse(registry.file_of(key).read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    model = next(node for node in classes if node.name.lower() == key)
    return (ast.get_docstring(model) or "").partition("\n")[0]


for _key in registry.keys():  # noqa: SIM118 (a function, no mapping)
    fit.command(f"{__name__}:{_key}", name=_key, help=first_line(_key))


def __getattr__(key: str) -> App:
    """Return the command of a model; cyclopts asks for it when it is named."""
    if key not in registry.keys():  # noqa: SIM118 (a function, no mapping)
        raise AttributeError(f"module {__name__!r} has no attribute {key!r}")
    return per_model(key, _fit)


def per_model(key: str, call: Callable[..., Answer | None]) -> App:
    """Return the command of a model, with its options as flags; `call` is given its class first."""
    model = registry.find(key)
    docs = {row["name"]: row["doc"] for row in config.describe(model)}
    read = roles_of(model)
    unread = [role for role in ROLES if role not in read]
    command = signed(
        functools.partial(call, model),
        *schema_flags(hidden=unread),
        *flags(model, docs, Group(f"{model.__name__}: its options", sort_key=2)),
    )
    needs = ", ".join(need.replace("|", " or ") for need in model.needs)
    return App(
        name=key,
        default_command=command,
        help_epilogue=f"It needs {needs}. Roles that it does not read may be named too "
        f"({', '.join(unread)}): their values are checked.",
    )


def roles_of(model: type[Model]) -> set[str]:
    """Return the roles that a model reads, where they are named."""
    return {role for need in model.needs for role in need.split("|")} | {*model.uses}


def _fit(
    model: Any,  # type[Model]: cyclopts evaluates annotations, and that name would load torch
    file: Path,
    /,
    *,
    output: Output,
    config: Annotated[Path | None, Parameter(group=RUN)] = None,
    from_: Annotated[Path | None, Parameter(name="--from", group=RUN)] = None,
    rows: Rows = None,
    n_genes: NGenes = None,
    validation: Annotated[float, Parameter(group=RUN)] = 0.1,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    resume: Switch = False,
    distributed: Switch = False,
    json: Json = False,
    **options: Any,
) -> Answer | None:
    """Fit a model and save it as a folder.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr. It is not changed.
    output
        Folder to write the model to. An older model there is replaced, but not by an interrupted fit:
        that goes to OUTPUT.interrupted.
    config
        A TOML file with tables [schema] and [model]. Flags override it.
    from_
        Folder of a fitted model to start from. Cells of batches that it never saw are mapped: only what is
        new is learned. Options, and the roles that the model reads, are those of that fit, unless given.
    validation
        Share of the cells to hold out.
    resume
        Keep the state of every epoch in OUTPUT.checkpoint. Continue from it if a fit was interrupted.
    distributed
        Share every minibatch among processes: those that torchrun started, else one for each GPU
        or, without GPUs, each core.
    """
    from ..compute.convergence import STATES
    from ..compute.processes import started
    from ..data.cells import Cells
    from ..learn.phase import forget

    if distributed and not started():
        _start_processes()
    base = load_model(from_) if from_ else None
    if base is not None and n_genes is not None:
        raise ConfigError("--n-genes has no use with --from: the genes are those of that fit.")
    asked, schema = configured(model, config, options, base)
    require_model_place(output, file, from_)
    use_threads(threads)
    cells = Cells.of(file, schema)
    kept = chosen(cells, rows)
    data = with_genes(cells.data, schema, n_genes, kept, depth=model.scale != "counts")
    checkpoint = output.with_name(f"{output.name}.checkpoint") if resume else None
    start = time.perf_counter()
    fitted = asked.fit(
        data, schema, seed=seed, rows=kept, from_=base, validation=validation, device=device,
        checkpoint=checkpoint, distributed=distributed,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if os.environ.get("RANK", "0") != "0" and distributed:
        return None  # the first process speaks and writes for all
    folder, saved, interrupted = keep(fitted, output)
    if checkpoint and not interrupted:
        forget(checkpoint, asked.phases())
    summary = f"It {STATES[fitted.provenance['state']]}. {seconds:.1f} s; {saved}"
    return Answer(
        "\n".join([f"{fitted!r}.", summary, *notes_of(fitted)]),
        {
            "folder": str(folder), "seconds": seconds, **fitted.provenance,
            "verbs": fitted.verbs, "last_epoch": records(fitted.history)[-1],
        },
        json,
        code=130 if interrupted else 0,
    )  # fmt: skip


def require_model_place(output: Path, *read: Path | None) -> None:
    """Refuse, before the work, a folder where `keep` cannot save a model, or that holds what is `read`."""
    from ..fitted import refuse_to_replace
    from ..store import require_writable

    for source in read:
        # a fit may replace the one it starts from
        if source and not (
            (source / "model.json").is_file() and source.resolve() == output.resolve()
        ):
            refuse_input(output, source)
    for folder in (output, _beside(output)):
        refuse_to_replace(folder)
    require_writable(output)


def keep(fitted: Fitted, output: Path) -> tuple[Path, str, bool]:
    """Save a model, and return its folder, a message on it, and whether Ctrl-C ended the fit.

    Where an older model is in the folder already, an interrupted fit is saved beside it.
    """
    from ..learn.phase import was_interrupted

    interrupted = was_interrupted(fitted.provenance["notes"])
    spared = interrupted and output.is_dir() and any(output.iterdir())
    folder = _beside(output) if spared else output
    say_replaced(folder)
    fitted.save(folder)
    why = f", because {output} holds an older model, which is kept" if spared else ""
    return folder, f"saved to {folder}{why}", interrupted


def _beside(output: Path) -> Path:
    named = output if output.name else output.resolve()
    return named.with_name(f"{named.name}.interrupted")


def notes_of(fitted: Fitted) -> list[str]:
    """Return the notes of a fit, as the command line prints them."""
    return [f"Note: {spoken(note)}." for note in fitted.provenance["notes"]]


def _start_processes() -> NoReturn:
    """Become torchrun, which runs this same command in every process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(
        sys.executable, [*launcher, "--nproc-per-node", "auto", "-m", "chreode", *sys.argv[1:]]
    )


def configured(
    model: type[Model],
    file: Path | None,
    given: Mapping[str, Any],
    base: Fitted | None = None,
) -> tuple[Model, Schema]:
    """Return the configured model and the schema.

    They are those of the fit that is started from, then a file's tables, then the command line. Of that
    fit's roles those are taken that the model reads.
    """
    tables = tables_of(file) if file else {}
    roles = {field.name for field in dataclasses.fields(Schema)}
    options = tables.get("model", {}) | {k: v for k, v in given.items() if k not in roles}
    places = tables.get("schema", {}) | {k: v for k, v in given.items() if k in roles}
    if base is not None:
        if type(base.model) is model:
            options = config.as_dict(base.model) | options
        # cells to map may lack what the model would not read, such as labels
        read = roles_of(model) | {"missing", "fractional"}
        read |= {"control", "vectors"} if "perturbation" in read else set()
        places = {k: v for k, v in base.schema.as_dict().items() if k in read} | places
    return config.from_dict(model, options), Schema.from_dict(places)


def tables_of(file: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a configuration file: [schema] and [model]."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as TOML ({error}).") from error
    for name, table in tables.items():
        if name not in ("schema", "model"):
            raise ConfigError(
                f"{file}: there is no table {name!r}.{near(name, ('schema', 'model'))}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name} is no table; write [{name}] on a line of its own.")
    return tables


def narrowed(
    file: Path,
    schema: Schema,
    rows: str | None,
    n_genes: int | None,
    judged: Callable[[Cells, np.ndarray], np.ndarray] | None = None,
    *,
    sent: bool = False,
    depth: bool = True,
) -> Any:
    """Return the file's cells without those that ``--rows`` leaves out, and with the genes to keep.

    Parameters
    ----------
    judged
        Returns, from the cells and the positions of those to use, those that results are judged on. Genes
        are chosen without them (default: on all that are used).
    sent
        Whether they are sent to other processes, so that they must be in memory.
    depth
        Whether a method normalises counts by the depth of the cell: see `with_genes`.

    Raises
    ------
    ConfigError
        If no cell is chosen, or genes are to be chosen and every cell is judged.
    """
    if rows is None and n_genes is None:
        return file
    import numpy as np

    from ..data.cells import Cells
    from ..data.subset import some_cells

    cells = Cells.of(file, schema)
    kept = chosen(cells, rows)
    seen = kept
    if n_genes is not None and judged is not None:
        seen = kept[~np.isin(kept, judged(cells, kept))]
        if not len(seen):
            raise ConfigError("--n-genes chooses genes by cells that are not judged: leave some.")
    # a matrix of chosen genes is read by rows, those of the cells alone
    data = with_genes(cells.data, schema, n_genes, seen, depth=depth)
    return some_cells(data, kept) if rows is not None or sent else data


def chosen(cells: Cells, rows: str | None) -> np.ndarray:
    """Return the positions of the cells that ``--rows`` chooses.

    Raises
    ------
    ConfigError
        If it chooses none.
    """
    found = cells.positions(rows_of(rows), "--rows")
    if rows is not None and not len(found):
        raise ConfigError(f"--rows {rows!r} chooses none of {counted(len(cells), 'cell')}.")
    return found


def with_genes(
    data: Any, schema: Schema, n_genes: int | None, rows: Any = None, *, depth: bool = False
) -> Any:
    """Return the data with the most variable genes alone, where the counts or the expression are.

    If a method normalises counts by the `depth` of the cell, a note says how much of it these genes hold.
    """
    if n_genes is None:
        return data
    genes = ch.pp.select_genes(data, schema, n_genes, rows=rows)
    place = narrows(schema)
    if place is None:
        named = schema.counts or schema.expression
        raise SchemaError(f"--n-genes works on genes in X or layers/NAME, not in {named}.")
    if depth and schema.expression is None:
        _say_share(data, schema, genes, rows)
    if not place.modality:
        return data[:, genes].copy()
    data.mod[place.modality] = data.mod[place.modality][:, genes].copy()
    return data


def _say_share(data: Any, schema: Schema, genes: Any, rows: Any) -> None:
    """Note how many of the counts of a cell are of the chosen genes."""
    import numpy as np
    from scipy import sparse

    from ..data.cells import Cells

    cells = Cells.of(data, schema)
    values, names = cells.matrix("counts")
    at, rows = cells.rows("counts"), cells.positions(rows)
    counts = sparse.csr_array(values[rows if at is None else at[rows][at[rows] >= 0]])
    whole, part = (x.sum(axis=1, dtype=np.float64) for x in (counts, counts[:, names.isin(genes)]))
    shares = 100 * part[whole > 0] / whole[whole > 0]
    low, middle, high = np.percentile(shares, (0, 50, 100))
    warn(
        f"--n-genes: the {counted(len(genes), 'chosen gene')} hold {middle:.0f} % of the counts of a cell "
        f"(median; {low:.0f} to {high:.0f} %). Log-expression is per 10,000 counts of these genes alone. To "
        "normalise by all genes, name normalised values: --expression layers/NAME."
    )
