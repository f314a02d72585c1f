"""Time and memory of an import, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from ..common import Row, folded
from .harness import Case, Folders, Prepared, Side
from .ratios import laps, mark, markdown, median, ratio, spread

THEIRS = Side("import scvi", "scvi", rival=True)
SIDES = (
    THEIRS,
    Side("import chreode", "chreode"),
    Side("chreode.SCVI", "model"),
    Side("import torch, anndata", "libraries"),
)


def cases(quick: bool) -> list[Case]:
    repeats = 1 if quick else 7
    return [Case("imports", "imports", SIDES, {}, 15 * repeats, repeats)]


def prepare(settings: Row, folders: Folders) -> Prepared:  # noqa: ARG001 (every table has one)
    return {}


def scvi(given: Prepared, lap: Callable[..., None]) -> None:  # noqa: ARG001 (a side)
    import scvi  # noqa: F401 (it is what is timed)

    lap("import")


def chreode(given: Prepared, lap: Callable[..., None]) -> None:  # noqa: ARG001 (a side)
    import chreode  # noqa: F401 (it is what is timed)

    lap("import")


def model(given: Prepared, lap: Callable[..., None]) -> None:  # noqa: ARG001 (a side)
    import chreode

    assert chreode.SCVI
    lap("import")


def libraries(given: Prepared, lap: Callable[..., None]) -> None:  # noqa: ARG001 (a side)
    import anndata  # noqa: F401 (it is what is timed)
    import torch  # noqa: F401 (it is what is timed)

    lap("import")


def render(rows: list[Row]) -> list[str]:
    short, full = [], []
    for row in rows:
        theirs = laps(row, THEIRS.label, "import")
        for side in SIDES:
            seconds = laps(row, side.label, "import")
            memory = laps(row, side.label, "import", "resident_mib")
            who, found = side.label + mark(row, "import"), ratio(theirs, seconds)
            short.append((who, median(seconds), median(memory), found.plain()))
            full.append((who, spread(seconds), spread(memory), str(found)))
    header = ("", "s", "resident, MiB", "times as fast")
    return [
        *markdown(header, short),
        "",
        *folded("With ranges and 95 % intervals", markdown(header, full)),
    ]
