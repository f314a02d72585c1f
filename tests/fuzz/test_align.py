"""Any cells are refused before compute, or become exactly the tensors that a slow loop makes of them."""

from __future__ import annotations

import math
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fuzz.common import examples
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import chreode as ch
from chreode.data.align import MIN_WEIGHT, learn_spec, open_query
from chreode.data.cells import Cells
from chreode.model import Model

SCHEMA = ch.Schema(
    counts="layers/counts", batch="obs/donor", label="obs/type",
    categorical=("obs/plate",), continuous=("obs/age",), missing=("?",),
)  # fmt: skip
ROLES = ["counts", "batch", "label", "categorical", "continuous"]
GENES = st.sampled_from(
    ["g1", "g2", "1", "1.0", "01", "é", "e\u0301", "", "nan", " g1", "G1", "基因"]
)
LEVELS = st.sampled_from(["a", "b", "1", "é", "nan", "A", "True"])
WILD = LEVELS | st.sampled_from(["?", "", None, math.nan, 1, 1.0, True, "unheard of"])
NUMBERS = st.sampled_from([0, 1, 2, 7, 300])
BAD = NUMBERS | st.sampled_from([-1, 0.5, math.nan, math.inf, 2.0**40])
KINDS = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
FORMS = st.sampled_from(
    [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array, np.asfortranarray]
)


@st.composite
def columns(draw, n, values):
    """Draw an obs column: strings, categories (some unused), numbers, or all sorts."""
    drawn = draw(st.lists(values, min_size=n, max_size=n))
    column = pd.Series(drawn, dtype=object)
    kind = draw(st.sampled_from(["object", "inferred", "category"]))
    if kind == "inferred":
        return column.infer_objects()
    if kind == "category":
        unused = ["zzz"] if draw(st.booleans()) else []
        levels = pd.Index(column.dropna().unique()).append(pd.Index(unused, dtype=object))
        return pd.Series(pd.Categorical(column, categories=levels))
    return column


@st.composite
def cells(draw, *, sound=False, genes=None, levels=None):
    """Draw a small AnnData; a `sound` one has no fault that chreode should find."""
    n = draw(st.integers(2 if sound else 1, 6))
    if genes is None:
        genes = draw(st.lists(GENES, min_size=1, max_size=6, unique=sound))
    kind = np.float64 if draw(st.booleans()) else draw(KINDS)
    values = NUMBERS if sound else (BAD if draw(st.booleans()) else NUMBERS)
    dense = draw(arrays(np.float64, (n, len(genes)), elements=values))
    if sound:
        dense[:, 0] += 1
    if np.isfinite(dense).all():
        dense = dense.clip(-128 if kind != np.uint8 else 0, 255).astype(kind)
    ages = NUMBERS if sound else BAD | st.sampled_from(["old", None])
    levels = levels or ([draw(LEVELS), "b"],) * 2
    donors, plates = map(st.sampled_from, levels) if sound else (WILD, WILD)
    obs = pd.DataFrame({"donor": draw(columns(n, donors)), "type": draw(columns(n, WILD))})
    obs["plate"] = draw(columns(n, plates))
    obs["age"] = pd.Series(draw(st.lists(ages, min_size=n, max_size=n)), dtype=object)
    obs["age"] = obs["age"].infer_objects()
    names = [f"c{i}" for i in range(n)]
    if not sound and draw(st.integers(0, 9)) == 0:
        names[-1] = names[0]
    obs.index = pd.Index(names, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own words on names
        made = ad.AnnData(None, obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))
        made.layers["counts"] = draw(FORMS)(dense)
    return made


@st.composite
def queries(draw, spec):
    """Draw cells whose genes are those of the fit, reordered, thinned out, or mixed with others."""
    genes = spec.features["counts"]
    kept = [g for g in draw(st.permutations(genes)) if draw(st.integers(0, 5))]
    more = draw(st.lists(GENES, max_size=3)) if draw(st.integers(0, 2)) == 0 else []
    mixed = draw(st.permutations([*kept, *more]))
    levels = [spec.categories[key] for key in ("batch", "plate")]
    return draw(cells(sound=draw(st.booleans()), genes=mixed or ["x"], levels=levels))


