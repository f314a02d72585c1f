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
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, Group, Parameter

import chreode as ch

from .. import config, registry
from ..errors import ConfigError, SchemaError, near
from ..schema import ROLES, Schema
from .common import (
    RUN,
    Answer,
    Json,
    Seed,
    Switch,
    Threads,
    Whole,
    flags,
    narrows,
    records,
    require_place,
    schema_flags,
    signed,
    spoken,
    use_threads,
)

if TYPE_CHECKING:
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
    unread = [role for role in ROLES if role not in model().reads("fit")]
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


def _fit(
    model: Any,  # type[Model]: cyclopts evaluates annotations, and that name would load torch
    file: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), group=RUN)],
    config: Annotated[Path | None, Parameter(group=RUN)] = None,
    n_genes: Annotated[Whole | None, Parameter(group=RUN)] = None,
    validation: Annotated[float, Parameter(group=RUN)] = 0.1,
    seed: Seed = 0,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(group=RUN)] = "auto",
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
        An .h5ad or .h5mu file. It is not changed.
    output
        Folder to write the model to; an older model there is replaced.
    config
        A TOML file with tables [schema] and [model]; the command line wins over it.
    n_genes
        Keep the most variable genes alone, so many.
    validation
        Share of the cells to hold out.
    device
        What to compute on; auto takes CUDA, then MPS, then the CPU.
    resume
        Keep the state of every epoch in OUTPUT.checkpoint, and go on from there if a fit was cut short.
    distributed
        Share every minibatch among processes: those that torchrun started, else one for each GPU
        or, without GPUs, each core.
    """
    from ..compute.convergence import STATES
    from ..compute.processes import started
    from ..data.read import read
    from ..fitted import refuse_to_replace
    from ..learn.phase import forget, was_interrupted

    if distributed and not started():
        _start_processes()
    asked, schema = configured(model, config, options)
    refuse_to_replace(output)
    require_place(output)
    use_threads(threads)
    data = read(file)
    if n_genes is not None:
        data = narrowed(data, schema, n_genes)
    checkpoint = output.with_name(f"{output.name}.checkpoint") if resume else None
    start = time.perf_counter()
    fitted = asked.fit(
        data, schema, seed=seed, validation=validation, device=device, checkpoint=checkpoint,
        distributed=distributed,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if os.environ.get("RANK", "0") != "0" and distributed:
        return None  # the first process speaks and writes for all
    fitted.save(output)
    interrupted = was_interrupted(fitted.provenance["notes"])
    if checkpoint and not interrupted:
        forget(checkpoint, asked.phases())
    notes = [f"Note: {spoken(note)}." for note in fitted.provenance["notes"]]
    stood = f"It {STATES[fitted.provenance['state']]}. {seconds:.1f} s; saved to {output}"
    return Answer(
        "\n".join([f"{fitted!r}.", stood, *notes]),
        {
            "folder": str(output), "seconds": seconds, **fitted.provenance,
            "verbs": fitted.verbs, "last_epoch": records(fitted.history)[-1],
        },
        json,
        code=130 if interrupted else 0,
    )  # fmt: skip


def _start_processes() -> NoReturn:
    """Become torchrun, which runs this same command in every process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    os.execv(
        sys.executable, [*launcher, "--nproc-per-node", "auto", "-m", "chreode", *sys.argv[1:]]
    )


def configured(
    model: type[Model], file: Path | None, given: Mapping[str, Any]
) -> tuple[Model, Schema]:
    """Return the configured model and the schema: a file's tables, then the command line."""
    told = tables_of(file) if file else {}
    roles = {field.name for field in dataclasses.fields(Schema)}
    options = told.get("model", {}) | {k: v for k, v in given.items() if k not in roles}
    places = told.get("schema", {}) | {k: v for k, v in given.items() if k in roles}
    return config.from_dict(model, options), Schema.from_dict(places)


def tables_of(file: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of a configuration file: [schema] and [model]."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as TOML ({error}).") from error
    for name, table in tables.items():
        if name not in ("schema", "model"):
            raise ConfigError(
                f"{file}: there is no table {name!r}.{near(name, ('schema', 'model'))}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name} is no table; write [{name}] on a line of its own.")
    return tables


def narrowed(data: Any, schema: Schema, n_genes: int) -> Any:
    """Return the data with the most variable genes alone, where the counts or the expression are."""
    genes = ch.pp.select_genes(data, schema, n_genes)
    place = narrows(schema)
    if place is None:
        said = schema.counts or schema.expression
        raise SchemaError(f"--n-genes works on genes in X or layers/NAME, not in {said}.")
    if not place.modality:
        return data[:, genes].copy()
    data.mod[place.modality] = data.mod[place.modality][:, genes].copy()
    return data
