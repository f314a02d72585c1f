"""Coverage of several factors: those that cannot be read are told beside those that can."""

from __future__ import annotations

import importlib
import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.commands import identify
from chreode.data.cells import Cells
from chreode.identify.factors import read_factors

COUNTS = ch.Schema(counts="X")


@pytest.fixture(scope="module")
def data():
    """Return 120 cells of two types, with a depth and columns of every bad kind."""
    rng = np.random.default_rng(0)
    code = np.arange(120) % 2
    rate = rng.lognormal(0, 1, (2, 60))[code] * np.exp(rng.normal(0, 0.5, 120))[:, None]
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(2 * rate).astype("f4")))
    cells.obs_names = [f"cell {i}" for i in range(120)]
    cells.obs["type"] = pd.Categorical(np.array(["a", "b"])[code])
    cells.obs["depth"] = np.log(np.asarray(cells.X.sum(1)).ravel())
    cells.obs["same"], cells.obs["empty"] = 1.0, np.nan
    cells.obs["few"] = np.where(np.arange(120) < 20, np.arange(120.0), np.nan)
    cells.obs["rare"] = np.where(np.arange(120) < 3, "b", "a")
    cells.obs["day"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(120), unit="D")
    cells.obs["zone"] = cells.obs["day"].dt.tz_localize("UTC")
    cells.obs["age"] = pd.to_timedelta(np.arange(120), unit="D")
    cells.obs["date"] = pd.Series(
        [d.date() for d in cells.obs["day"]], cells.obs_names, dtype=object
    )
    cells.obs["words"] = [str(i / 4) for i in range(120)]
    cells.obs["cluster"] = pd.Categorical([str(i) for i in code])
    cells.obs["scores"] = pd.Categorical([str(i) for i in range(120)])
    cells.obs["endless"] = np.inf
    cells.obs["part"] = cells.obs["depth"].where(np.arange(120) > 4, np.inf)
    cells.obs.loc["cell 9", "part"] = np.nan
    return cells


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    module = importlib.import_module("chreode.identify.coverage")  # the function has the same name
    monkeypatch.setattr(module, "HALVINGS", 1)
    monkeypatch.setattr(module, "DRAWS", 20)


def keep(cells, seed):
    return cells


PROBLEMS = {
    "same": "same is constant, so that positives cannot change it. Leave it out.",
    "empty": "empty is missing in all cells. Name another column.",
    "few": "few is known of 20 cells that can be read, and readers need 50. Give more cells.",
    "rare": "classes of rare have too few cells: b (3). Readers need 10 of each",
    "day": "day holds dates. Make it numeric, to days for example: data.obs['day'] = (data.obs['day'] - "
    "data.obs['day'].min()) / pandas.Timedelta(days=1).",
    "zone": "zone holds dates. Make it numeric",
    "date": "date holds dates. Make it numeric",
    "age": "age holds durations. Make it numeric, to days for example: data.obs['age'] = data.obs['age'] / "
    "pandas.Timedelta(days=1).",
    "words": "words is text that is all numbers (such as '0.0'). Make it numeric: data.obs['words'] = "
    "data.obs['words'].astype(float).",
    "scores": "If scores measures something, make it numeric.",
    "endless": "endless has no finite value. Name another column.",
}


def test_what_cannot_be_read_is_told_beside_what_can(data):
    names = ["same", "type", *PROBLEMS.keys() - {"same"}, "depth"]
    found = ch.identify.coverage(keep, data, names, schema=COUNTS, n_views=2)
    table = found.table()
    assert [*table.index] == names
    for name, problem in PROBLEMS.items():
        assert table.loc[name, "note"].startswith("not told: ")
        assert problem in table.loc[name, "note"]
        assert table.loc[name, ["coverage", "low", "high", "readable", "blur"]].isna().all()
    alone = ch.identify.coverage(keep, data, ["type", "depth"], schema=COUNTS, n_views=2)
    pd.testing.assert_frame_equal(table.loc[["type", "depth"]], alone.table())
    assert found.classes.loc["rare", "coverage"].isna().all()
    assert [*found.classes.loc["rare", "cells"]] == [117, 3]
    assert "or there is none: same, " in found.verdict()


@pytest.mark.parametrize("name", PROBLEMS)
def test_where_none_can_be_read_it_is_an_error(data, name):
    with pytest.raises(ch.DataError) as raised:
        ch.identify.coverage(keep, data, [name], schema=COUNTS, n_views=2)
    assert str(raised.value).startswith(f"factors: {PROBLEMS[name][:12]}") or name == "scores"
    assert PROBLEMS[name] in str(raised.value)
    with pytest.raises(ch.DataError, match="same is constant"):
        ch.identify.coverage(keep, data, ["same", name][: 2 - (name == "same")], schema=COUNTS)


def test_a_wrong_name_is_an_error_beside_good_ones(data):
    with pytest.raises(ch.SchemaError, match="there is no column 'tpye'"):
        ch.identify.coverage(keep, data, ["type", "tpye"], schema=COUNTS)


def test_a_category_of_numbers_is_classes(data):
    (cluster,) = read_factors(Cells.of(data, COUNTS), ["cluster"])
    assert cluster.classes == ("0", "1")
    assert not cluster.problem


def test_infinite_values_are_not_told_as_missing(data):
    (part,) = read_factors(Cells.of(data, COUNTS), ["part"])
    assert part.left_out() == [
        "1 cell without a value left out",
        "5 cells with an infinite value left out",
    ]
    assert part.known.sum() == 114


