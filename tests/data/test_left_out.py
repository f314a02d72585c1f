"""Zarrs as anndata and MuData write them: they open, and zeros left out are told as what they may be."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.data import places, read
from chreode.schema import Place

N, G = 60, 40
HOW = pytest.mark.parametrize("how", [str, ch.open], ids=["path", "open"])


def dense():
    return np.random.default_rng(0).poisson(1.0, (N, G)).astype(np.float32) + np.eye(
        N, G, dtype="f4"
    )


def matrix(data, place):
    """Return all that a model would read of a place, dense."""
    found = places.matrix(read.read(data), Place.parse(place), "counts")[0][np.arange(N)]
    return found.toarray() if sp.issparse(found) else np.asarray(found)


def slot(data, place):
    """Return a matrix, or a column, as a list."""
    if place.startswith("obs"):
        return list(places.column(read.read(data), Place.parse(place), "label"))
    return matrix(data, place).tolist()


def refused(data, place):
    with pytest.raises(ch.StoreError) as error:
        slot(data, place)
    return str(error.value)


WRITERS = {
    "2": {"zarr_write_format": 2, "auto_shard_zarr_v3": False},
    "3": {"zarr_write_format": 3, "auto_shard_zarr_v3": False},
    "3, sharded": {"zarr_write_format": 3, "auto_shard_zarr_v3": True},
}
EXPRESSION = np.where((np.arange(N) // 10 == 1)[:, None], 0, dense())  # rows of one piece are 0
#: Columns as anndata writes them, and what zarr leaves out of them (None: nothing that tells).
COLUMNS = {
    "day": (np.zeros(N), "0.0"),
    "n": (np.zeros(N, int), "0"),
    "flag": (np.zeros(N, bool), "False"),
    "type": (pd.Categorical(["a"] * N, categories=["a", "b"]), "the first category"),
    "maybe": (pd.array([0] * N, dtype="Int64"), "0"),
    "one": (pd.Categorical(["a"] * N), None),
    "unmasked": (pd.array(range(1, N + 1), dtype="Int64"), None),
    "name": (pd.Series([f"t{i}" for i in range(N)], dtype=object).to_numpy(), None),
    "age": (np.arange(N) + 1.0, None),
}


@pytest.fixture(params=WRITERS, scope="module")
def written(request, tmp_path_factory):
    """The path of cells that anndata wrote: rows without expression and columns of zeros, and good counts."""
    obs = pd.DataFrame({k: values for k, (values, _) in COLUMNS.items()}, map(str, range(N)))
    cells = ad.AnnData(EXPRESSION, obs=obs, layers={"counts": sp.csr_matrix(dense())})
    with ad.settings.override(**WRITERS[request.param]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = tmp_path_factory.mktemp("written") / "a.zarr"
        cells.write_zarr(path, chunks=(10, G))
    return path


@pytest.mark.slow
@HOW
def test_what_anndata_wrote_opens_and_zeros_left_out_have_a_remedy_that_helps(
    written, how, tmp_path
):
    ch.PCA(n_latent=2).fit(how(written), ch.Schema(counts="layers/counts", batch="obs/one"))
    new, truth = tmp_path / "new.h5ad", {f"obs/{k}": v for k, v in COLUMNS.items()}
    for place, (values, of) in {**truth, "X": (None, "0.0")}.items():
        if of is None:
            assert slot(how(written), place) == list(values)
            continue
        said = refused(how(written), place)
        assert place in said
        assert f"Its zarr array lacks 1 piece. zarr leaves out pieces of {of} alone" in said
        call = re.search(r"write them: (anndata.*write_h5ad\(NEW\))", said)[1]
        if not new.exists():
            eval(call, {"anndata": ad, "FILE": written, "NEW": new})
        expected = EXPRESSION.tolist() if values is None else list(values)
        assert slot(how(new), place) == expected


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("part", [
    "X", "layers/counts/indptr", "layers/counts/data", "layers/counts/indices", "obs/age", "obs/name",
    "obs/unmasked/values", "obs/one/categories",
])  # fmt: skip
def test_what_anndata_wrote_and_a_copy_lost_is_no_zeros(written, how, part, tmp_path):
    files = (f for f in (written / part).rglob("*") if f.is_file())
    piece = next(f for f in files if f.name[0] != "." and f.name != "zarr.json")
    piece.rename(tmp_path / "aside")
    try:
        assert "lacks" in refused(how(written), "/".join(part.split("/")[:2]))
    finally:
        (tmp_path / "aside").rename(piece)


@pytest.mark.slow
def test_a_modality_of_zeros_left_out_has_a_remedy_that_helps(tmp_path):
    path, new = tmp_path / "a.zarr", tmp_path / "new.h5mu"
    parts = {"a": ad.AnnData(np.zeros((N, G), "f4")), "b": ad.AnnData(np.ones((N, G), "f4"))}
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mudata.MuData(parts).write_zarr(path)
        call = re.search(r"mudata.read_zarr.*write_h5mu\(NEW\)", refused(path, "a:X"))[0]
        eval(call, {"mudata": mudata, "FILE": path, "NEW": new})
    assert matrix(new, "a:X").sum() == 0