def text(value):
    """Return a category as chreode should read it; None where the cell has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value in ("", "?"):
        return None
    return str(value)


def dense_counts(data):
    counts = data.layers["counts"]
    return np.asarray(counts.toarray() if sp.issparse(counts) else counts, float)


def sound(data, known):
    """Return whether chreode has no reason to refuse: by a loop over everything."""
    counts, names = dense_counts(data), list(data.var_names)
    unique = len(set(names)) == len(names) and len(set(data.obs_names)) == data.n_obs
    whole = np.isfinite(counts).all() and (counts >= 0).all() and (counts == counts // 1).all()
    found = sum(g in names for g in known.features["counts"])
    enough = found / len(known.features["counts"]) >= MIN_WEIGHT and found > 0
    ages = all(isinstance(a, (int, float)) and math.isfinite(a) for a in data.obs["age"])
    return (
        unique and whole and enough and ages and (counts.sum(1) > 0).all()
        and levels(data.obs["type"]).dtype.kind != "f"
        and all(sound_column(data.obs[c], known.categories[k])
                for c, k in (("donor", "batch"), ("plate", "plate")))
    )  # fmt: skip


def sound_column(column, known):
    return levels(column).dtype.kind != "f" and all(text(v) in known for v in column)


def levels(column):
    return column.cat.categories if hasattr(column, "cat") else column


@pytest.mark.slow
@examples(150)
@given(st.data())
def test_a_query_becomes_the_tensors_that_a_loop_makes(data):
    reference = data.draw(cells(sound=True))
    spec = learn_spec(Cells(reference, SCHEMA), ROLES, np.arange(reference.n_obs))
    assert spec.features["counts"] == tuple(reference.var_names)
    for column, key in (("donor", "batch"), ("type", "label"), ("plate", "plate")):
        assert spec.categories[key] == tuple(
            sorted({text(v) for v in reference.obs[column]} - {None})
        )
    query = data.draw(queries(spec))
    before = query.obs.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing features are reported as a warning
        try:
            source = open_query(Cells(query, SCHEMA), spec, ROLES)
        except ch.ChreodeError:
            event("refused")
            if sound(query, spec):
                raise
            return
    event("aligned")
    assert query.obs.equals(before)
    batch = source.batch(np.arange(len(source)))
    counts, names = dense_counts(query), list(query.var_names)
    for j, gene in enumerate(spec.features["counts"]):
        there = gene in names
        expected = counts[:, names.index(gene)] if there else np.zeros(len(source))
        assert batch["counts"][:, j].tolist() == expected.astype(np.float32).tolist()
        assert "counts" not in batch.observed or bool(batch.observed["counts"][j]) == there
    for column, key, role in (("donor", "batch", "batch"), ("type", "label", "label")):
        assert batch[role].tolist() == codes(query.obs[column], spec.categories[key])
    assert batch["categorical"][:, 0].tolist() == codes(
        query.obs["plate"], spec.categories["plate"]
    )
    centre, scale = spec.numbers["age"]
    ages = [np.float32((float(a) - centre) / scale) for a in query.obs["age"]]
    assert batch["continuous"][:, 0].tolist() == ages
    part = np.arange(len(source))[::-2].copy()
    assert (source.batch(part)["counts"] == batch["counts"][part]).all()


def codes(column, known):
    return [known.index(text(v)) if text(v) in known else -1 for v in column]


class Begun(Exception):
    """Compute has begun."""


@pytest.fixture
def begun(monkeypatch):
    def learn(*_):
        raise Begun

    monkeypatch.setattr(Model, "_learn", learn)


@pytest.mark.slow
@examples(150)
@given(made=st.booleans().flatmap(lambda is_sound: cells(sound=is_sound)), fractional=st.booleans())
def test_a_fit_begins_or_says_why_not(made, fractional, begun):
    schema = SCHEMA.with_(fractional=fractional)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ch.SCVI().fit(made, schema, validation=0)
        except ch.ChreodeError:
            event("refused")
            return
        except Begun:
            event("begun")
    counts = dense_counts(made)
    assert np.isfinite(counts).all()
    assert (counts >= 0).all()
    assert fractional or (counts == counts // 1).all()
    assert (counts.sum(1) > 0).all()
    assert made.var_names.is_unique
    assert made.obs_names.is_unique
    for column in ("donor", "plate"):
        levels = [text(v) for v in made.obs[column]]
        assert None not in levels
        assert min(levels.count(level) for level in levels) > 1
