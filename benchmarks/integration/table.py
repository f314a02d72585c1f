"""Write the results section of benchmarks/README.md from the rows; no number is typed by hand."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import rows
from benchmarks.common import QUIET, write_section
from evaluator import half_width
from rows import Row

from chreode.metrics.integration import METRICS

README = Path(__file__).parents[1] / "README.md"
THEIRS, OURS = "scvi-tools", "chreode"
METHODS = ("PCA", "Harmony", THEIRS, OURS)
#: Largest loss of gain over the null, in %, that counts as parity.
TARGET = 2.0


def render(found: list[Row]) -> str:
    """Return the section as markdown."""
    tasks = {name: [r for r in found if r["task"] == name] for name in _distinct(found, "task")}
    # a task is told once both libraries have a fit; intervals need two seeds
    tasks = {
        name: task
        for name, task in tasks.items()
        if min(len(_of(task, m)) for m in (THEIRS, OURS)) > 1
    }
    if not tasks:
        return "No rows yet."
    lines = [*_about(found), "", *_short(tasks), "", _counts(tasks), ""]
    lines += [*_folded("Data sets", _data(found)), ""]
    lines += [*_folded("Held-out ELBO, nats per cell: all scores", _elbo(tasks)), ""]
    scores = [line for name, task in tasks.items() for line in ("", *_metrics(name, task))]
    lines += [*_folded("Integration: all scores", scores[1:]), ""]
    return "\n".join([*lines, *_folded("Time of a fit, seconds", _times(tasks))])


def _folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from (f"<details><summary>{title}</summary>", "", *lines, "", "</details>")


def _about(found: list[Row]) -> Iterator[str]:
    settings = found[0]["settings"]
    versions = {m: _distinct(_of(found, m), "version") for m in (THEIRS, OURS)}
    yield (
        f"{settings['epochs']} epochs, KL warm-up over the first {settings['warmup']:.0%}, "
        f"{settings['draws']} draws of z per test cell; "
        + ", ".join(f"{m} {' and '.join(v)}" for m, v in versions.items())
        + f"; threads: {settings['threads']}, machine: {' and '.join(_distinct(found, 'machine'))}."
    )
    if settings["cells"]:
        yield f"**A trial on {settings['cells']} cells of each task: these are no results.**"


def _short(tasks: dict[str, list[Row]]) -> Iterator[str]:
    """Yield the table that holds the answer: gains and totals, the best of each in bold."""
    totals = ("Harmony", THEIRS, OURS)
    yield (
        f"| task | gain of {THEIRS} | gain of {OURS} | "
        + " | ".join(f"total of {method}" for method in totals)
        + " |"
    )
    yield "|---|" + "---:|" * 5
    for name, task in tasks.items():
        null = _of(task, "null")[0]["elbo"]
        gains = [np.mean([r["elbo"] for r in _of(task, m)]) - null for m in (THEIRS, OURS)]
        means = [v.mean() if len(v := _values(task, m, "total")) else math.nan for m in totals]
        yield f"| {name} | {' | '.join([*_bold(gains, 1), *_bold(means, 3)])} |"
    yield ""
    yield (
        "*gain*: held-out ELBO above the null, nats per cell. *total*: score of integration, 1 at best. "
        "Means over seeds; the best value is in bold."
    )


def _bold(values: list[float], digits: int) -> Iterator[str]:
    best = f"{np.nanmax(values):.{digits}f}"
    for value in values:
        told = "–" if math.isnan(value) else f"{value:.{digits}f}"
        yield f"**{told}**" if told == best else told


def _data(found: list[Row]) -> Iterator[str]:
    yield "| task | cells (train, validation, test) | genes | batches | labels | sha256 of the file |"
    yield "|---|---|---|---|---|---|"
    for row in _of(found, "null"):
        cells = " + ".join(f"{n:,}" for n in row["cells"])
        yield (
            f"| {row['task']} | {cells} | {row['genes']:,} | {row['batches']} | {row['labels']} "
            f"| `{row['sha256'][:16]}` |"
        )


def _elbo(tasks: dict[str, list[Row]]) -> Iterator[str]:
    yield (
        f"| task | null | {THEIRS} | {OURS} | gain of {THEIRS} | gain of {OURS} "
        f"| loss of gain, % | ≤ {TARGET:g} % |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, task in tasks.items():
        null = _of(task, "null")[0]["elbo"]
        elbo = {m: np.array([r["elbo"] for r in _of(task, m)]) for m in (THEIRS, OURS)}
        gain = {m: values - null for m, values in elbo.items()}
        theirs = gain[THEIRS].mean()
        if theirs > 0:
            loss = 100 * (1 - gain[OURS] / theirs)
            width = 100 * half_width(gain[OURS], gain[THEIRS]) / theirs
            lost = f"{_spread(loss, 2)}, ± {width:.2f}"
            verdict = "yes" if loss.mean() <= TARGET else "**no**"
        else:
            lost, verdict = f"{THEIRS} is below the null", "undefined"
        told = " | ".join(_spread(elbo[m], 1) + _mark(_of(task, m)) for m in elbo)
        yield (
            f"| {name} | {null:.1f} | {told} | {theirs:.1f} | {gain[OURS].mean():.1f} "
            f"| {lost} | {verdict} |"
        )
    apart = (f"{max(_apart(r) for t in tasks.values() for r in _of(t, m)):.1f} ({m})" for m in elbo)
    yield ""
    yield (
        "Mean over seeds (lowest to highest seed); ± is half of Welch's 95 % interval. A loss below "
        f"0 means that {OURS} gains more. †: the number of seeds that were still improving when they "
        "stopped. The evaluator and each library's own estimate, on other draws of z, differ by at most "
        f"{' and '.join(apart)} standard errors of the draws."
    )


def _apart(row: Row) -> float:
    """Return how far the library's own ELBO is from the evaluator's; each has its own draws."""
    return abs(row["own_elbo"] - row["elbo"]) / (math.sqrt(2) * row["elbo_error"])


def _counts(tasks: dict[str, list[Row]]) -> str:
    verdicts = Counter(_verdict(task, m.key)[0] for task in tasks.values() for m in METRICS)
    told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
    return f"{OURS} against {THEIRS} by all metrics of all tasks: {told}."


def _metrics(name: str, task: list[Row]) -> Iterator[str]:
    yield f"| {name} | {' | '.join(METHODS)} | margin | verdict |"
    yield "|---" * (len(METHODS) + 3) + "|"
    for key in [*(m.key for m in METRICS), "bio", "batch", "total"]:
        cells = " | ".join(_spread(_values(task, m, key), 3) for m in METHODS)
        verdict, margin = _verdict(task, key)
        shown = f"**{verdict}**" if verdict == "below" else verdict
        yield f"| {key} | {cells} | {margin:.3f} | {shown} |"


def _values(task: list[Row], method: str, metric: str) -> np.ndarray:
    return np.array([r["scores"][metric] for r in _of(task, method)], dtype=float)


def _verdict(task: list[Row], metric: str) -> tuple[str, float]:
    """Say where chreode's mean lies, and by what margin it may miss that of scvi-tools."""
    ours, theirs = _values(task, OURS, metric), _values(task, THEIRS, metric)
    difference, margin = ours.mean() - theirs.mean(), half_width(ours, theirs)
    if math.isnan(difference):
        return "undefined", margin
    if abs(difference) <= margin:
        return "within", margin
    return ("above" if difference > 0 else "below"), margin


