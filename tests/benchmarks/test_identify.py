"""The benchmark of known factors: no well is in two folds, and the page says what the rows say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from benchmarks.common import ROOT, read
from benchmarks.identify import answer, cells, covered, relation, wells
from scipy.stats import spearmanr

FACTORS = {name: of.factors for name, of in wells.DATA.items()}


def row(data, model, views, seed, value, **own):
    of = {factor: own.get(factor, value) for factor in wells.EVERY[data].factors}
    case = {"data": data, "model": model, "views": views, "seed": seed}
    return {"case": case, "r2": dict.fromkeys(wells.READERS, of)}


def reach(data, views, coverage, blur=0.5):
    of = {"coverage": coverage, "low": coverage, "high": coverage, "blur": blur}
    return {
        "case": {"data": data, "views": views, "seed": 0}, "factors": dict.fromkeys(FACTORS[data], of),
    }  # fmt: skip


def test_wells_of_one_name_share_a_fold():
    names = pd.Series(np.repeat([f"A{k}" for k in range(20)], 2))
    cuts = [wells.folds(names, seed) for seed in (0, 1)]
    for cut in cuts:
        assert sorted(np.concatenate([judged for _, judged in cut])) == list(range(40))
        for learned, judged in cut:
            assert not set(names[learned]) & set(names[judged])
    assert any((a != b).any() for (_, a), (_, b) in zip(*cuts, strict=True))


def test_a_replicate_tells_nothing_of_itself():
    """Vectors that only name the well tell its number in a replicate, and of other wells nothing."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, 100)), 2, axis=0)
    obs = pd.DataFrame(
        {"cell_id": np.repeat(np.arange(60), 2), "y": np.repeat(rng.normal(size=60), 2)}
    )
    assert max(of["y"] for of in wells.r2(x, obs, ["y"]).values()) < 0.1
    apart = obs.assign(cell_id=np.arange(120))
    assert wells.r2(x, apart, ["y"])["linear"]["y"] > 0.5


def test_r2_is_that_of_the_factor():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(400, 3)), rng.normal(size=400)
    y = x @ [1.0, 2.0, -1.0]
    obs = pd.DataFrame({"cell_id": range(400), "clean": y, "noisy": y + np.sqrt(6) * noise})
    found = wells.r2(x, obs, ["clean", "noisy"])["linear"]
    assert found["clean"] == pytest.approx(1)
    assert found["noisy"] == pytest.approx(0.5, abs=0.06)


def test_every_case_is_named_once_and_its_model_can_be_made():
    found = [json.dumps(case) for case in cells.cases()]
    assert len(set(found)) == len(found)
    for case in cells.cases():
        cells.model_of(case)
    first = [case["views"] for case in cells.cases() if case["model"] == "SimCLR"][:18:2]
    assert first == list(cells.VIEWS)[: cells.N_DEFAULT]
    strengths = [cells.model_of({"model": "SimCLR", "views": v}) for v in cells.VIEWS]
    assert len({str(model) for model in strengths}) == len(cells.VIEWS)
    assert len(covered.cases()) == len(wells.DATA)


@pytest.mark.parametrize("sign", [1, -1])
def test_correlations_find_a_relation_and_its_sign(sign):
    rng = np.random.default_rng(1)
    views = list(cells.VIEWS)
    strength = dict(zip(views, rng.permutation(len(views)) / len(views), strict=True))
    told = [
        row(data, "SimCLR", v, seed, 0.5 + sign * 0.4 * strength[v] + 0.02 * rng.normal())
        for data in wells.DATA for v in views for seed in range(3)
    ]  # fmt: skip
    reached = [reach(data, v, strength[v], rng.random()) for data in wells.DATA for v in views]
    table = relation.pairs(told, reached, "SimCLR")
    assert set(map(len, table["r2"])) == {3}
    for (_, factor), (rho, low, high) in relation.correlations(table, "coverage").items():
        assert sign * rho > 0.9, factor
        assert min(sign * low, sign * high) > 0.8
    said = "\n".join(answer.render([*told, *_baselines(0.9)], reached))
    assert f"Yes: the more of it an augmentation has, the {'more' if sign > 0 else 'less'}" in said


def test_intervals_of_what_is_unrelated_hold_0():
    """Of 60 predictors of noise, about one in twenty does not."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [{"data": "d", "views": str(v), "factor": str(f), "coverage": rng.random(), "r2": [r, r + 0.01]}
         for f in range(60) for v, r in enumerate(rng.random(19))]
    )  # fmt: skip
    found = relation.correlations(table, "coverage")
    del found["d", relation.POOLED]
    wrong = sum(not low < 0 < high for _, low, high in found.values())
    assert len(found) == 60
    assert wrong <= 9


def test_ranks_are_correlated_as_scipy_has_it():
    x, y = np.random.default_rng(0).integers(6, size=(2, 3, 12)).astype(float)
    x[0, 3] = np.nan
    assert relation.spearman(x, y) == pytest.approx(
        [spearmanr(a, b, nan_policy="omit").statistic for a, b in zip(x, y, strict=True)]
    )
    constant, few = np.ones((1, 12)), np.full((1, 12), np.nan)
    few[0, :2] = 0, 1
    assert np.isnan(relation.spearman(constant, y[:1])).all()
    assert np.isnan(relation.spearman(few, y[:1])).all()


def _baselines(value):
    """PCA and an untrained network, as two models that each have a row."""
    return [
        row(data, model, cells.AS_IT_IS, 0, value - k / 2)
        for data in wells.DATA
        for k, model in enumerate(("PCA, 10", cells.UNTRAINED))
    ]


def test_unread_factors_are_left_out_and_few_give_no_number():
    table = pd.DataFrame(
        {"data": "d", "views": list("abcd"), "factor": "f", "coverage": [0.1, 0.2, 0.3, np.nan],
         "r2": [[0.3], [0.2], [0.1], [9.0]]}
    )  # fmt: skip
    assert relation.correlations(table, "coverage")["d", "f"][0] == pytest.approx(-1)
    few = table.assign(coverage=[0.1, np.nan, 0.3, np.nan])
    assert np.isnan(relation.correlations(few, "coverage")["d", "f"]).all()


def test_tables_name_the_worst_factor_and_the_best_embedding():
    told = [
        *_baselines(0.9),
        *(row(data, "scVI", cells.AS_IT_IS, seed, 0.6 + seed / 10, mrna_amount=0.95, n_h1975=0.2)
          for data in wells.DATA for seed in (0, 1)),
    ]  # fmt: skip
    lines = cells.render(told)
    assert "| PCA, 10 | **0.90** | 0.90 | **0.90** | h2228_prop 0.90 |" in lines
    assert "| scVI | 0.65 | **0.95** | 0.50 | n_h1975 0.20 |" in lines
    assert any(line.startswith("| scVI | 0.65 (0.6 to 0.7) |") for line in lines)
    said = answer.render(told, [])
    assert said[0].startswith(
        "**PCA with ten components tells most of the shares of three RNAs and of the numbers"
    )
    assert any("best model with its default options is scVI (0.95)" in line for line in said)


def test_rows_that_are_kept_parse_and_are_of_asked_cases():
    asked = {name: [json.dumps(c) for c in table.cases()] for name, table in
             (("cells", cells), ("covered", covered))}  # fmt: skip
    for name, of in asked.items():
        for kept in read(ROOT / "benchmarks" / "identify" / f"{name}.jsonl"):
            assert json.dumps(kept["case"]) in of
            assert {"data", "seconds", "code"} <= set(kept)
            assert name != "covered" or list(kept["views"]) == list(cells.VIEWS)
