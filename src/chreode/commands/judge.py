"""Commands that judge: ``bench`` and ``report``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

import chreode as ch

from ..errors import ConfigError, counted, near
from .common import (
    RUN,
    UNREAD_ROLES,
    Answer,
    Device,
    Into,
    Json,
    NGenes,
    NGenesUnseen,
    Page,
    Ray,
    Rows,
    Shares,
    Threads,
    Whole,
    Words,
    require_output,
    use_threads,
    with_roles,
    with_roles_of_time,
)
from .fit import narrowed
from .judging import (
    answer,
    model_of,
    posed,
    require_places,
    schema_of,
    with_input,
)

if TYPE_CHECKING:
    import numpy as np

    from ..data.cells import Cells

_EXAMPLE = (
    "Example: chreode bench {} pbmc.h5ad --counts layers/counts --batch obs/donor "
    "--label obs/cell_type --models {} --report report.html"
)

bench = App(name="bench", help_epilogue=_EXAMPLE.format("integration", "scvi"))

Seeds = Annotated[
    tuple[Whole, ...], Parameter(consume_multiple=True, show_default="0 1 2", group=RUN)
]
Scores = Annotated[
    Path | None,
    Parameter(
        name=("--output", "-o"), group=RUN,
        help="Write the scores as JSON, which 'chreode report' reads.",
    ),
]  # fmt: skip
Config = Annotated[
    Path | None,
    Parameter(
        group=RUN,
        help="A TOML file with tables [schema] and [model]. Every model that is fitted here gets the "
        "options of [model]. Flags override [schema].",
    ),
]


@bench.command
@partial(with_roles, hidden=UNREAD_ROLES)
def integration(
    file: Path,
    /,
    *,
    keys: Words = (),
    models: Words = (),
    seeds: Seeds = (0, 1, 2),
    config: Config = None,
    output: Scores = None,
    report: Page = None,
    into: Into = None,
    rows: Rows = None,
    n_genes: NGenes = None,
    device: Device = "auto",
    ray: Ray = False,
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Score embeddings by keeping cell types apart and mixing batches.

    PCA and Harmony are always in the table, and a label oracle as a ceiling.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr.
    keys
        Slots of obsm to score.
    models
        Models to score: keys, which are fitted here once per seed, or folders of fitted models, which
        name their rows.
    seeds
        Seeds of fits and clusterings.
    """
    require_places(output, report, into)
    if not (keys or models):
        raise ConfigError("Name what to score: --keys X_pca X_scvi, or --models scvi runs/scvi.")
    use_threads(threads)
    data, schema, methods = posed(file, roles, config, (keys, models), (rows, n_genes), sent=ray)
    scored = ch.bench.integration(
        data, schema, methods, seeds=seeds, into=into, ray=ray and (threads or 1), device=device
    )
    scored = with_input(scored, file, rows, n_genes, config)
    return answer(scored, ["role", "bio", "batch", "total", "seeds", "note"], output, report, json)


