"""Numbers per cell in any unit: dates and seconds keep what float32 would lose, and come back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

import chreode as ch
from chreode import models
from chreode.compute.rng import Rng
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.check import findings, merging, unit
from chreode.schema import UNIT_ROLES, Spec

#: Where numbers begin and how far they are apart: small, dates, unix seconds, nanoseconds, tiny doses.
UNITS = {
    "small": (0, 1), "dates": (20230101, 1), "seconds": (1.7e9, 60), "nanoseconds": (17 * 10**17, 10**12),
    "moles": (0, 1e-12), "negative": (-4e9, 3600),
}  # fmt: skip
PLACES = {"time": "obs/t", "dose": "obs/t", "continuous": ("obs/t",)}


def told(cells, begin, step):
    """Return the cells with six times, as integers where they are whole."""
    cells.obs["t"] = np.arange(cells.n_obs) % 6 * step + begin
    return cells


@pytest.mark.parametrize(("begin", "step"), UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("role", PLACES)
def test_tensors_hold_the_same_numbers_in_every_unit(cells, role, begin, step):
    schema = ch.Schema(counts="layers/counts", **{role: PLACES[role]})
    rows = np.arange(cells.n_obs)

    def tensor(cells):
        spec = learn_spec(Cells(cells, schema), ["counts", role], rows)
        assert Spec.from_dict(spec.as_dict()) == spec
        return open_source(Cells(cells, schema), spec, ["counts", role], {}, rows).batch(rows)[role]

    plain, other = tensor(told(cells.copy(), 0, 1)), tensor(told(cells, begin, step))
    assert len(other.unique()) == 6
    assert np.allclose(other, plain, atol=1e-5)
    assert not [f for f in findings(Cells(cells, schema)) if f.level == "error"]


def numeric(cls):
    """Return the roles of one number per cell that a model reads."""
    return [r for r in (*cls.needs, *cls.uses) if r in (*UNIT_ROLES, "continuous")]


KEYS = models.keys()
NUMERIC = [key for key in KEYS if numeric(models.find(key))]


@pytest.mark.filterwarnings("ignore:.*are held at its end")  # fits of a few steps wander
@pytest.mark.parametrize("key", NUMERIC)
def test_what_a_model_learns_does_not_depend_on_the_unit(cells, quick, key):
    """Day 20230101 as day 0, and every verb answers in the units of the question."""
    cls = models.find(key)
    schema = ch.Schema(counts="layers/counts", **{r: PLACES[r] for r in numeric(cls)[:1]})
    few = cells[:120, :20].copy()
    few.layers["counts"] = few.layers["counts"].toarray() + 1.0
    fits = [
        quick(cls).fit(told(few.copy(), *at), schema, validation=0)
        for at in ((0, 1), (20230101, 1))
    ]
    a, b = (
        f.embed(told(few.copy(), *at)) for f, at in zip(fits, ((0, 1), (20230101, 1)), strict=True)
    )
    assert np.allclose(a, b, atol=1e-3)
    verbs = fits[1].verbs
    if "generate" in verbs:
        new = fits[1].generate(40, seed=1)
        assert set(new.obs["t"]) <= set(20230101.0 + np.arange(6))
        name = numeric(cls)[0].replace("continuous", "t")
        given = fits[1].generate(3, given={name: 20230103})
        assert given.obs["t"].tolist() == [20230103.0] * 3
    if "trajectory" in verbs:
        ask = [20230101.0, 20230102.5, 20230106.0]
        paths = [
            f.trajectory(told(few[:5].copy(), begin, 1), times=[t - 20230101 + begin for t in ask])
            for f, begin in zip(fits, (0, 20230101), strict=True)
        ]
        assert paths[1].obs["t"].tolist() == ask * 5
        assert np.allclose(paths[0].X, paths[1].X, atol=1e-3)
        by_default = fits[1].trajectory(told(few[:1].copy(), 20230101, 1)).obs["t"]
        assert by_default.iloc[[0, -1]].tolist() == [20230101.0, 20230106.0]


def test_a_fit_that_starts_from_another_keeps_its_units(cells, schema):
    first = ch.SCVI(max_epochs=1).fit(cells, schema)
    older = cells.copy()
    older.obs["age"] += 30
    assert ch.SCVI(max_epochs=1).fit(older, schema, from_=first).spec.numbers == first.spec.numbers


def test_a_saved_model_of_other_units_is_refused(cells, schema, tmp_path):
    fitted = ch.SCVI(max_epochs=1).fit(cells, schema)
    again = ch.load(fitted.save(tmp_path / "m"))
    assert again.spec == fitted.spec
    spec = fitted.spec.as_dict()
    for wrong in (
        {},
        {"age": [0.0, 0.0]},
        {"age": [0.0, float("nan")]},
        {"age": [0.0]},
        {"other": [0.0, 1.0]},
    ):
        with pytest.raises(ch.SchemaError, match="malformed"):
            Spec.from_dict({**spec, "numbers": wrong})


@pytest.mark.parametrize("values", [
    [0.0, 1.0, 2.0, 3.0, 4.0, 1e12],
    [1e9, 1e9 + 1e-4, 1e9 + 2e-4, 0.0],
], ids=["outlier", "second unit"])  # fmt: skip
@pytest.mark.parametrize("role", PLACES)
def test_numbers_that_cannot_be_told_apart_are_refused(cells, role, values):
    cells.obs["t"] = np.resize(values, cells.n_obs)
    schema = ch.Schema(counts="layers/counts", **{role: PLACES[role]})
    errors = [f for f in findings(Cells(cells, schema)) if f.level == "error"]
    assert len(errors) == 1
    assert "cannot be distinguished from the next" in errors[0].text
    with pytest.raises(ch.DataError, match="cannot be distinguished from the next"):
        ch.PCA(n_latent=2).fit(cells, schema)


def test_a_query_whose_numbers_merge_in_the_units_of_the_fit_is_refused(cells, schema):
    fitted = ch.SCVI(max_epochs=1).fit(cells, schema)
    cells.obs["age"] = 1.7e9 + np.arange(cells.n_obs) % 6
    with pytest.raises(ch.DataError, match="cannot be distinguished from the next"):
        fitted.reconstruct(cells)


def test_few_among_many_are_a_note():
    values = Rng(0).numpy("normal").normal(size=100_000)
    (found,) = merging("continuous (obs/age)", values, unit(values))
    assert found.level == "note"
    assert found.role == "continuous"


DATES = pd.date_range("2024-01-30", periods=500, freq="D")


@pytest.mark.parametrize("values", [
    DATES, DATES.tz_localize("Europe/Zurich"), DATES - DATES[0], DATES.astype(str), DATES.to_period(),
    np.arange(500) + 1j,
], ids=["dates", "with a zone", "spans", "text", "periods", "complex"])  # fmt: skip
@pytest.mark.parametrize("role", [*PLACES, "size_factor"])
def test_what_is_no_number_is_refused_with_what_to_do(cells, role, values):
    cells.obs["t"] = values
    schema = ch.Schema(counts="layers/counts", **{role: PLACES.get(role, "obs/t")})
    with pytest.raises(ch.DataError, match="expected numbers") as refused:
        ch.PCA(n_latent=2).fit(cells, schema)
    assert ("days" in str(refused.value)) == (getattr(cells.obs["t"].dtype, "kind", "O") in "mM")


def test_what_a_refusal_of_dates_says_to_do_works(cells):
    for values in (DATES, DATES.tz_localize("Europe/Zurich"), DATES - DATES[0]):
        cells.obs["t"] = values
        told = next(f.text for f in findings(Cells(cells, ch.Schema(time="obs/t"))))
        exec(told.partition("their start: ")[2].rstrip("."), {"data": cells, "pandas": pd})
        assert findings(Cells(cells, ch.Schema(time="obs/t"))) == []


@pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean", "u1", "f2", "i8", "bool"])
def test_every_kind_of_number_is_read(cells, kind):
    cells.obs["t"] = pd.array(np.arange(cells.n_obs) % 2, dtype=kind)
    schema = ch.Schema(counts="layers/counts", continuous=("obs/t",))
    assert not [f for f in findings(Cells(cells, schema)) if f.level == "error"]
    if kind[0].isupper():
        cells.obs.loc[cells.obs_names[3], "t"] = pd.NA
        (found,) = [f for f in findings(Cells(cells, schema)) if f.level == "error"]
        assert "NaN or infinite in 1 cell" in found.text


@pytest.mark.parametrize("value", [1e300, 1e-60, 0.0, -1.0])
def test_size_factors_that_float32_cannot_hold_are_refused(cells, value):
    cells.obs["t"] = 1.0
    cells.obs.loc[cells.obs_names[3], "t"] = value
    with pytest.raises(ch.DataError, match="positive"):
        ch.PCA(n_latent=2).fit(cells, ch.Schema(counts="layers/counts", size_factor="obs/t"))


def test_a_condition_beyond_all_numbers_is_refused(cells, schema):
    fitted = ch.SCVI(max_epochs=1).fit(cells, schema)
    for value in (1e300, float("inf"), "soon", None):
        with pytest.raises(ch.SchemaError, match="finite number"):
            fitted.predict(cells, to={"age": value})
    assert dataclasses.replace(fitted.spec, numbers={}).inside("age", 3.0) == 3.0