def found_with_classes(several):
    rows = {
        "kind": "classes",
        "readable": 0.9,
        "baseline": 0.5,
        "blur": 0.1,
        "cells": 90,
        "note": "",
    }
    shares = {
        "type": (0.04, 0.02, 0.06),
        "batch": (0.3, 0.0, 0.45),
        "all": (0.95, 0.9, 1.0),
        "wide": (0.95, 0.0, 1.0),
    }
    factors = pd.DataFrame(
        [{**rows, **dict(zip(("coverage", "low", "high"), of, strict=True))} for of in shares.values()],
        index=pd.Index(shares, name="factor"),
    )  # fmt: skip
    index = pd.MultiIndex.from_tuples([("type", "T"), ("type", "DC")], names=("factor", "class"))
    classes = pd.DataFrame(
        {"coverage": [0.0, 0.42], "low": [0.0, 0.3], "high": [0.01, 0.5], "cells": [80, 10]}, index
    )
    if several:
        factors, classes = (
            pd.concat({"mask": x, "thin": x}, names=["positives"]) for x in (factors, classes)
        )
    return ch.identify.Coverage(factors, classes)


@pytest.mark.parametrize("several", [False, True])
def test_the_class_that_changes_most_is_shown(several, tmp_path):
    found = found_with_classes(several)
    assert found.summary().shape[1] <= 6
    text = repr(found)
    assert "DC 0.42" in text
    assert (
        text.count("Classes that change although their factor is kept: DC of type (0.42).")
        == 1 + several
    )
    assert "DC 0.42" in found.report(tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_verdict_goes_by_intervals():
    text = found_with_classes(several=False).verdict()
    assert "in all of its interval): type." in text
    assert "forgetting it: all." in text
    assert "or there is none: batch, wide." in text


def test_positives_may_be_cells_several_times(data):
    """A partner of the same type has the name of another cell: its place says whose positive it is."""
    types = data.obs["type"].to_numpy()

    def partner(cells, seed):
        rng = np.random.default_rng(seed)
        of = {each: np.flatnonzero(types == each) for each in "ab"}
        return cells[[rng.choice(of[each]) for each in types]]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = ch.identify.coverage(partner, data, ["type", "depth"], schema=COUNTS).table()
    assert table.loc["type", "coverage"] < 0.1
    assert table.loc["depth", "coverage"] > 0.8


# the command line


@pytest.fixture
def say(capsys, data, tmp_path, monkeypatch):
    """Run a command line where cells.h5ad is, and return its JSON, or what it says instead."""
    from chreode.commands import app

    bad = [name for name in data.obs if name not in ("type", "depth", "same")]
    cells = data[:, :].copy()
    cells.obs = cells.obs.drop(columns=bad)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)

    def run(line):
        code = app.main(f"identify coverage cells.h5ad --counts X --n-views 2 {line}".split())
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else err

    return run


def test_a_strength_stands_behind_its_augmentation(say, data):
    told = say("--augment mask:0.6 mask+noise:0.5 --factors type same --json")
    given = told["about"]["positives"]
    assert given["mask:0.6"]["mask"] == 0.6
    assert (given["mask+noise:0.5"]["mask"], given["mask+noise:0.5"]["noise_scale"]) == (0.2, 0.5)
    assert identify._positives("bbknn:0.9").mix == 0.9
    python = ch.identify.coverage(
        ch.SimCLR(augment=("mask",), mask=0.6), data, "type", schema=COUNTS, n_views=2
    )
    rows = [row for row in told["table"] if row["positives"] == "mask:0.6"]
    assert rows[0]["coverage"] == pytest.approx(python.table()["coverage"]["type"], rel=1e-12)
    assert rows[1]["coverage"] is None
    classes = [row for row in told["classes"] if row["positives"] == "mask:0.6"]
    assert [row["class"] for row in classes] == ["a", "b"]
    assert [row["coverage"] for row in classes] == pytest.approx([*python.classes["coverage"]])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--augment mask:lots --factors type", "the strength 'lots' is no number. Write mask:0.5"),
        ("--augment mask:2 --factors type", "mask=2"),
        ("--augment maks:0.5 --factors type", "There is no augmentation 'maks'. Did you mean 'mask'?"),
        ("--augment lr:0.5 --factors type", "There is no augmentation 'lr'"),
        ("--augment mask --factors type --rows 'no'", "is no file, and no condition"),
    ],
)  # fmt: skip
def test_bad_words_are_refused(say, line, text):
    assert text in " ".join(say(line).split())


def test_rows_and_genes_are_chosen(say, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"cell {i}" for i in range(80)))
    told = say("--augment mask --factors type --rows names.txt --n-genes 40 --json")
    assert told["about"]["cells"] == 80
    whole = say("--augment mask --factors type --rows names.txt --json")
    assert told["table"][0]["coverage"] != whole["table"][0]["coverage"]


def test_a_folder_is_a_fitted_model(say, data, quick):
    fitted = quick(ch.SimCLR, augment=("mask",), mask=0.4).fit(data, COUNTS)
    fitted.save("fit")
    told = say("--augment fit mask --factors type --json")
    assert told["about"]["positives"]["fit"]["mask"] == 0.4
    alone = ch.identify.coverage(fitted, data, "type", n_views=2).table()
    assert told["table"][0]["coverage"] == pytest.approx(alone["coverage"]["type"])
    assert "Leave --n-genes out" in " ".join(
        say("--augment fit --factors type --n-genes 40").split()
    )


def test_a_table_of_several_is_replaced(say, tmp_path):
    for _ in range(2):
        told = say("--augment mask thin --factors type -o table.csv --json")
    assert told["files"] == ["table.csv"]
