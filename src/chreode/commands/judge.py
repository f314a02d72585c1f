"""Commands that judge: ``bench`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import chreode as ch

from ..errors import ConfigError
from ..models import find, keys
from ..text import shown
from .common import (
    RUN,
    Answer,
    Into,
    Json,
    Ray,
    Threads,
    Whole,
    Words,
    records,
    require_output,
    use_threads,
    with_roles,
)

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
Page = Annotated[Path | None, Parameter(group=RUN, help="Write a page of HTML.")]


@bench.command
@with_roles
def integration(
    file: Path,
    /,
    *,
    keys: Words = (),
    models: Words = (),
    seeds: Seeds = (0, 1, 2),
    output: Scores = None,
    report: Page = None,
    into: Into = None,
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
        An .h5ad or .h5mu file.
    keys
        Slots of obsm to score.
    models
        Models to score: keys, which are fitted here once per seed, or folders of fitted models.
    seeds
        Seeds of fits and clusterings.
    """
    _require_places(output, report)
    if not (keys or models):
        raise ConfigError("Name what to score: --keys X_pca X_scvi, or --models scvi runs/scvi.")
    use_threads(threads)
    methods = [*keys, *(_method(name) for name in models)]
    scored = ch.bench.integration(
        file,
        ch.Schema.from_dict(roles),
        methods,
        seeds=seeds,
        into=into,
        ray=ray and (threads or 1),
    )
    return _answer(scored, ["role", "bio", "batch", "total", "seeds", "note"], output, report, json)


@bench.command(help_epilogue=_EXAMPLE.format("generation", "cfgen"))
@with_roles
def generation(
    file: Path,
    /,
    *,
    models: Words = ("cfgen",),
    seeds: Seeds = (0, 1, 2),
    output: Scores = None,
    report: Page = None,
    into: Into = None,
    threads: Threads = None,
    json: Json = False,
    **roles: Any,
) -> Answer:
    """Score generated cells against held-out real ones.

    Real cells, replayed training cells, and simple models of counts are always in the table.

    Parameters
    ----------
    file
        An .h5ad or .h5mu file. Its categories (label, batch, perturbation …) make the classes.
    models
        Keys of models to fit, once per seed.
    seeds
        Seeds of splits, fits and draws.
    """
    _require_places(output, report)
    use_threads(threads)
    scored = ch.bench.generation(
        file, ch.Schema.from_dict(roles), [find(name)() for name in models], seeds=seeds, into=into
    )
    columns = ["role", "w2", "mmd", "auc", "zeros", "marker_share", "depth", "membership", "note"]
    return _answer(scored, columns, output, report, json)


def _require_places(output: Path | None, report: Path | None) -> None:
    if output:
        require_output(output, [".json"])
    if report:
        require_output(report, [".html"])


def _answer(
    scored: ch.bench.Bench,
    columns: list[str],
    output: Path | None,
    report: Path | None,
    json: bool,  # noqa: FBT001 (a flag)
) -> Answer:
    """Write what is wanted, and say it."""
    from ..bench.yardstick import too_small

    written = [scored.save(output)] if output else []
    written += [scored.report(report)] if report else []
    table = scored.table()
    lacking = {name: why for name, why in scored.lacking().items() if name in columns}
    text = shown(table[columns].drop(columns=list(lacking))).to_string(float_format="%.3f")
    few = too_small(scored.about)
    said = [
        f"There is no {name!r}: {why or 'it is undefined for these cells.'}"
        for name, why in lacking.items()
    ]
    said += [few] if few else []
    return Answer(
        "\n".join([text, *said, *(f"written to {path}" for path in written)]),
        {
            "kind": scored.kind, "about": dict(scored.about), "table": records(table),
            "scores": records(scored.scores.set_index("method")), "files": [str(p) for p in written],
        },
        json,
    )  # fmt: skip


def _method(name: str) -> Any:
    """Return a model to be fitted if the name is a key, otherwise the fitted one of a folder."""
    if name not in keys() and Path(name).is_dir():
        return ch.load(name)
    return find(name)()


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
