"""Places, roles and specs."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import chreode as ch
from chreode.data.align import condition_code, gene_positions, learn_spec
from chreode.data.cells import Cells
from chreode.schema import Place, Spec


@pytest.mark.parametrize(
    "text",
    [
        "X",
        "raw",
        "layers/counts",
        "obs/batch",
        "obsm/protein",
        "rna:X",
        "rna:layers/a/b",
        "obs/rna:batch",
    ],
)
def test_a_place_is_spelled_as_it_was_read(text):
    assert str(Place.parse(text)) == text


def test_a_colon_in_a_column_name_is_no_modality():
    assert Place.parse("obs/rna:batch") == Place("obs", "rna:batch")
    assert Place.parse("rna:obs/batch") == Place("obs", "batch", "rna")
    assert Place.parse("rna:v2:obs/a:b") == Place("obs", "a:b", "rna:v2")


@pytest.mark.parametrize(
    "text", ["", "x", "layers", "layers/", "obs", "X/counts", "varm/a", "rna:", "rna:layer/x"]
)
def test_what_is_no_place_is_refused_with_the_spelling(text):
    with pytest.raises(ch.SchemaError, match="does not name a place.*layers/NAME"):
        Place.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_place_or_a_clear_error(text):
    with contextlib.suppress(ch.SchemaError):
        assert str(Place.parse(text)) == text


def test_schemas_survive_json():
    schema = ch.Schema(
        counts="X", categorical=("obs/a", "obs/b"), missing=("nan",), fractional=True
    )
    assert ch.Schema.from_dict(schema.as_dict()) == schema
    assert ch.Schema().as_dict() == {}


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"categorical": "obs/a"}, "expected a tuple"),
        ({"categorical": ("obs/a", "obs/a")}, "named twice"),
        ({"categorical": ("obs/batch",)}, "like a role"),
        ({"control": "ctrl"}, "no perturbation"),
        ({"batch": ""}, "expected a place"),  # as of a variable of the shell that is not set
        ({"views": ("",)}, "does not name a place"),
    ],
)
def test_contradictions_are_refused(roles, said):
    with pytest.raises(ch.SchemaError, match=said):
        ch.Schema(**roles)


def test_a_misspelt_role_is_suggested():
    with pytest.raises(ch.SchemaError, match="Did you mean 'batch'"):
        ch.Schema().with_(batchs="obs/a")


def test_a_spec_is_learned_from_the_rows_alone_and_survives_json(cells, schema):
    rows = np.flatnonzero(cells.obs["batch"] == "batch_1")
    spec = learn_spec(Cells(cells, schema), ["counts", "batch", "categorical", "continuous"], rows)
    assert spec.categories["batch"] == ("batch_1",)
    assert spec.condition_blocks() == ((1,), (2,))
    assert spec.n_cells == len(rows)
    again = Spec.from_dict(spec.as_dict())
    assert again == spec
    assert again.hash == spec.hash
    other = learn_spec(Cells(cells, schema), ["counts", "batch"], np.arange(500))
    assert other.hash != spec.hash


def test_new_categories_stand_behind_the_old(cells, schema):
    old = learn_spec(
        Cells(cells, schema), ["counts", "batch"], np.flatnonzero(cells.obs["batch"] == "batch_2")
    )
    new = learn_spec(Cells(cells, schema), ["counts", "batch"], np.arange(500), old)
    assert new.categories["batch"] == ("batch_2", "batch_0", "batch_1")
    assert new.blocks["batch"] == (1, 2)


def test_conditions_are_encoded_by_role_or_column(cells, schema):
    roles = ["counts", "batch", "categorical", "continuous"]
    spec = learn_spec(Cells(cells, schema), roles, np.arange(500))
    assert condition_code(spec, "batch", "batch_1") == ("batch", None, 1)
    assert condition_code(spec, "plate", "plate1") == ("categorical", 0, 1)
    assert condition_code(spec, "age", 30) == ("continuous", 0, 30.0)


def test_a_knock_out_is_of_genes_and_a_column_of_that_name_is_itself(cells):
    cells.var_names = ["BCR+ABL", "BCR", *cells.var_names[2:]]
    cells.obs["knockout"] = np.where(np.arange(500) % 2, "GATA1", "none")
    spec = learn_spec(Cells(cells, ch.Schema(counts="X")), ["counts"], np.arange(500))
    assert gene_positions(spec, "knockout", "BCR+ABL") == (0,)
    assert gene_positions(spec, "knockout", f"BCR+{cells.var_names[5]}") == (1, 5)
    with pytest.raises(ch.SchemaError, match="'ABL' is not among"):
        gene_positions(spec, "knockout", "BCR+ABL+BCR")
    named = ch.Schema(counts="X", categorical=("obs/knockout",))
    spec = learn_spec(Cells(cells, named), ["counts", "categorical"], np.arange(500))
    assert condition_code(spec, "knockout", "none") == ("categorical", 0, 1)


def test_labels_that_are_missing_or_unknown_are_unlabelled(cells, schema):
    from chreode.data.align import open_source

    spec = learn_spec(Cells(cells, schema), ["counts", "label"], np.arange(500))
    values = cells.obs["cell_type"].astype(object)
    values.iloc[:3] = [None, "", "never seen"]
    cells.obs["cell_type"] = pd.Categorical(values)
    source = open_source(Cells(cells, schema), spec, ["counts", "label"], {})
    assert source.columns["label"][:3].tolist() == [-1, -1, -1]
    assert (source.columns["label"][3:] >= 0).all()
