"""What a reader must know of a bench: the answer, and the doubts about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from ..compute.convergence import STATES
from ..config.arguments import checked
from ..errors import counted
from ..metrics.table import BASELINE, ScoreTable
from ..text import spelled
from . import dynamics, generation, probe
from .words import joined, listed

#: Seeds below which the spread between fits is not known.
_FEW_SEEDS = 3
#: How notes begin that speak against a row which is no method.
_FAILED = ("not run", "failed", "no ceiling")
#: How notes begin that are told of several rows at once, or in another way.
_OF_MANY = ("one seed", "given")
#: The short notes of a bench, said in full.
_IN_FULL = {
    f"not better than {BASELINE}": f"is not better than {BASELINE}: over resampled cells, its total "
    f"(without one, its mean of the bio or batch metrics) does not stay above that of {BASELINE}",
    **STATES,
    **probe.IN_FULL,
}


@checked
def findings(bench: ScoreTable) -> list[str]:
    """Return in plain words what a reader must know before believing the table: answers, then doubts."""
    return [*answers(bench), *doubts(bench)]


def verdict(bench: ScoreTable) -> str:
    """Return the text of a section: the answer, what else came out, and the doubts right under it."""
    first, *more = answers(bench) or ["Nothing was scored."]
    against = doubts(bench)
    parts = [
        first,
        listed(more),
        *(["Before you rely on this:", listed(against)] if against else []),
    ]
    return "\n\n".join(filter(None, parts))


def answers(bench: ScoreTable) -> list[str]:
    """Return what came out, the answer to the question of the bench first."""
    return list(_leads().get(bench.kind, _winner)(bench))


def _leads() -> Mapping[str, Callable[[ScoreTable], Iterator[str]]]:
    """Return what says the answer of a bench whose answer is not a total."""
    return {
        "generation": generation.lead,
        "augmentation": _rare,
        "dynamics": dynamics.lead,
        "probe": probe.lead,
    }


def doubts(bench: ScoreTable) -> list[str]:
    """Return what speaks against believing it: of the bench, of single methods, of cells."""
    of_totals = [] if bench.kind in _leads() else [*_lacking(bench), *_unsettled(bench)]
    return [*of_totals, *_of_methods(bench), *_context(bench)]


def _winner(bench: ScoreTable) -> Iterator[str]:
    """Say which method wins on the total, or the mean there is, and what the best baseline has."""
    key, totals = _totals(bench)
    if not key:
        return
    low, high = _ends(bench, key)
    best = totals.index[0]
    sentence = f"{totals[best]:z.3f} (95 % interval {low[best]:z.3f} to {high[best]:z.3f})"
    role = bench.methods["role"]
    other = {"method": "baseline", "baseline": "method"}.get(role[best])
    others = [m for m in totals.index if role[m] == other]
    beside = f" The best {other}, {others[0]}, has {totals[others[0]]:z.3f}." if others else ""
    if role[best] == "baseline" and "method" in set(role):
        yield f"No method beats the baselines: {best}, a baseline, has the highest {key}, {sentence}.{beside}"
    else:
        yield f"{best} has the highest {key}, {sentence}.{beside}"


def _totals(bench: ScoreTable) -> tuple[str, pd.Series]:
    """Return the mean that decides, and that of every method but ceilings, the highest first."""
    rows = bench.methods.index[bench.methods["role"] != "ceiling"]
    known = bench.table().loc[rows].dropna(axis=1, how="all")
    key = next((name for name in ("total", "bio", "batch") if name in known), "")
    values = known[key].dropna() if key else pd.Series(dtype=float)
    return key, values.sort_values(ascending=False, kind="stable")


def _ends(bench: ScoreTable, key: str) -> tuple[pd.Series, pd.Series]:
    ends = bench.scores[bench.scores["metric"] == key].groupby("method")
    return ends["low"].min(), ends["high"].max()


def _lacking(bench: ScoreTable) -> Iterator[str]:
    """Say which of the means there is not."""
    if _totals(bench)[0] != "total":
        lacking = {n: why for n, why in bench.lacking().items() if n in ("total", "bio", "batch")}
        yield from (f"There is no {name!r}: {why}" for name, why in lacking.items())


def _unsettled(bench: ScoreTable) -> Iterator[str]:
    """Say which methods the scores do not separate from the winner."""
    key, totals = _totals(bench)
    if not key:
        return
    low, high = _ends(bench, key)
    best = totals.index[0]
    # against PCA there is a paired comparison, which is sharper: its outcome is in the notes
    top = bench.methods.loc[best]
    settled = top["role"] == "method" and f"not better than {BASELINE}" not in top["notes"]
    near = [m for m in totals.index[1:] if high[m] >= low[best] and not (settled and m == BASELINE)]
    if near:
        yield (
            f"The interval{'s' * (len(near) > 1)} of {joined(near)} overlap{'s' * (len(near) == 1)} with "
            f"that of {best}: their order is not settled."
        )


def _rare(bench: ScoreTable) -> Iterator[str]:
    """Say what finds the rare classes best, by each classifier."""
    table = bench.table()
    for metric, name in bench.metrics["name"].items():
        if not str(metric).endswith("_rare") or table[metric].dropna().empty:
            continue
        known = table[metric].astype(float).dropna().sort_values(ascending=False, kind="stable")
        best, *others = (f"{n} {v:z.3f}" for n, v in known.items())
        beside = f"; {joined(others)}" if others else ""
        yield f"{name}: best is {best}{beside}."


def _of_methods(bench: ScoreTable) -> Iterator[str]:
    """Put what is noted of methods in sentences, and what failed of all rows; methods come first."""
    for method, row in bench.methods.sort_values("role", ascending=False, kind="stable").iterrows():
        notes = [n for n in row["notes"] if not n.startswith(_OF_MANY)]
        if (
            row["role"] != "method"
        ):  # with which settings a baseline came out is in the table of methods
            notes = [n for n in notes if n in _IN_FULL or n.startswith(_FAILED)]
        sentence = [_IN_FULL[note] for note in notes if note in _IN_FULL]
        if row["role"] == "method" and 0 < row["seeds"] < _FEW_SEEDS:
            seeds = spelled(row["seeds"], "seed")
            sentence.append(f"was judged under {seeds}, so how much fits differ is not known")
        if sentence:
            yield f"{method} {'; it '.join(sentence)}."
        yield from (f"{method}: {note}." for note in notes if note not in _IN_FULL)


def not_placed(about: Mapping[str, Any]) -> str:
    """Return the sentence on cells that a method cannot place; "" if there are none."""
    left = about.get("not placed", {})
    batches = ", ".join(f"{batch} ({n:,})" for batch, n in left.items())
    return (
        f"Not scored: {counted(sum(left.values()), 'cell')} that a method cannot place, as they lack "
        f"what it reads. By batch: {batches}."
        if left
        else ""
    )


def _context(bench: ScoreTable) -> Iterator[str]:
    """Say what the ceiling is, which totals cannot be compared, and which cells did not count."""
    if bench.kind == "probe":
        yield from probe.context(bench)
    values = bench.table()[list(bench.metrics.index)]
    ceilings = bench.methods.index[bench.methods["role"] == "ceiling"]
    if "total" in values:
        for method in values.loc[ceilings, "total"].dropna().index:
            yield (
                f"The ceiling, {method}, has {values.loc[method, 'total']:z.3f}: what its labels alone "
                "would score. A total above it mixes batches better."
            )
        averaged = bench.metrics.index[bench.metrics["group"].isin(["bio", "batch", "total"])]
        partial = values[list(averaged)].drop(index=ceilings).dropna(how="all").isna()
        if len(partial.drop_duplicates()) > 1:
            fewer = partial.index[partial.sum(axis=1) > partial.sum(axis=1).min()]
            yield (
                f"Totals of {joined(fewer)} average fewer metrics than the others: do not compare them."
            )
    cells, unlabelled = bench.about.get("cells", 0), bench.about.get("unlabelled", 0)
    if unlabelled:
        yield (
            f"No label: {unlabelled:,} of {counted(cells, 'cell')}. Scores that read labels leave them out."
        )
    if left := not_placed(bench.about):
        yield left
    if alone := bench.about.get("untested"):
        yield f"Classes of one cell cannot be tested: {joined(alone)}."
    if bench.kind == "generation" and (few := generation.too_small(bench.about)):
        yield few