def _times(tasks: dict[str, list[Row]]) -> Iterator[str]:
    yield "| task | method | wall, by seed | processor, by seed | cores kept busy by others |"
    yield "|---|---|---|---|---|"
    disturbed = False
    for name, task in tasks.items():
        for method in (THEIRS, OURS):
            fits = _of(task, method)
            foreign = [r["foreign_cores"] for r in fits]
            disturbed |= not max(foreign) <= QUIET
            columns = (", ".join(f"{r[k]:.0f}" for r in fits) for k in ("seconds", "cpu_seconds"))
            others = ", ".join(f"{v:.2f}" for v in foreign)
            yield f"| {name} | {method} | {' | '.join(columns)} | {others} |"
    yield ""
    yield (
        "**Not a speed benchmark: other programs ran meanwhile.**"
        if disturbed
        else "The fits ran alone and one after the other."
    )


def _of(found: Iterable[Row], method: str) -> list[Row]:
    return sorted((r for r in found if r["method"] == method), key=lambda r: r["seed"])


def _distinct(found: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(r[key] for r in found))


def _spread(values: np.ndarray, digits: int) -> str:
    if len(values) == 0:
        return "–"
    mean = f"{values.mean():.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def _mark(fits: list[Row]) -> str:
    number = sum(r["unconverged"] for r in fits)
    return f" † {number} of {len(fits)}" if number else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=rows.FILE)
    parser.add_argument("--readme", type=Path, default=README, help="page to write into")
    given = parser.parse_args()
    section = render(rows.read(given.rows))
    write_section(given.readme, "integration", section)
    print(section)


if __name__ == "__main__":
    main()
