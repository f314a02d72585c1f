"""What the tables of dynamics share: means over seeds, paired ratios, what validation would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from scipy import stats

from chreode.bench.forecasters import CEILING

from ..common import Row, spread, still_improving
from ..speed.ratios import markdown


def _by_method(rows: Sequence[Row], metric: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, told in row["methods"].items():
            if metric in told["scores"]:
                found.setdefault(name, {})[row["case"]["seed"]] = told["scores"][metric]
    return found


def across(rows: Sequence[Row], shown: Mapping[str, str]) -> list[str]:
    """Return methods x metrics: the mean over seeds, the lowest and the highest; and who is left out.

    A method that still improved in all the time it had is left out, and named. Rows of before that rule
    say how many fits still improved.
    """
    rows, left_out = at_rest(rows)
    names = dict.fromkeys(name for row in rows for name in row["methods"])
    names |= {CEILING: names.pop(CEILING)} if CEILING in names else {}
    by_metric = {metric: _by_method(rows, metric) for metric in shown}
    lines = []
    for name in names:
        cells = (by_metric[metric].get(name, {}).values() for metric in shown)
        told = [r["methods"][name] for r in rows if name in r["methods"]]
        seconds, moving = fmean(t["seconds"] for t in told), sum(map(still_improving, told))
        lines.append((
            name, *(spread(list(c)) if c else "" for c in cells), f"{seconds:.0f}",
            f"{moving} of {len(told)}" if moving else "",
        ))  # fmt: skip
    table = markdown(("", *shown.values(), "seconds", "still improving"), lines)
    return [*table, *(["", f"Left out: {'; '.join(left_out)}."] if left_out else [])]


def at_rest(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows without methods that did not come to rest, and why these are left out."""
    gone = {name: why for row in rows for name, why in row.get("left_out", {}).items()}
    for row in rows:
        for name, told in row["methods"].items():
            if told.get("state") == "still improving":
                gone[name] = f"still improving after {' + '.join(map(str, row['steps']))} steps"
    kept = [
        {**row, "methods": {n: told for n, told in row["methods"].items() if n not in gone}}
        for row in rows
    ]
    return [row for row in kept if row["methods"]], [f"{n} ({why})" for n, why in gone.items()]


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
    """Say which method has the smallest error `by`, seed by seed, and its ratio to the best baseline's."""
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
    told = ", ".join(picks)
    return (
        f"Validation chooses {told}: {interval(ratios)} of the error of the best baseline ({best})."
    )
