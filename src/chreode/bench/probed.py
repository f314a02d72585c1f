"""What was found in the tasks of a probe, as one bench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..compute.convergence import DOUBTFUL, worst
from ..metrics import proteins as of_proteins
from ..metrics import typing as of_types
from ..metrics.scaled import scaled_totals
from ..metrics.table import BASELINE
from ..trials.trial import Outcome
from .embedded import Method
from .probing import AT_DEPTHS, CLASSIFIERS, DECISIVE, Posed
from .table import Bench

#: The tasks, and what each is called in a note.
TASKS = {"correction": "correction", "typing": "typing", "missing": "missing protein"}
#: How a note on a row begins that failed in a task.
_FAILED = {
    task: f"failed in {TASKS[task]}, so that it has no {score}: "
    for task, score in (
        ("correction", "total"), ("typing", "macro-F1"), ("missing", "correlation per protein"),
    )
}  # fmt: skip
_SCALED = (
    "0.6 bio + 0.4 batch of up to ten metrics, each scaled from the worst row to the best: the Total of "
    "scSSL-Bench, which depends on the other rows"
)
_TABLES = ("by_class", "confusion", "calibration")
#: The order of rows.
_ROLES = ("baseline", "control", "method", "ceiling")


def judged(
    task: str,
    rows: Sequence[Method],
    outcomes: Mapping[str, Mapping[int, Outcome]],
    given: Posed,
    about: Mapping[str, Any],
) -> Bench:
    """Return a task as a bench."""
    done = [(n, s, o) for n, of in outcomes.items() for s, o in of.items() if not o.failed]

    def table(key: str) -> pd.DataFrame:
        return pd.DataFrame(
            [{"method": n, "seed": s, **row} for n, s, o in done for row in o.row.get(key, [])]
        )

    pictures: dict[str, np.ndarray] = {}
    for name, _, outcome in done:
        if "embedding" in outcome.arrays:
            pictures.setdefault(name, outcome.arrays["embedding"])
    scores = table("scores")
    metrics = pd.DataFrame(_metrics(task, given)).set_index("metric")
    return Bench(
        "probe",
        scores,
        pd.DataFrame([_summary(task, row, outcomes) for row in rows]).set_index("method"),
        metrics[metrics.index.isin(scores["metric"])],
        about,
        embeddings=pictures,
        labels={role: values.iloc[given.cells] for role, values in given.named.items()},
        **{key: table(key) for key in _TABLES},
    )


def _metrics(task: str, given: Posed) -> Iterator[dict[str, Any]]:
    """Yield the metrics of a task: key, name, group, best value and meaning."""
    if task == "missing":
        for key, (name, best, about) in of_proteins.METRICS.items():
            yield {"metric": key, "name": name, "group": "protein", "best": best, "about": about}
        name, best, _ = of_types.METRICS["f1"]
        about = "types that the 11 nearest cells tell from foretold proteins, learned from measured ones"
        yield {"metric": "protein_f1", "name": f"{name}, foretold", "group": "protein", "best": best,
               "about": about}  # fmt: skip
        return
    for classifier, (called, long) in CLASSIFIERS.items():
        for key, (name, best, about) in of_types.METRICS.items():
            yield {
                "metric": f"{classifier}_{key}", "name": f"{name}, {called}", "group": called, "best": best,
                "about": f"{about}; by {long}",
            }  # fmt: skip
    for depth in given.depths:
        share = f"{100 * depth:g} %"
        for classifier, (called, long) in CLASSIFIERS.items():
            for key in AT_DEPTHS:
                name, best, _ = of_types.METRICS[key]
                yield {
                    "metric": f"{classifier}_{key}_at_{depth:g}", "name": f"{name}, {called}, {share}",
                    "group": f"{share} of counts", "best": best,
                    "about": f"{name} of query cells thinned to {share} of their counts; by {long}",
                }  # fmt: skip


def _summary(
    task: str, row: Method, outcomes: Mapping[str, Mapping[int, Outcome]]
) -> dict[str, Any]:
    """Return what is to be known of a row: and if it beats the baseline over the same resamples."""
    mine = outcomes[row.name].values()
    done = [outcome for outcome in mine if not outcome.failed]
    state = worst(outcome.row["state"] for outcome in done)
    failed = dict.fromkeys(o.note.removeprefix("failed: ") for o in mine if o.failed)
    notes = [*row.note.split("; ")] if row.note else []
    notes += [_FAILED[task] + why for why in failed]
    notes += dict.fromkeys(remark for o in done for remark in o.row["remarks"])
    if row.role == "method" and done:
        base = [o for o in outcomes.get(BASELINE, {}).values() if not o.failed]
        for key in DECISIVE[task]:
            sides = [[o.arrays[key] for o in of if key in o.arrays] for of in (done, base)]
            if not all(sides):
                continue
            apart = np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0)
            if np.isfinite(apart).any():
                if np.nanquantile(apart, 0.025) <= 0:
                    notes.append(f"not better than {BASELINE} in {TASKS[task]}")
                break
        notes += [state] if state in DOUBTFUL else []
    return {
        "method": row.name, "role": row.role, "seeds": len(done), "state": state,
        "seconds": float(np.mean([o.row["seconds"] for o in done] or [np.nan])), "notes": notes,
    }  # fmt: skip


def joined(parts: Mapping[str, Bench], sizes: pd.DataFrame) -> Bench:
    """Return the tasks as one bench: a row that is in several has the scores of all."""
    benches = {
        task: _corrected(bench) if task == "correction" else bench for task, bench in parts.items()
    }
    tables = [bench.methods for bench in benches.values()]
    names = pd.concat([t["role"] for t in tables])
    names = names[~names.index.duplicated()]
    order = names.map(_ROLES.index).sort_values(kind="stable").index
    first = next(iter(benches.values()))
    about: dict[str, Any] = {}
    for bench in benches.values():
        about |= bench.about
    return Bench(
        "probe",
        pd.concat([bench.scores for bench in benches.values()], ignore_index=True),
        pd.DataFrame([_row(name, tables) for name in order]).set_index("method"),
        pd.concat([bench.metrics for bench in benches.values()]),
        {**about, "tasks": [*benches]},
        embeddings=first.embeddings,
        labels=first.labels,
        sizes=sizes,
        **{
            key: pd.concat([getattr(bench, key) for bench in benches.values()], ignore_index=True)
            for key in _TABLES
        },
    )


def _row(name: str, tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Return the row of a method in all tasks: its notes once each, and the time of all."""
    mine = [table.loc[name] for table in tables if name in table.index]
    seconds = [row["seconds"] for row in mine if np.isfinite(row["seconds"])]
    return {
        "method": name, "role": mine[0]["role"], "seeds": max(row["seeds"] for row in mine),
        "state": worst(row["state"] for row in mine),
        "seconds": float(sum(seconds)) if seconds else np.nan,
        "notes": [*dict.fromkeys(note for row in mine for note in row["notes"])],
    }  # fmt: skip


