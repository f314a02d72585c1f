"""The studies of ``chreode identify``: grids of runs whose latents are known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, Group, Parameter

import chreode as ch

from .. import config
from ..text import shown
from .common import (
    RUN,
    Answer,
    Into,
    Json,
    Page,
    Ray,
    Shares,
    Threads,
    Whole,
    Words,
    flags,
    records,
    signed,
    use_threads,
)

Seeds = Annotated[
    tuple[Whole, ...],
    Parameter(
        consume_multiple=True, show_default="0 1 2 3 4", group=RUN,
        help="Seeds of mixings, encoders and draws.",
    ),
]  # fmt: skip
Samplers = Annotated[
    Words,
    Parameter(
        help="How the coordinates that are not kept are drawn: theorem or published [default: both]."
    ),
]
Rows = Annotated[
    Path | None,
    Parameter(name=("--output", "-o"), group=RUN, help="Write a row for each run as JSON."),
]
#: Options of a run that the grids set, so that no flag does.
_SET = ("mixing", "n_fixed", "sampler", "ratio", "encoder")


def _diversity(
    *,
    mixings: Words = (),
    fixed: Annotated[tuple[Whole, ...], Parameter(consume_multiple=True)] = (1,),
    **shared: Any,
) -> Answer:
    """Show whether latents are recovered if positives reach all of the space, and if they keep some of it.

    Parameters
    ----------
    mixings
        How latents become data: identity, linear, mlp, patches, spiral, monomials [default: all but
        the last].
    fixed
        Numbers of coordinates that positives keep, beside none.
    """
    return _studied("diversity", {"mixings": mixings, "fixed": fixed}, **shared)


def _ratio(
    *,
    mixings: Words = (),
    ratios: Shares = (),
    n_fixed: Whole = 1,
    **shared: Any,
) -> Answer:
    """Show how large a share of the negatives must come from the anchor's own support.

    Parameters
    ----------
    mixings
        How latents become data: identity, linear, mlp, patches, spiral, monomials [default: identity
        patches].
    ratios
        The shares, from 0 (InfoNCE) to 1 (the corrected loss) [default: 0 0.1 0.3 0.5 0.9 1].
    n_fixed
        Number of coordinates that positives keep.
    """
    grid = {"mixings": mixings, "ratios": ratios, "n_fixed": n_fixed}
    return _studied("ratio", grid, **shared)


def _encoders(
    *,
    mixings: Words = (),
    ratios: Shares = (),
    **shared: Any,
) -> Answer:
    """Show whether an encoder that is made like the inverse of the mixing does what the loss alone does not.

    Parameters
    ----------
    mixings
        How latents become data: identity, linear, patches, spiral [default: all four].
    ratios
        Shares of negatives from the anchor's own support, where a coordinate is kept [default: 0 1].
    """
    return _studied("encoders", {"mixings": mixings, "ratios": ratios}, **shared)


_COMMANDS: Mapping[str, Callable[..., Answer]] = {
    "diversity": _diversity, "ratio": _ratio, "encoders": _encoders,
}  # fmt: skip


def first_line(name: str) -> str:
    """Return what a study shows."""
    return (_COMMANDS[name].__doc__ or "").partition("\n")[0]


def names() -> list[str]:
    """Return the studies that there are."""
    return [*_COMMANDS]


def __getattr__(name: str) -> App:
    """Return the command of a study, with a flag for each option of its runs; cyclopts asks for it."""
    if name not in _COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    setting = ch.identify.Setting
    docs = {row["name"]: row["doc"] for row in config.describe(setting)}
    of_runs = flags(setting, docs, Group("What all runs share", sort_key=2))
    of_runs = [flag for flag in of_runs if flag.name not in _SET]
    command = signed(partial(_COMMANDS[name]), *_shared_flags(), *of_runs)
    example = f"Example: chreode identify {name} --mixings identity patches --into runs/{name} "
    return App(name=name, default_command=command, help_epilogue=f"{example}--report {name}.html")


def _shared_flags() -> list[inspect.Parameter]:
    """Return the flags that all studies have."""
    hints = get_type_hints(_studied, include_extras=True)
    every = inspect.signature(_studied).parameters.values()
    return [p.replace(annotation=hints[p.name]) for p in every if p.kind is p.KEYWORD_ONLY]


def _studied(
    kind: str,
    grid: Mapping[str, Any],
    *,
    samplers: Samplers = (),
    seeds: Seeds = (0, 1, 2, 3, 4),
    output: Rows = None,
    report: Page = None,
    into: Into = None,
    ray: Ray = False,
    threads: Threads = None,
    json: Json = False,
    **options: Any,
) -> Answer:
    """Run a study, write what is wanted, and return what to print; all studies have these flags."""
    from .judging import require_places

    require_places(output, report, into)
    base = config.from_dict(ch.identify.Setting, options)
    use_threads(threads)
    grid = {**grid, "samplers": samplers, "seeds": seeds}
    asked = {name: value for name, value in grid.items() if value != ()}
    study = getattr(ch.identify, kind)(
        **asked, base=base, into=into, ray=ray and (threads or 1), threads=threads
    )
    written = [study.save(output)] if output else []
    written += [study.report(report)] if report else []
    text = shown(study.summary()).to_string(float_format="{:z.3f}".format, na_rep="–")
    return Answer(
        "\n".join([text, *study.answer(), *(f"written to {path}" for path in written)]),
        {
            "kind": kind, "about": dict(study.about), "answer": study.answer(),
            "table": records(study.table()), "axes": records(study.axes()),
            "rows": records(study.rows.set_index("run")), "files": [str(path) for path in written],
        },
        json,
    )  # fmt: skip
