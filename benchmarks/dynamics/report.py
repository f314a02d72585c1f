"""What the tables of dynamics share: means over seeds, paired ratios, what validation would choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

import numpy as np
from scipy import stats

from chreode.bench.forecasters import CEILING

from ..common import Row, spread, still_improving
from ..speed.ratios import markdown

#: Rows of a column, its metric, and which of two values is the better one (None: neither).
Column: TypeAlias = tuple[Sequence[Row], str, Callable[..., float] | None]
#: What pages call rows that have another name, or whose name says too little.
SAID = {CEILING: f"ceiling ({CEILING})"}


def _by_method(rows: Sequence[Row], metric: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, told in row["methods"].items():
            if metric in told["scores"]:
                found.setdefault(name, {})[row["case"]["seed"]] = told["scores"][metric]
    return found


def means(columns: Mapping[str, Column]) -> list[str]:
    """Return methods x columns as means over seeds, the best in bold; `left_out` are not in their column."""
    names: list[str] = []
    found: dict[str, dict[str, float]] = {}
    best: dict[str, float] = {}
    for title, (rows, metric, better) in columns.items():
        kept, _ = at_rest(rows)
        names += [n for n in _names(kept) if n not in names]
        values = _seconds(kept) if metric == "seconds" else _by_method(kept, metric)
        found[title] = {name: fmean(of.values()) for name, of in values.items()}
        rivals = [value for name, value in found[title].items() if name != CEILING]
        if better and rivals:
            best[title] = better(rivals)
    names.sort(key=CEILING.__eq__)  # last
    lines = []
    for name in names:
        cells = []
        for title, of in found.items():
            told = "" if name not in of else _shown(columns[title][1], of[name])
            bold = name in of and name != CEILING and of[name] == best.get(title)
            cells.append(f"**{told}**" if bold else told)
        if any(cells):
            lines.append((SAID.get(name, name), *cells))
    return markdown(("", *columns), lines)


def _names(rows: Sequence[Row]) -> list[str]:
    return [*dict.fromkeys(name for row in rows for name in row["methods"])]


def _seconds(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, told in row["methods"].items():
            found.setdefault(name, {})[row["case"]["seed"]] = told["seconds"]
    return found


def _shown(metric: str, value: float) -> str:
    return f"{value:.0f}" if metric == "seconds" else f"{value:.3g}"


def across(rows: Sequence[Row], shown: Mapping[str, str]) -> list[str]:
    """Return methods x metrics: the mean over seeds, the lowest and the highest; and who is left out.

    A method that still improved in all the time it had is left out, and named. Rows of before that rule
    say how many fits still improved.
    """
    rows, left_out = at_rest(rows)
    names = sorted(_names(rows), key=CEILING.__eq__)
    by_metric = {metric: _by_method(rows, metric) for metric in shown}
    lines = []
    for name in names:
        cells = (by_metric[metric].get(name, {}).values() for metric in shown)
        told = [r["methods"][name] for r in rows if name in r["methods"]]
        seconds, moving = fmean(t["seconds"] for t in told), sum(map(still_improving, told))
        lines.append((
            SAID.get(name, name), *(spread(list(c)) if c else "" for c in cells), f"{seconds:.0f}",
            f"{moving} of {len(told)}" if moving else "",
        ))  # fmt: skip
    table = markdown(("", *shown.values(), "seconds", "still improving"), lines)
    of_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reason = why.replace("its own steps take", "the default steps take")
        of_reason.setdefault(reason, []).append(name)
    said = "; ".join(f"{', '.join(who)} ({why})" for why, who in of_reason.items())
    return [*table, *(["", f"Left out: {said}."] if said else [])]


def at_rest(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Return the rows without methods that did not converge, and why each of these is left out."""
    gone = {name: why for row in rows for name, why in row.get("left_out", {}).items()}
    for row in rows:
        for name, told in row["methods"].items():
            if told.get("state") == "still improving":
                gone[name] = f"still improving after {' + '.join(map(str, row['steps']))} steps"
    kept = [
        {**row, "methods": {n: told for n, told in row["methods"].items() if n not in gone}}
        for row in rows
    ]
    return [row for row in kept if row["methods"]], gone


def interval(ratios: Sequence[float]) -> str:
    """Return the geometric mean of paired ratios, with a 95 % t interval over seeds."""
    logs = np.log(np.asarray(ratios, float))
    if len(logs) < 2 or not np.isfinite(logs).all() or np.ptp(logs) == 0:
        return f"{np.exp(logs.mean()):.3g}"
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    low, high = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
    return f"{np.exp(logs.mean()):.3g} ({low:.3g} to {high:.3g})"


def ratios(rows: Sequence[Row], name: str, metric: str, *, invert: bool = False) -> dict[str, str]:
    """Return the ratio of one method's metric to every other's (inverted: theirs to its)."""
    found = _by_method(rows, metric)
    found.pop(CEILING, None)
    mine = found.pop(name, {})
    told = {}
    for other, theirs in found.items():
        seeds = sorted(mine.keys() & theirs.keys())
        if seeds:
            pairs = [(theirs[s], mine[s]) if invert else (mine[s], theirs[s]) for s in seeds]
            told[other] = interval([a / b for a, b in pairs])
    return told


def against(rows: Sequence[Row], name: str, metric: str, *, invert: bool = False) -> list[str]:
    """Return a table of these ratios."""
    told = ratios(rows, name, metric, invert=invert)
    return markdown(("", "ratio, 95 % interval over seeds"), list(told.items()))


def beside(names: Sequence[str], told: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a table of such ratios, methods x whatever they were told for."""
    return markdown(("", *told), [(n, *(f.get(n, "") for f in told.values())) for n in names])


def chosen(rows: Sequence[Row], by: str, metric: str) -> str:
    """Say whose error `by` is smallest, seed by seed, and its ratio to the best baseline's."""
    plain = {
        name for row in rows if row["case"]["method"] == "baselines" for name in row["methods"]
    }
    baselines = plain - {CEILING}
    valid, test = _by_method(rows, by), _by_method(rows, metric)
    fitted = [name for name in valid if name not in plain]
    best = min(
        (b for b in baselines if b in test), key=lambda b: fmean(test[b].values()), default=""
    )
    if not fitted or not best:
        return ""
    picks, ratios = [], []
    for seed in test[best]:
        having = [name for name in fitted if seed in valid[name]]
        if having:
            pick = min(having, key=lambda name, seed=seed: valid[name][seed])
            picks.append(pick)
            ratios.append(test[pick][seed] / test[best][seed])
    told = ", ".join(f"{name} ({n} of {len(picks)} seeds)" for name, n in Counter(picks).items())
    return (
        f"The error of validation is smallest for {told}. On new clips its error is "
        f"{interval(ratios)} times that of the best baseline ({best})."
    )
