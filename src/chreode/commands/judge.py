"""Commands that judge: ``bench`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

import chreode as ch

from .. import config as config_
from ..errors import ConfigError, counted, near, visible
from ..fitted import Fitted
from ..registry import find, keys
from ..text import shown
from .common import (
    RUN,
    UNREAD_ROLES,
    Answer,
    Device,
    Into,
    Json,
    NGenes,
    NGenesUnseen,
    Ray,
    Rows,
    Threads,
    Whole,
    Words,
    narrows,
    records,
    require_apart,
    require_output,
    use_threads,
    with_roles,
    with_roles_of_time,
)
from .fit import narrowed, tables_of
from .spelling import spoken, suggested

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
Page = Annotated[Path | None, Parameter(group=RUN, help="Write a report: one HTML file.")]
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
    _require_places(output, report, into)
    if not (keys or models):
        raise ConfigError("Name what to score: --keys X_pca X_scvi, or --models scvi runs/scvi.")
    use_threads(threads)
    methods = {key: key for key in keys} | dict(_method(name, config) for name in models)
    schema = _schema(config, roles)
    data = narrowed(file, schema, rows, n_genes, sent=ray)
    if n_genes is not None:
        _require_genes(methods, file, data, schema)
    scored = ch.bench.integration(
        data, schema, methods, seeds=seeds, into=into, ray=ray and (threads or 1), device=device
    )
    scored = _with_input(scored, file, rows, n_genes, config)
    return _answer(scored, ["role", "bio", "batch", "total", "seeds", "note"], output, report, json)


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
    _require_places(output, report, into)
    use_threads(threads)
    schema = _schema(config, roles)
    scored = ch.bench.generation(
        narrowed(file, schema, rows, n_genes, partial(_held_out, seeds)),
        schema,
        [_model(name, config) for name in models],
        seeds=seeds,
        into=into,
        device=device,
    )
    columns = ["role", "w2", "mmd", "auc", "zeros", "marker_share", "depth", "membership", "note"]
    scored = _with_input(scored, file, rows, n_genes, config)
    return _answer(scored, columns, output, report, json)


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

    _require_places(output, report, into)
    use_threads(threads)
    schema = _schema(config, roles)
    used = narrowed(file, schema, rows, n_genes, lambda cells, _: _cells_of(tests, cells))
    cells = Cells.of(used, schema)
    scored = ch.bench.dynamics(
        cells.data, cells.schema, [_model(name, config) for name in models],
        tests={"test": _cells_of(tests, cells)}, seeds=seeds, into=into, device=device,
    )  # fmt: skip
    columns = ["role", "mse, test", "denoised, test", "denoised_r2, test", "seeds", "note"]
    scored = _with_input(scored, file, rows, n_genes, config)
    return _answer(scored, columns, output, report, json)


def _held_out(seeds: tuple[int, ...], cells: Cells, kept: np.ndarray) -> np.ndarray:
    """Return the cells that a seed holds out, of those to use: generated cells are compared with them."""
    import numpy as np

    from ..bench.generation import class_table
    from ..bench.trials import require_seeds
    from ..bench.yardstick import split

    classes = class_table(cells)[0][kept]
    found = np.unique([kept[i] for s in require_seeds(seeds) for i in split(classes, s).reference])
    if 10 * len(found) > 9 * len(kept):
        raise ConfigError(
            f"--n-genes chooses genes by cells that no seed holds out. {counted(len(seeds), 'seed')} leave "
            f"{len(kept) - len(found):,} of {counted(len(kept), 'cell')}, which are too few: name fewer."
        )
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


def _require_places(output: Path | None, report: Path | None, into: Path | None) -> None:
    require_apart(into, output, report)
    if output:
        require_output(output, [".json"])
    if report:
        require_output(report, [".html"])


def _with_input(
    scored: ch.bench.Bench, file: Path, rows: str | None, n_genes: int | None, config: Path | None
) -> ch.bench.Bench:
    """Return a bench that says of which file, cells, genes, options and seeds it is."""
    options = tables_of(config).get("model", {}) if config else {}
    seeds = sorted(map(int, scored.scores["seed"].unique()))
    given = {
        "file": str(file), "chosen cells": rows, "chosen genes": n_genes, "options": options, "seeds": seeds,
    }  # fmt: skip
    known = {name: visible(v) if isinstance(v, str) else v for name, v in given.items() if v}
    return replace(scored, about={**known, **scored.about})


def _answer(
    scored: ch.bench.Bench,
    columns: list[str],
    output: Path | None,
    report: Path | None,
    json: bool,  # noqa: FBT001 (a flag)
) -> Answer:
    """Write what is wanted, and return what to print."""
    from ..report.findings import not_placed
    from ..report.generation import too_small

    written = [scored.save(output)] if output else []
    written += [scored.report(report)] if report else []
    table = scored.table()
    table["note"] = table["note"].map(spoken)
    lacking = {name: why for name, why in scored.lacking().items() if name in columns}
    text = shown(table[columns].drop(columns=list(lacking))).to_string(
        float_format="{:z.3f}".format
    )
    left = [too_small(scored.about), not_placed(scored.about)]
    notes = [
        f"There is no {name!r}: {why or 'it is undefined for these cells.'}"
        for name, why in lacking.items()
    ]
    notes += filter(None, left)
    if output and not report and (scored.embeddings or scored.pairs):
        notes.append("The JSON file has the scores alone: --report draws the pictures too.")
    return Answer(
        "\n".join([text, *notes, *(f"written to {path}" for path in written)]),
        {
            "kind": scored.kind, "about": dict(scored.about), "table": records(table),
            "scores": records(scored.scores.set_index("method")), "files": [str(p) for p in written],
        },
        json,
    )  # fmt: skip


def _method(name: str, config: Path | None) -> tuple[str, Any]:
    """Return the name of a row, and a model: to be fitted if `name` is a key, else that of a folder."""
    if name not in keys() and Path(name).is_dir():
        fitted = ch.load(name)
        return f"{type(fitted.model).__name__} {Path(name)}", fitted
    model = _model(name, config)
    return type(model).__name__, model


def _require_genes(methods: Mapping[str, Any], file: Path, data: Any, schema: ch.Schema) -> None:
    """Refuse fitted models whose genes --n-genes leaves out: they would be scored without them.

    Raises
    ------
    ConfigError
        If there is one. It says how to score it all the same.
    """
    from ..data.cells import Cells

    place = narrows(schema)
    modality = place.modality if place else ""
    whole, kept = (
        {*(cells.mod[modality] if modality else cells).var_names}
        for cells in (Cells.of(file, schema).data, data)
    )
    for name, fitted in methods.items():
        if not isinstance(fitted, Fitted):
            continue
        genes = {*fitted.spec.features[fitted.spec.either("expression", "counts")]}
        lost = (genes & whole) - kept
        if lost:
            kind, _, folder = name.partition(" ")
            raise ConfigError(
                f"--n-genes leaves out {len(lost):,} of the {counted(len(genes), 'gene')} of {folder}. Leave "
                f"--n-genes out, or score what the model makes of all its genes: "
                f"{suggested('embed', folder, file, '-o', 'embedded.h5ad')}, then bench embedded.h5ad with "
                f"--keys X_{kind.lower()}."
            )


def _model(name: str, config: Path | None) -> Any:
    return config_.from_dict(find(name), tables_of(config).get("model", {}) if config else {})


def _schema(config: Path | None, roles: Mapping[str, Any]) -> ch.Schema:
    configured = tables_of(config).get("schema", {}) if config else {}
    return ch.Schema.from_dict({**configured, **roles})


def report(
    source: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    json: Json = False,
) -> Answer:
    """Make a page of HTML of a saved bench or a fitted model.

    Parameters
    ----------
    source
        What 'chreode bench … -o bench.json' wrote, or the folder of a fitted model.
    output
        The .html file to write.
    """
    require_output(output, [".html"])
    if source.is_dir():
        fitted = ch.load(source)
        title = f"{type(fitted.model).__name__}: {source.name}"
        ch.report.write(output, title, ch.report.fit_sections(fitted), about=fitted.provenance)
    else:
        ch.bench.Bench.load(source).report(output)
    return Answer(f"written to {output}", {"file": str(output)}, json)
