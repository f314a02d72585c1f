"""What `check` says of designs that no number of cells can mend, and of cells that lack a modality."""

from __future__ import annotations

import re

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode import models
from chreode.data.cells import Cells
from chreode.data.check import findings
from chreode.data.design import confounded

N = 120
I = np.arange(N)
PLACES = {
    "batch": "obs/lane", "label": "obs/drug", "perturbation": "obs/drug", "time": "obs/drug",
    "dose": "obs/drug", "categorical": ("obs/lane",), "continuous": ("obs/lane",),
}  # fmt: skip
TAKEN_OUT, ASKED = ("batch", "categorical", "continuous"), ("label", "perturbation", "time", "dose")


def told(lane, drug, out, asked):
    """Return the findings of a design of two columns."""
    names = {"continuous": float, "time": float, "dose": float}
    obs = pd.DataFrame({"lane": lane, "drug": drug}, index=I.astype(str))
    for column, role in (("lane", out), ("drug", asked)):
        obs[column] = obs[column].astype(names.get(role, int)).astype(names.get(role, str))
    counts = np.random.default_rng(0).poisson(3.0, (N, 5)) + 1.0
    schema = ch.Schema(counts="X", **{role: PLACES[role] for role in (out, asked)})
    found = findings(Cells(ad.AnnData(counts, obs=obs), schema))
    return [f for f in found if f.role != "counts" and "mean course" not in f.text]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("out", TAKEN_OUT)
@pytest.mark.parametrize(("lane", "drug", "warned"), [
    (I % 2, I % 2, True), (I % 4, I % 2, True), (I % 2, I % 4, True), (I // 2 % 2, I % 2, False),
    (I % 3, I % 2, False),
], ids=["the same", "nested", "one batch each", "crossed", "crossed unevenly"])  # fmt: skip
def test_what_is_taken_out_and_what_is_asked_about_must_cross(lane, drug, warned, out, asked):
    found = told(lane, drug, out, asked)
    assert ["warning"] * warned == [f.level for f in found]
    assert all("obs/lane" in f.text and "obs/drug" in f.text for f in found)


def test_a_lone_class_is_a_note():
    drug = np.where(I % 40 == 1, 7, I // 2 % 2)
    (found,) = told(I % 2, drug, "batch", "label")
    assert found.level == "note"
    assert "1 value of label (obs/drug)" in found.text


@pytest.mark.parametrize(("out", "asked"), [("continuous", "label"), ("categorical", "label")])
def test_what_is_alike_in_all_cells_is_said(out, asked):
    (found,) = told(I * 0, I % 2, out, asked)
    assert found.level == "warning"
    assert "obs/lane" in found.text


def test_values_of_one_cell_each_tell_nothing_of_the_design():
    assert told(I / 7, I % 2, "continuous", "label") == []


def test_two_columns_of_one_split_are_said():
    obs = pd.DataFrame(
        {"a": [f"a{i}" for i in I % 3], "b": [f"b{i}" for i in I % 3]}, index=I.astype(str)
    )
    cells = ad.AnnData(np.ones((N, 5)), obs=obs)
    for roles in (
        {"categorical": ("obs/a", "obs/b")},
        {"batch": "obs/a", "categorical": ("obs/b",)},
    ):
        (found,) = [
            f for f in findings(Cells(cells, ch.Schema(counts="X", **roles))) if f.level != "note"
        ]
        assert found.level == "warning"
        assert "same split" in found.text


def test_the_worst_comes_first_in_whatever_order_columns_stand():
    columns = {
        "batch (obs/lane)": I % 2, "categorical/donor (obs/donor)": I % 4,
        "categorical/run (obs/run)": I % 2, "continuous/age (obs/age)": I * 0.0,
        "continuous/bmi (obs/bmi)": I * 0.0, "label (obs/type)": np.where(I % 40 == 1, 7, I // 4 % 2),
        "perturbation (obs/drug)": I % 2,
    }  # fmt: skip
    columns = {said: pd.Series(values) for said, values in columns.items()}
    told = list(confounded(columns))
    assert told == list(confounded(dict(reversed(columns.items()))))
    heads = [
        re.match(r"(warning|note): (.*? same split|Every value|.*? is|1 v)", f"{a}: {c}")
        for a, _, c in told
    ]
    assert [head[0] for head in heads] == [
        "warning: batch (obs/lane) and perturbation (obs/drug) are the same split",
        "warning: categorical/run (obs/run) and perturbation (obs/drug) are the same split",
        "warning: Every value",
        "warning: batch (obs/lane) and categorical/run (obs/run) are the same split",
        "warning: continuous/age (obs/age) is",
        "warning: continuous/bmi (obs/bmi) is",
        *["note: 1 v"] * 3,
    ]  # fmt: skip


@pytest.fixture
def mosaic():
    """Cells of which some lack each modality, and a third that all lack; batches stand in a modality."""
    rng = np.random.default_rng(0)

    def part(rows, g, prefix):
        obs = pd.DataFrame(
            {"batch": [f"b{i % 2}" for i in rows], "age": rows % 30 + 20.0},
            index=[f"c{i}" for i in rows],
        )
        x = sp.csr_matrix(rng.poisson(2.0, (len(rows), g)).astype("f4") + 1)
        return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"{prefix}{i}" for i in range(g)]))

    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": part(I, 20, "g"), "adt": part(I[20:], 8, "p")})


#: Models that read one modality, at any time.
OF_ONE = [
    key
    for key in models.keys()  # noqa: SIM118 (a function)
    if not {"time", "protein|accessibility"} & {*models.find(key).needs}
]


@pytest.mark.parametrize("key", OF_ONE)
def test_cells_outside_of_a_modality_are_asked_for_nothing(mosaic, quick, key):
    model = quick(models.find(key))
    roles = {"batch": "adt:obs/batch", "continuous": ("adt:obs/age",)}
    counts = "counts" if any("counts" in need.split("|") for need in model.needs) else "expression"
    schema = ch.Schema(**{counts: "adt:X"}, **roles)
    assert not [f for f in findings(Cells(mosaic, schema)) if f.level == "error"]
    fitted = model.fit(mosaic, schema)
    found = fitted.embed(mosaic)
    assert np.isnan(found[:20]).all()
    assert np.isfinite(found[20:]).all()
    assert fitted.spec.n_cells == 100


def test_cells_of_another_modality_are_asked(mosaic):
    schema = ch.Schema(counts="rna:X", protein="adt:X", batch="adt:obs/batch")
    (found,) = [f for f in findings(Cells(mosaic, schema)) if f.level == "error"]
    assert "no value in 20 cells" in found.text
