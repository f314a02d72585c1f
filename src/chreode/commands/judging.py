"""What the commands that judge share: which rows are judged, and what is said of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chreode as ch

from .. import config as config_
from ..errors import ConfigError, counted, visible
from ..fitted import Fitted
from ..registry import find, keys
from ..text import shown
from .common import Answer, narrows, records, require_apart, require_output
from .fit import narrowed, tables_of
from .spelling import spoken, suggested

if TYPE_CHECKING:
    import numpy as np

    from ..data.cells import Cells


def require_places(output: Path | None, report: Path | None, into: Path | None) -> None:
    """Refuse outputs that cannot be written, or that would replace what is not ours."""
    require_apart(into, output, report)
    if output:
        require_output(output, [".json"])
    if report:
        require_output(report, [".html"])


def with_input(
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


def answer(
    scored: ch.bench.Bench,
    columns: list[str],
    output: Path | None,
    report: Path | None,
    json: bool,  # noqa: FBT001 (a flag)
) -> Answer:
    """Write what is wanted, and return what to print."""
    from ..report.findings import not_placed
    from ..report.generation import too_small
    from ..report.probe import held_out

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
    notes += [*filter(None, left), *held_out(scored.about)]
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


def method_of(name: str, config: Path | None) -> tuple[str, Any]:
    """Return the name of a row, and a model: to be fitted if `name` is a key, else that of a folder."""
    if name not in keys() and Path(name).is_dir():
        fitted = ch.load(name)
        return f"{type(fitted.model).__name__} {Path(name)}", fitted
    model = model_of(name, config)
    return type(model).__name__, model


def posed(
    file: Path,
    roles: Mapping[str, Any],
    config: Path | None,
    scored: tuple[Sequence[str], Sequence[str]],
    cells: tuple[str | None, int | None],
    judged: Callable[[Cells, np.ndarray], np.ndarray] | None = None,
    *,
    sent: bool = False,
) -> tuple[Any, ch.Schema, dict[str, Any]]:
    """Return cells, schema and the methods that a bench of embeddings scores.

    Parameters
    ----------
    scored
        Slots of obsm, and models (see `method_of`).
    cells
        What ``--rows`` and ``--n-genes`` say; `judged` and `sent` are those of `narrowed`.

    Raises
    ------
    ConfigError
        If there is no such model, no cell is chosen, or genes of a fitted model are left out.
    """
    keys, models = scored
    methods = {key: key for key in keys} | dict(method_of(name, config) for name in models)
    schema = schema_of(config, roles)
    data = narrowed(file, schema, *cells, judged, sent=sent)
    if cells[1] is not None:
        require_genes(methods, file, data, schema)
    return data, schema, methods


def require_genes(methods: Mapping[str, Any], file: Path, data: Any, schema: ch.Schema) -> None:
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


def model_of(name: str, config: Path | None) -> Any:
    """Return the model of a key, with the options of a configuration file."""
    return config_.from_dict(find(name), tables_of(config).get("model", {}) if config else {})


def schema_of(config: Path | None, roles: Mapping[str, Any]) -> ch.Schema:
    """Return where each role lives: as the flags say, else the configuration file."""
    configured = tables_of(config).get("schema", {}) if config else {}
    return ch.Schema.from_dict({**configured, **roles})
