"""A fit takes the steps that it needs, and one that does not come to rest is no row."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.dynamics import fits, report

import chreode as ch


def bench_of(state, seconds):
    methods = pd.DataFrame(
        {"role": ["baseline", "method"], "state": ["rested", state], "seconds": seconds}
    )
    return SimpleNamespace(methods=methods)


@pytest.mark.parametrize(("seconds", "doubled"), [(1e-9, 3), (1e9, 0)])
def test_steps_are_doubled_while_a_fit_improves_and_time_is_left(seconds, doubled):
    seen = []

    def judged(model):
        seen.append(model.match_steps)
        return bench_of("still improving" if len(seen) < 4 else "rested", seconds)

    model, bench = fits.at_rest(ch.NeuralODE(match_steps=10), judged)
    assert seen == [10 * 2**k for k in range(doubled + 1)]
    assert model.match_steps == seen[-1]
    assert bench.methods["state"].iloc[1] == ("rested" if doubled else "still improving")


def test_what_is_not_at_rest_is_left_out_and_named():
    told = {"state": "rested", "scores": {"mse": 1.0}, "seconds": 1.0}
    rows = [
        {"case": {"seed": 0}, "methods": {"mean": told}},
        {"case": {"seed": 0}, "steps": [36, 5, 5], "methods": {"A": {**told, "state": "still improving"}}},
        {"case": {"seed": 1}, "steps": [72, 9, 9], "methods": {"A": told, "B": told}},
        {"case": {"seed": 0}, "methods": {}, "left_out": {"C": "its own steps take about 900 s"}},
    ]  # fmt: skip
    lines = report.across(rows, {"mse": "error"})
    assert sum(line.startswith("| mean |") for line in lines) == 1
    assert sum(line.startswith("| B |") for line in lines) == 1
    assert not any(line.startswith(("| A |", "| C |")) for line in lines)
    assert "A (still improving after 36 + 5 + 5 steps)" in lines[-1]
    assert "C (the default steps take about 900 s)" in lines[-1]


def test_means_have_the_best_in_bold_and_nobody_who_is_left_out():
    def of(error, state="rested"):
        return {"state": state, "scores": {"mse": error}, "seconds": 3.0}

    methods = {report.CEILING: of(0.1), "A": of(1.0), "B": of(3.0), "C": of(0.5, "still improving")}
    rows = [{"case": {"seed": s}, "steps": [1, 1, 1], "methods": methods} for s in (0, 1)]
    rows[1] = {**rows[1], "methods": {"A": of(2.0)}}
    told = report.means(
        {"error": (rows, "mse", min), "seconds": (rows, "seconds", None), "none": (rows, "r2", max)}
    )
    assert told[2:] == [
        "| A | **1.5** | 3 |  |",
        "| B | 3 | 3 |  |",
        f"| ceiling ({report.CEILING}) | 0.1 | 3 |  |",
    ]