@bench.command(
    help_epilogue="Example: chreode bench probe pbmc.h5ad --counts layers/counts --batch obs/donor --label "
    "obs/cell_type --models simclr --held-out p7 p8 --report report.html"
)
@partial(with_roles, hidden=UNREAD_ROLES)
def probe(
    file: Path,
    /,
    *,
    keys: Words = (),
    models: Words = (),
    held_out: Words = (),
    tasks: Words = (),
    depths: Shares = (),
    seeds: Seeds = (0, 1, 2),
    config: Config = None,
    output: Scores = None,
    report: Page = None,
    into: Into = None,
    rows: Rows = None,
    n_genes: NGenesUnseen = None,
    device: Device = "auto",
    ray: Ray = False,
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Score embeddings by three tasks: correct batches, tell types of new batches, foretell proteins.

    PCA, Harmony and logistic regression are always in the table, and ceilings. Types and proteins are told of
    whole batches that no fit has seen.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr.
    keys
        Slots of obsm to score. They may have been learned from the held-out batches, and are marked so.
    models
        Models to score: keys, which are fitted here once per seed, or folders of fitted models, which are
        marked as slots are.
    held_out
        Batches to hold out, by their names in the column of --batch [default: the two smallest that can be].
    tasks
        Of correction, typing and missing [default: all, the last where --protein is named].
    depths
        Shares of the counts that types are told from too [default: 1 0.5 0.1 0.05].
    seeds
        Seeds of fits, clusterings and thinning.
    """
    require_places(output, report, into)
    use_threads(threads)
    split = tuple(tasks) != ("correction",)
    if split and n_genes is not None and not held_out:
        raise ConfigError(
            "--n-genes chooses genes by the reference alone: name those of the query, as in --held-out p7 p8."
        )
    unseen = partial(_of_batches, held_out if split else ())
    data, schema, methods = posed(
        file, roles, config, (keys, models), (rows, n_genes), unseen, sent=ray
    )
    scored = ch.bench.probe(
        data, schema, methods, held_out=held_out or None, tasks=tasks or None, depths=depths or None,
        seeds=seeds, into=into, ray=ray and (threads or 1), device=device,
    )  # fmt: skip
    scored = with_input(scored, file, rows, n_genes, config)
    columns = [
        "role",
        "total",
        "knn_f1",
        "knn_shared_f1",
        "linear_shared_f1",
        "cell_r",
        "protein_r",
        "seeds",
        "note",
    ]
    columns = [name for name in columns if name in scored.table()]
    return answer(scored, columns, output, report, json)


@bench.command(help_epilogue=_EXAMPLE.format("generation", "cfgen"))
@partial(with_roles, hidden=("expression", *UNREAD_ROLES))
def generation(
    file: Path,
    /,
    *,
    models: Words = ("cfgen",),
    seeds: Seeds = (0, 1, 2),
    config: Config = None,
    output: Scores = None,
    report: Page = None,
    into: Into = None,
    rows: Rows = None,
    n_genes: NGenesUnseen = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Score generated cells against held-out real ones.

    Real cells, replayed training cells, and simple models of counts are always in the table.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr. Its categories (label, batch, perturbation …) make the classes.
    models
        Keys of models to fit, once per seed.
    seeds
        Seeds of splits, fits and draws.
    """
    require_places(output, report, into)
    use_threads(threads)
    schema = schema_of(config, roles)
    scored = ch.bench.generation(
        narrowed(file, schema, rows, n_genes, partial(_held_out, seeds)),
        schema,
        [model_of(name, config) for name in models],
        seeds=seeds,
        into=into,
        device=device,
    )
    columns = ["role", "w2", "mmd", "auc", "zeros", "marker_share", "depth", "membership", "note"]
    scored = with_input(scored, file, rows, n_genes, config)
    return answer(scored, columns, output, report, json)


@bench.command(
    help_epilogue="Example: chreode bench dynamics cells.h5ad --expression X --time obs/time "
    "--trajectory obs/donor --tests d4 d5 --models pathreg --report report.html"
)
@with_roles_of_time
def dynamics(
    file: Path,
    /,
    *,
    tests: Words,
    models: Words = (),
    seeds: Seeds = (0, 1, 2),
    config: Config = None,
    output: Scores = None,
    report: Page = None,
    into: Into = None,
    rows: Rows = None,
    n_genes: NGenesUnseen = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Score forecasts of trajectories from their starts, learned from the others.

    A kernel smoother and other forecasts of a page of code are always in the table.

    Parameters
    ----------
    file
        An .h5ad, .h5mu or .zarr.
    tests
        Trajectories to forecast, by their names in the column of --trajectory.
    models
        Keys of models to fit, once per seed.
    seeds
        Seeds of fits.
    """
    from ..data.cells import Cells

    require_places(output, report, into)
    use_threads(threads)
    schema = schema_of(config, roles)
    used = narrowed(file, schema, rows, n_genes, lambda cells, _: _cells_of(tests, cells))
    cells = Cells.of(used, schema)
    scored = ch.bench.dynamics(
        cells.data, cells.schema, [model_of(name, config) for name in models],
        tests={"test": _cells_of(tests, cells)}, seeds=seeds, into=into, device=device,
    )  # fmt: skip
    columns = ["role", "mse, test", "denoised, test", "denoised_r2, test", "seeds", "note"]
    scored = with_input(scored, file, rows, n_genes, config)
    return answer(scored, columns, output, report, json)


def _held_out(seeds: tuple[int, ...], cells: Cells, kept: np.ndarray) -> np.ndarray:
    """Return the cells that a seed holds out, of those to use: generated cells are compared with them."""
    import numpy as np

    from ..bench.generation import class_table
    from ..bench.yardstick import split
    from ..trials.runner import require_seeds

    classes = class_table(cells)[0][kept]
    found = np.unique([kept[i] for s in require_seeds(seeds) for i in split(classes, s).reference])
    if 10 * len(found) > 9 * len(kept):
        raise ConfigError(
            f"--n-genes chooses genes by cells that no seed holds out. {counted(len(seeds), 'seed')} leave "
            f"{len(kept) - len(found):,} of {counted(len(kept), 'cell')}, which are too few: name fewer."
        )
    return found


def _of_batches(names: tuple[str, ...], cells: Cells, kept: np.ndarray) -> np.ndarray:
    """Return the positions of the cells to use that are of these batches."""
    if "batch" not in cells.places:
        raise ConfigError("--held-out names batches: name their place, as in --batch obs/donor.")
    found: np.ndarray = kept[cells.categories("batch").iloc[kept].isin(names).to_numpy()]
    return found


def _cells_of(trajectories: tuple[str, ...], cells: Cells) -> np.ndarray:
    """Return the positions of the cells of these trajectories."""
    import numpy as np

    if "trajectory" not in cells.places:
        raise ConfigError(
            "--tests names trajectories: name their place, as in --trajectory obs/donor."
        )
    of = cells.categories("trajectory")
    for name in trajectories:
        if name not in set(of):
            raise ConfigError(f"There is no trajectory {name!r}.{near(name, of.dropna().unique())}")
    return np.flatnonzero(of.isin(trajectories))


def _is_study(source: Path) -> bool:
    """Return whether a file says that it is of 'chreode identify'; whoever reads it says what is wrong."""
    import json

    try:
        return json.loads(source.read_text())["kind"] in ch.identify.study.KINDS
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def report(
    source: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    json: Json = False,
) -> Answer:
    """Make a page of HTML of a saved bench, a saved study or a fitted model.

    Parameters
    ----------
    source
        What 'chreode bench … -o bench.json' or 'chreode identify … -o rows.json' wrote, or the folder of a
        fitted model.
    output
        The .html file to write.
    """
    require_output(output, [".html"])
    if not source.exists():
        raise ConfigError(f"There is no file or folder {source}.")
    if source.is_dir():
        fitted = ch.load(source)
        title = f"{type(fitted.model).__name__}: {source.name}"
        ch.report.write(output, title, ch.report.fit_sections(fitted), about=fitted.provenance)
    elif _is_study(source):
        ch.identify.Study.load(source).report(output)
    else:
        ch.bench.Bench.load(source).report(output)
    return Answer(f"written to {output}", {"file": str(output)}, json)
