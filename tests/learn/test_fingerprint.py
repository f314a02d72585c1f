"""A checkpoint names what its fit depended on; where any of it differs, it is not gone on from."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import chreode as ch
from chreode import store
from chreode.compute.rng import Rng
from chreode.losses import kernel

SCHEMA = ch.Schema(
    counts="layers/counts", batch="obs/batch", categorical=("obs/plate",), continuous=("obs/age",)
)
MODEL = ch.SCVI(max_epochs=1, n_hidden=8, n_latent=3, batch_size=128)


@pytest.fixture
def some(cells):
    """Return 400 cells: more than a first chunk of them could be hashed and taken for all."""
    return cells[:400, :30].copy()


@pytest.fixture
def parts(some, tmp_path):
    """Return a function: the parts of the fingerprint of a fit to changed cells."""

    def of(change=lambda cells: cells, model=MODEL, **options):
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        model.fit(change(some.copy()), SCHEMA, checkpoint=tmp_path / "state", **options)
        return store.read_tensors(tmp_path / "state" / "phase0.safetensors")[1]["fingerprint"]

    return of


def differ(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def last_count(cells):
    cells.layers["counts"].data[-1] += 1
    return cells


def other_gene(cells):
    x = cells.layers["counts"].tolil()
    x[399, :2] = x[399, :2].toarray()[:, ::-1] + [[0, 1]]
    cells.layers["counts"] = x.tocsr()
    return cells


def last_age(cells):
    cells.obs.loc[cells.obs_names[-1], "age"] += 1.5
    return cells


def last_batch(cells):
    others = set(cells.obs["batch"]) - {cells.obs["batch"].iloc[-1]}
    cells.obs.loc[cells.obs_names[-1], "batch"] = min(others)
    return cells


@pytest.mark.parametrize(
    ("change", "parts_of_it"),
    [
        (last_count, {"data"}),
        (other_gene, {"data"}),
        (last_age, {"data", "spec"}),  # which holds the centre and scale of ages
        (last_batch, {"data"}),
    ],
)
def test_every_value_that_is_used_counts(parts, change, parts_of_it):
    assert differ(parts(), parts(change)) == parts_of_it


def test_values_of_cells_and_columns_that_are_not_used_do_not(parts):
    def other(cells):
        cells.obs["time of day"] = np.arange(400.0)
        cells.layers["counts"].data[-1] += 1
        return cells

    some = np.arange(300)
    assert differ(parts(rows=some), parts(other, rows=some)) == set()


def test_the_order_of_the_cells_counts(parts):
    assert "data" in differ(parts(), parts(lambda cells: cells[::-1].copy()))


def as_type(kind):
    def change(cells):
        cells.layers["counts"] = cells.layers["counts"].astype(kind)
        return cells

    return change


def zeros_written_down(cells):
    x = cells.layers["counts"].tocsr()
    at = np.tile(np.arange(x.shape[1]), x.shape[0])
    ends = np.arange(0, at.size + 1, x.shape[1])
    cells.layers["counts"] = sp.csr_matrix((x.toarray().ravel(), at, ends), x.shape)
    return cells


@pytest.mark.parametrize(
    "change", [as_type("i4"), as_type("f8"), as_type("u2"), zeros_written_down]
)
def test_how_values_are_stored_does_not(parts, change):
    assert differ(parts(), parts(change)) == set()


def test_other_weights_to_start_from(parts, some):
    begun = [MODEL.fit(some, SCHEMA, seed=seed) for seed in (1, 2)]
    assert differ(parts(), parts(from_=begun[0])) == {"weights to start from"}
    assert differ(parts(from_=begun[1]), parts(from_=begun[0])) == {"weights to start from"}


@pytest.mark.slow
def test_how_it_is_computed(parts, monkeypatch):
    plain, compiled = parts(), kernel.available()
    assert differ(plain, parts(precision="bf16")) == {"precision"}
    assert differ(plain, parts(seed=1)) == {"rows", "seed", "weights to start from"}
    assert differ(plain, parts(model=dataclasses.replace(MODEL, lr=0.01))) == {"options"}
    assert differ(plain, parts(validation=np.arange(40))) == {"rows"}
    with monkeypatch.context() as patch:
        patch.setenv("CHREODE_KERNEL", "0")
        assert differ(plain, parts()) == ({"kernel"} if compiled else set())
    with monkeypatch.context() as patch:
        patch.setattr("chreode.learn.fingerprint.code_hash", lambda: "another")
        assert differ(plain, parts()) == {"code"}
    torch.set_num_threads(2)
    try:
        assert "threads" in differ(plain, parts())
    finally:
        torch.set_num_threads(1)
    assert differ(plain, parts()) == set()


def test_named_validation_cells_are_not_drawn_ones(parts):
    """Drawn ones are learned from in a last phase, named ones never."""
    drawn = parts()
    rows = Rng(0).numpy("split").permutation(np.arange(400))[:40]
    assert differ(drawn, parts(validation=np.sort(rows))) == {"rows"}


def test_a_refusal_names_what_differs(some, tmp_path):
    MODEL.fit(some, SCHEMA, checkpoint=tmp_path / "state")
    with pytest.raises(ch.StoreError, match=r"another fit, with other data\. Remove it"):
        MODEL.fit(last_count(some), SCHEMA, checkpoint=tmp_path / "state")
    tensors, told = store.read_tensors(tmp_path / "state" / "phase0.safetensors")
    store.write_tensors(
        tmp_path / "state" / "phase0.safetensors", tensors, {**told, "fingerprint": "of old"}
    )
    with pytest.raises(ch.StoreError, match="another fit"):
        MODEL.fit(some, SCHEMA, checkpoint=tmp_path / "state")


def test_a_refusal_names_the_options_that_differ(some, tmp_path):
    MODEL.fit(some, SCHEMA, checkpoint=tmp_path / "state")
    with pytest.raises(ch.StoreError) as told:
        dataclasses.replace(MODEL, max_epochs=2).fit(some, SCHEMA, checkpoint=tmp_path / "state")
    assert "another fit, with other options (max_epochs was 1, is 2). Remove it" in str(told.value)


def test_a_fit_that_was_cut_off_at_its_end_names_its_kernel_too(some, tmp_path):
    whole = MODEL.fit(some, SCHEMA, checkpoint=tmp_path / "state")
    again = MODEL.fit(some, SCHEMA, checkpoint=tmp_path / "state")  # no step is left
    assert again.provenance == whole.provenance
    assert again.provenance["kernel"] == (kernel.name() if kernel.available() else "")
    assert ch.PCA(n_latent=2).fit(some, SCHEMA).provenance["kernel"] == ""