def _corrected(bench: Bench) -> Bench:
    """Return a bench of integration as the task of correction, with the scaled Total beside raw scores."""
    task = TASKS["correction"]
    beside = bench.methods.index[bench.methods["role"] != "ceiling"]
    totals = scaled_totals(bench.table().loc[beside, bench.metrics.index]).dropna()
    first = bench.scores.groupby("method")["seed"].first()
    nan = float("nan")
    scaled = [
        {"method": name, "seed": int(first[name]), "metric": "scaled_total", "value": float(value),
         "low": nan, "high": nan, "reason": ""}
        for name, value in totals.items()
    ]  # fmt: skip
    about = {
        "metric": "scaled_total",
        "name": "min-max Total",
        "group": "scaled",
        "best": 1.0,
        "about": _SCALED,
    }
    renamed = {f"not better than {BASELINE}": f"not better than {BASELINE} in {task}"}

    def told(note: str) -> str:
        return renamed.get(note, note.replace("failed: ", _FAILED["correction"], 1))

    scores = (
        pd.concat([bench.scores, pd.DataFrame(scaled)], ignore_index=True)
        if scaled
        else bench.scores
    )
    metrics = (
        pd.concat([bench.metrics, pd.DataFrame([about]).set_index("metric")])
        if scaled
        else bench.metrics
    )
    notes = bench.methods["notes"].map(lambda of: [told(note) for note in of])
    return Bench(
        "probe",
        scores,
        bench.methods.assign(notes=notes),
        metrics,
        bench.about,
        bench.embeddings,
        bench.labels,
    )
