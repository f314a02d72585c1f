"""``chreode tune MODEL FILE``: a command per model; the options that are given are not searched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

import chreode as ch

from .. import config as config_
from .. import registry
from .common import (
    RUN,
    Answer,
    Device,
    Into,
    Json,
    NGenesUnseen,
    Output,
    Ray,
    Rows,
    Seed,
    Threads,
    Whole,
    records,
    require_apart,
    use_threads,
)
from .fit import (
    configured,
    first_line,
    keep,
    narrowed,
    notes_of,
    per_model,
    require_model_place,
    tables_of,
)
from .spelling import as_flags, spoken, suggested

if TYPE_CHECKING:
    import numpy as np

    from ..data.cells import Cells
    from ..model import Model

tune = App(
    name="tune",
    help_epilogue="Example: chreode tune scvi pbmc.h5ad --counts layers/counts --batch obs/donor "
    "--trials 20 --into runs/tune -o runs/best\nThe flags of a model: chreode tune scvi --help",
)
for _key in registry.keys():  # noqa: SIM118 (a function, no mapping)
    tune.command(f"{__name__}:{_key}", name=_key, help=first_line(_key))


def __getattr__(key: str) -> App:
    """Return the command of a model; cyclopts asks for it when it is named."""
    if key not in registry.keys():  # noqa: SIM118 (a function, no mapping)
        raise AttributeError(f"module {__name__!r} has no attribute {key!r}")
    return per_model(key, _tune)


def _tune(
    model: Any,  # type[Model]: cyclopts evaluates annotations, and that name would load torch
    file: Path,
    /,
    *,
    trials: Annotated[Whole, Parameter(validator=Number(gte=1), group=RUN)] = 20,
    output: Output | None = None,
    config: Annotated[Path | None, Parameter(group=RUN)] = None,
    rows: Rows = None,
    n_genes: NGenesUnseen = None,
    device: Device = "auto",
    into: Into = None,
    ray: Ray = False,
    seed: Seed = 0,
    threads: Threads = None,
    json: Json = False,
    **options: Any,
) -> Answer:
    """Search for better options of a model.

    Trial 0 is the model with its defaults and the options that are given, which stay as they are. The
    best options and those of trial 0 are fitted again under further seeds and judged on cells that
    nothing has seen.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr. It is not changed.
    trials
        Number of trials.
    output
        Folder to write a model to, fitted with the best options on all cells.
    config
        A TOML file with tables [schema] and [model]. Flags override it.
    """
    from ..bench.tuning import default_space

    asked, schema = configured(model, config, options)
    fixed = {*options, *(tables_of(config).get("model", {}) if config else {})}
    space = {name: span for name, span in default_space(asked).items() if name not in fixed}
    require_apart(into, output)
    if output:
        require_model_place(output, file)
    use_threads(threads)
    judged, depth = partial(_judged, seed), model.scale != "counts"
    data = narrowed(file, schema, rows, n_genes, judged, sent=ray, depth=depth)
    tuned = ch.tune(
        asked, data, schema, trials=trials, seed=seed, space=space, into=into,
        ray=ray and (threads or 1), device=device,
    )  # fmt: skip
    # the bits of the weights depend on the number of threads
    run = {"rows": rows, "n_genes": n_genes, "seed": seed, "threads": threads}
    command = _command(tuned.best, file, schema, run, output)
    table = tuned.trials.drop(columns="seed")
    table["note"] = table["note"].map(spoken)
    lines = [table.to_string(float_format="%.5g"), f"{tuned.verdict()}\nThe best: {command}"]
    interrupted = False
    if output:
        # as the command that is suggested: nothing is judged here, so all cells choose the genes
        data = narrowed(file, schema, rows, n_genes, depth=depth)
        fitted = tuned.best.fit(data, schema, seed=seed, device=device)
        output, saved, interrupted = keep(fitted, output)
        lines += [f"fitted on all cells and {saved}", *notes_of(fitted)]
    return Answer(
        "\n".join(lines),
        {
            "best": config_.as_dict(tuned.best), "improved": tuned.improved, "verdict": tuned.verdict(),
            "trials": records(tuned.trials), "refits": records(tuned.refits),
            "about": dict(tuned.about), "folder": str(output) if output else None,
        },
        json, code=130 if interrupted else 0,
    )  # fmt: skip


def _command(
    best: Model, file: Path, schema: ch.Schema, run: Mapping[str, Any], output: Path | None
) -> str:
    """Return the command line that fits a model."""
    plain = config_.as_dict(type(best)())
    options = {name: v for name, v in config_.as_dict(best).items() if v != plain[name]}
    words = schema.as_dict() | options | {name: v for name, v in run.items() if v is not None}
    return suggested("fit", best.key, file, *as_flags(words), "-o", output or f"runs/{best.key}")


def _judged(seed: int, cells: Cells, kept: np.ndarray) -> np.ndarray:
    """Return the cells that trials or refits are judged on, of those to use."""
    import numpy as np

    from ..bench.tuning import HELD_OUT, three_parts

    _, *held_out = three_parts(cells, np.arange(len(kept)), HELD_OUT, HELD_OUT, seed)
    return kept[np.concatenate(held_out)]
