"""One reader and one set of guards: whatever cells came as, damage is refused and the rest is read."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.experimental import write_dispatched

import chreode as ch
from chreode.data import files, places, read
from chreode.data.cells import Cells
from chreode.data.check import CountsWarning, findings
from chreode.data.memory import in_memory
from chreode.schema import Place

N, G = 60, 40
ROUTES = ("memory", "path", "open", "backed")


def dense():
    x = np.random.default_rng(0).poisson(1.0, (N, G)).astype(np.float32)
    x[:, 0] += 1
    return x


def matrix(data, place="X"):
    """Return all that a model would read of a place, dense."""
    values = places.matrix(read.read(data), Place.parse(place), "counts")[0]
    found = values[np.arange(N)]
    return found.toarray() if sp.issparse(found) else np.asarray(found)


def refused(data, place="X"):
    with pytest.raises((ch.DataError, ch.StoreError)) as error:
        matrix(data, place)
    return str(error.value)


# damaged sparse matrices


DAMAGE = {
    "falls": ("indptr", lambda x: np.where(np.arange(len(x)) == 9, -7, x)),
    "wrapped": ("indptr", lambda x: (x.astype("i8") * 2**22 + 2**31) % 2**32 - 2**31),
    "late": ("indptr", lambda x: x + 1),
    "short": ("indptr", lambda x: x[:-1]),
    "one-based": ("indices", lambda x: x + 1),
    "negative": ("indices", lambda x: np.where(np.arange(len(x)) == 5, -2, x)),
    "outside": ("indices", lambda x: np.where(np.arange(len(x)) == 5, 10**6, x)),
    "wrapped column": ("indices", lambda x: np.where(np.arange(len(x)) == 5, -(2**31), x)),
    "floats": ("indices", lambda x: x.astype("f8")),
    "fewer values": ("data", lambda x: x[:-3]),
    "fewer indices": ("indices", lambda x: x[:-3]),
}


@pytest.mark.parametrize("slot", ["X", "layers/counts", "obsm/X_e", "raw"])
@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize(("part", "change"), DAMAGE.values(), ids=DAMAGE)
def test_damage_in_memory_is_refused(part, change, layout, slot):
    values = layout(np.vstack([dense(), np.ones((1, G), "f4")])[:N])
    cells = ad.AnnData(np.zeros((N, G), "f4"))
    if slot == "X":
        cells.X = values
    elif slot == "raw":
        cells.raw = ad.AnnData(values)
        values = cells.raw.X
    else:
        getattr(cells, slot.split("/")[0])[slot.split("/")[1]] = values
    kept = (
        values if slot in ("X", "raw") else getattr(cells, slot.split("/")[0])[slot.split("/")[1]]
    )
    setattr(kept, part, change(getattr(kept, part)))
    assert "damaged" in refused(cells, slot)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("route", ["path", "open", "backed"])
@pytest.mark.parametrize(("part", "change"), DAMAGE.values(), ids=DAMAGE)
def test_damage_in_a_file_is_refused(part, change, route, suffix, tmp_path):
    if route == "backed" and suffix == ".zarr":
        pytest.skip("anndata backs HDF5 alone")
    path, cells = tmp_path / f"a{suffix}", ad.AnnData(sp.csr_matrix(dense()))
    cells.write_h5ad(path) if suffix == ".h5ad" else zarr_of(path, cells)
    with h5py.File(path, "r+") if suffix == ".h5ad" else _folder(path) as root:
        values = change(root["X"][part][:])
        del root["X"][part]
        make = root["X"].create_dataset if suffix == ".h5ad" else root["X"].create_array
        make(part, data=values)
    how = {"path": str, "open": ch.open, "backed": lambda p: ad.read_h5ad(p, backed="r")}[route]
    assert "damaged" in refused(how(path))


class _folder:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return zarr.open_group(self.path, mode="r+", use_consolidated=False)

    def __exit__(self, *_):
        pass


# the same cells in every form


def dask_of(x, blocks):
    array = pytest.importorskip("dask.array").from_array(x, chunks=(25, G))
    return array.map_blocks(blocks) if blocks else array


def as_matrix(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asmatrix(x)


FORMS = {
    **{f"csr of {a} and {b}": (a, b) for a in ("i4", "i8", "u8", "u4") for b in ("i4", "i8", "u8")},
    "csc": sp.csc_matrix, "csr_array": sp.csr_array, "csc_array": sp.csc_array, "coo": sp.coo_matrix,
    "bsr": sp.bsr_matrix, "lil": sp.lil_matrix, "fortran": np.asfortranarray, "masked": np.ma.asarray,
    "half": lambda x: sp.csr_matrix(x).astype("f4"), "big-endian": lambda x: x.astype(">f4"),
    "int8": lambda x: x.astype("i1"), "matrix": as_matrix, "frame": pd.DataFrame,
    "nullable": lambda x: pd.DataFrame(x.astype("i8")).astype("Int64"),
    "dask": lambda x: dask_of(x, None), "dask of csr": lambda x: dask_of(x, sp.csr_matrix),
    "dask of csc": lambda x: dask_of(x, sp.csc_matrix),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_read_alike(form):
    if isinstance(form, tuple):
        values = sp.csr_matrix(dense())
        values.indices, values.indptr = (
            values.indices.astype(form[0]),
            values.indptr.astype(form[1]),
        )
    else:
        values = form(dense())
    found = in_memory(values, "counts (X)")
    assert isinstance(found, (np.ndarray, sp.csr_matrix, sp.csr_array))
    assert not sp.issparse(found) or found.indices.dtype == found.indptr.dtype == np.int32
    whole = found.toarray() if sp.issparse(found) else found
    assert whole.astype("f4").tolist() == dense().tolist()
    some = found[np.array([3, 1])]
    assert (some.toarray() if sp.issparse(some) else some).astype("f4").tolist() == dense()[
        [3, 1]
    ].tolist()


def test_what_is_masked_was_not_measured():
    x = np.ma.masked_equal(np.array([[1, 2], [3, 4]]), 3)
    assert np.isnan(in_memory(x, "views")[1, 0])
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64")})
    assert np.isnan(in_memory(frame, "views")[1, 0])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2, 2)), np.array({"a": 1})])
def test_what_is_no_matrix_is_refused(values):
    with pytest.raises(ch.SchemaError, match="expected cells x features"):
        in_memory(values, "views (obsm/a)")


def test_the_users_own_matrix_stays_as_it_is():
    x = sp.csr_matrix((np.ones(3, "f4"), np.array([1, 1, 0]), np.array([0, 3])), (1, 2))
    assert in_memory(x, "counts").toarray().tolist() == [[1, 2]]
    assert x.indices.tolist() == [1, 1, 0]


# zarr: what is lost, and what is left out


def zarr_of(path, cells, version=2, chunks=(100,), shards=None):
    def write(writer, store, key, element, dataset_kwargs, iospec):
        sparse_ = iospec.encoding_type in ("csr_matrix", "csc_matrix")
        if sparse_ or (key.strip("/") == "X" and iospec.encoding_type == "array"):
            size = chunks if sparse_ else (N, 10)
            dataset_kwargs = {**dataset_kwargs, "chunks": size}
            if shards and sparse_:
                dataset_kwargs |= {"shards": shards}
        writer(store, key, element, dataset_kwargs=dataset_kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dispatched(zarr.open_group(path, mode="w", zarr_format=version), "/", cells, write)
    return path


def pieces(folder):
    return sorted(
        file
        for file in Path(folder).rglob("*")
        if file.is_file() and file.name[0] != "." and file.name != "zarr.json"
    )


STORES = {"2": (2, (100,), None), "3": (3, (100,), None), "3, sharded": (3, (100,), (400,))}


@pytest.mark.parametrize("how", [str, ch.open], ids=["path", "open"])
@pytest.mark.parametrize(("version", "chunks", "shards"), STORES.values(), ids=STORES)
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_intact_stores_are_read_and_those_that_lost_a_piece_are_not(
    tmp_path, layout, version, chunks, shards, how
):
    form = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[layout]
    path = zarr_of(tmp_path / "a.zarr", ad.AnnData(form(dense())), version, chunks, shards)
    if layout == "csc" and how is ch.open:
        assert "tocsr" in refused(how(path))
        return
    assert matrix(how(path)).tolist() == dense().tolist()
    parts = ("X",) if layout == "dense" else ("X/data", "X/indices", "X/indptr")
    for part in parts:
        for piece in pieces(path / part)[:2]:
            piece.rename(tmp_path / "aside")
            assert "lacks" in refused(how(path))
            (tmp_path / "aside").rename(piece)
    assert matrix(how(path)).tolist() == dense().tolist()


@pytest.mark.parametrize("version", [2, 3])
def test_indices_that_must_be_zeros_may_be_left_out(tmp_path, version):
    x = np.zeros((N, G), "f4")
    x[:, 0] = 1 + np.arange(N)
    path = zarr_of(tmp_path / "a.zarr", ad.AnnData(sp.csr_matrix(x)), version, (20,))
    assert pieces(path / "X/indices") == []
    for how in (str, ch.open):
        assert matrix(how(path)).tolist() == x.tolist()


def test_a_column_of_which_pieces_are_absent_is_refused_unless_it_has_one_category(tmp_path):
    cells = ad.AnnData(sp.csr_matrix(dense()))
    cells.obs["one"] = pd.Categorical(["a"] * N)
    cells.obs["two"] = pd.Categorical(["a", "b"] * (N // 2))
    path = tmp_path / "a.zarr"
    zarr_of(path, cells)
    there = ch.open(path)
    assert set(places.column(there, Place.parse("obs/one"), "batch")) == {"a"}
    for piece in pieces(path / "obs/two/codes"):
        piece.unlink()
    there = ch.open(path)
    with pytest.raises(ch.StoreError, match="obs/two.*lacks"):
        places.column(there, Place.parse("obs/two"), "batch")
    ch.PCA(n_latent=2).fit(path, ch.Schema(counts="X", batch="obs/one"))


# slots that nobody asked for


@pytest.mark.parametrize("how", [str, ch.open], ids=["path", "open"])
@pytest.mark.parametrize(
    "slot", ["obs/odd", "var/odd", "obsm/odd", "layers/odd", "uns/odd", "varm/odd"]
)
def test_a_slot_that_no_role_names_need_not_be_readable(tmp_path, slot, how):
    path = tmp_path / "a.h5ad"
    ad.AnnData(sp.csr_matrix(dense())).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file.create_group(slot)
        group.attrs.update({"encoding-type": "of-the-future", "encoding-version": "9"})
        if slot[:3] in ("obs", "var") and slot[3] == "/":
            file[slot[:3]].attrs["column-order"] = ["odd"]
    schema = ch.Schema(counts="X")
    fitted = ch.PCA(n_latent=2).fit(how(path), schema)
    assert fitted.embed(how(path)).shape == (N, 2)
    if slot in ("obs/odd", "obsm/odd", "layers/odd"):
        role = {"batch": slot} if slot == "obs/odd" else {"views": (slot,)}
        with pytest.raises(ch.StoreError, match=slot):
            ch.PCA(n_latent=2).fit(how(path), schema.with_(**role))


# files from strangers


def everywhere(path, tmp_path):
    """Return what every route says of a file; none of them may read it."""
    schema = ch.Schema(counts="X")
    told = []
    for use in (
        ch.open,
        read.read,
        files.stored_bytes,
        lambda p: ch.PCA(n_latent=2).fit(p, schema),
    ):
        with pytest.raises(ch.StoreError) as error:
            use(path)
        told.append(str(error.value))
    from chreode.data.collect import copy_with

    with pytest.raises(ch.StoreError):
        copy_with(path, pd.Index([]), tmp_path / f"copy{path.suffix}", {}, {})
    assert not (tmp_path / f"copy{path.suffix}").exists()
    return " ".join(told)


@pytest.mark.parametrize("kind", ["external", "virtual", "link", "group"])
def test_hdf5_that_takes_data_from_elsewhere_is_refused(tmp_path, kind):
    path, other = tmp_path / "a.h5ad", tmp_path / "secret"
    ad.AnnData(sp.csr_matrix(dense())).write_h5ad(path)
    other.write_bytes(b"s" * 400)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(N)
    with h5py.File(path, "r+") as file:
        if kind == "external":
            file["uns"].create_dataset("deep/leak", (400,), "u1", external=[(str(other), 0, 400)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((N,), "i8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (N,))
            file["obs"].create_virtual_dataset("leak", layout)
        else:
            where = "/x" if kind == "link" else "/"
            file["obsm"]["leak"] = h5py.ExternalLink(str(tmp_path / "other.h5"), where)
    assert "leak" in everywhere(path, tmp_path)
    if kind == "group":
        return  # anndata itself cannot read that
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backed = ad.read_h5ad(path, backed="r")
    with pytest.raises(ch.StoreError, match="leak"):
        ch.PCA(n_latent=2).fit(backed, ch.Schema(counts="X"))


def test_links_within_a_file_are_followed_and_may_turn_in_circles(tmp_path):
    path = tmp_path / "a.h5ad"
    ad.AnnData(sp.csr_matrix(dense())).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["uns/round"] = h5py.SoftLink("/")
        file["uns/lost"] = h5py.SoftLink("/nowhere")
        file["uns/hard"] = file["uns"]
        file["layers/same"] = h5py.SoftLink("/X")
    assert matrix(path, "layers/same").tolist() == dense().tolist()


@pytest.mark.parametrize("kind", ["folder", "file", "chunk", "metadata", "pipe"])
def test_links_inside_of_zarr_are_refused(tmp_path, kind):
    path, private = tmp_path / "a.zarr", tmp_path / "private"
    zarr_of(path, ad.AnnData(sp.csr_matrix(dense())))
    private.mkdir()
    (private / "id_rsa").write_text("SECRET")
    if kind == "folder":
        (path / "uns/innocent").symlink_to(private)
    elif kind == "file":
        (path / "uns/.hidden").symlink_to(private / "id_rsa")
    elif kind == "pipe":
        os.mkfifo(path / "uns/pipe")
    else:
        inside = pieces(path / "X/data")[0] if kind == "chunk" else path / "obs/.zgroup"
        inside.rename(private / "moved")
        inside.symlink_to(private / "moved")
    assert "Remove it" in everywhere(path, tmp_path) or "is a link" in everywhere(path, tmp_path)


def test_a_link_to_a_whole_zarr_is_the_users_own(tmp_path):
    zarr_of(tmp_path / "a.zarr", ad.AnnData(sp.csr_matrix(dense())))
    (tmp_path / "b.zarr").symlink_to(tmp_path / "a.zarr")
    assert matrix(tmp_path / "b.zarr").tolist() == dense().tolist()


@pytest.mark.parametrize("place", ["filters", "compressor", "codecs", "nested", "deep", "no name"])
def test_codecs_that_could_run_code_are_refused(tmp_path, place, monkeypatch):
    version = 2 if place in ("filters", "compressor", "deep") else 3
    path = zarr_of(tmp_path / "a.zarr", ad.AnnData(sp.csr_matrix(dense())), version, (100,))
    file = (
        path
        / ("X/data" if place != "deep" else "obs/_index")
        / (".zarray" if version == 2 else "zarr.json")
    )
    told = json.loads(file.read_text())
    if place in ("filters", "deep"):
        told["filters"] = [*(told["filters"] or []), {"id": "pickle", "protocol": 5}]
    elif place == "compressor":
        told["compressor"] = {"id": "pickle"}
    elif place == "codecs":
        told["codecs"].append({"name": "numcodecs.pickle"})
    elif place == "no name":
        told["codecs"].append({"name": ["pickle"]})
    else:
        inner = {"codecs": [{"name": "bytes"}, "pickle"], "index_codecs": [], "chunk_shape": [1]}
        told["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
    file.write_text(json.dumps(told))
    import numcodecs

    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda *_: pytest.fail("it was decoded"))
    assert "pickle" in everywhere(path, tmp_path)


def test_attributes_may_be_called_as_they_like(tmp_path):
    path = zarr_of(tmp_path / "a.zarr", ad.AnnData(sp.csr_matrix(dense())), 3, (100,))
    told = json.loads((path / "zarr.json").read_text())
    told["attributes"]["codecs"] = ["pickle"]
    (path / "zarr.json").write_text(json.dumps(told))
    assert matrix(path).tolist() == dense().tolist()


def test_modalities_have_the_same_guards(tmp_path):
    values = sp.csr_matrix(dense())
    proteins = ad.AnnData(
        sp.csr_matrix(dense()), var=pd.DataFrame(index=[f"p{i}" for i in range(G)])
    )
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": ad.AnnData(values), "adt": proteins})
        both.mod["rna"].X.indices[5] = -2
        assert "damaged" in refused(both, "rna:X")
        both.write(tmp_path / "m.h5mu")
    for how in (str, ch.open):
        assert "damaged" in refused(how(tmp_path / "m.h5mu"), "rna:X")
        assert matrix(how(tmp_path / "m.h5mu"), "adt:X").tolist() == dense().tolist()


def test_modalities_are_joined_by_names_that_are_their_own():
    cells = ch.simulate.simulate_cells(20, 10, seed=0)
    cells.X = cells.layers["counts"]
    other = cells.copy()
    other.obs_names = [f"c{i % 19}" for i in range(20)]
    other.var_names = [f"p{i}" for i in range(10)]
    other.obs["batch"] = "x"
    with mudata.set_options(pull_on_update=False), pytest.warns(UserWarning, match="not unique"):
        both = mudata.MuData({"rna": cells, "adt": other})
    schema = ch.Schema(counts="rna:X", protein="adt:X")
    with pytest.raises(ch.ChreodeError, match="Cell names of adt are not unique \\('c0'\\)"):
        ch.CFGen().fit(both, schema)
    by_batch = ch.Schema(counts="rna:X", batch="adt:obs/batch")
    with pytest.raises(ch.ChreodeError, match="Cell names of adt are not unique"):
        ch.SCVI().fit(both, by_batch)


def test_two_columns_of_one_name_are_refused():
    cells = ch.simulate.simulate_cells(20, 10, n_batches=2, seed=0)
    cells.obs = pd.concat([cells.obs, cells.obs[["batch"]]], axis=1)
    with pytest.raises(ch.DataError, match="obs has several columns of that name"):
        ch.SCVI().fit(cells, ch.Schema(counts="layers/counts", batch="obs/batch"))


def test_features_of_an_opened_file_are_chosen_in_every_usual_way(tmp_path):
    cells = ch.simulate.simulate_cells(20, 10, seed=0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    opened, names = ch.open(tmp_path / "cells.h5ad"), cells.var_names
    assert len(opened) == 20
    mask = np.arange(10) % 2 == 0
    for index in ([1, 3], slice(2, 6), mask, list(names[[4, 0]]), names[[4, 0]], names[5]):
        assert opened[:, index].var_names.equals(cells[:, index].var_names)
    for index in (slice(10), (slice(10), slice(5)), ["c0"], 3, mask, (slice(None),)):
        with pytest.raises(ch.SchemaError, match="To choose cells, give rows"):
            opened[index]
    for index in ([10], ["unheard"]):
        with pytest.raises(ch.SchemaError, match="features|feature 'unheard'"):
            opened[:, index]


# values that are no counts


@pytest.mark.parametrize("how", [ad.read_h5ad, str, ch.open], ids=["memory", "path", "open"])
@pytest.mark.parametrize(
    "layout", [np.asarray, sp.csr_matrix, sp.csc_matrix], ids=["dense", "csr", "csc"]
)
@pytest.mark.parametrize(
    ("scaled", "said"),
    [
        (
            lambda x: np.log1p(1e4 * x / x.sum(1, keepdims=True)),
            "log-normalised: turned back by expm1",
        ),
        (lambda x: np.log2(700 * x / x.sum(1, keepdims=True) + 1), r"turned back by 2 \*\* x - 1"),
        (
            lambda x: 1e4 * x / x.sum(1, keepdims=True),
            "normalised: the values of every cell add up",
        ),
        (lambda x: np.log1p(1e4 * x / np.r_[0.5, x.sum(1)[1:]][:, None]), "expm1"),  # one odd cell
        (
            lambda x: x * 0.37 + 1100.5,
            None,
        ),  # full-length: e to such powers is infinite in every cell
        (lambda x: x * 0.37 + 1100.5 * (np.arange(30) == 0), None),
        (lambda x: 0.37 * x, None),
        (lambda x: np.log1p(x), None),  # not normalised: the sums tell nothing
    ],
)
def test_log_normalised_values_named_as_counts_are_told(tmp_path, how, layout, scaled, said):
    x = np.random.default_rng(0).poisson(2.0, (40, 30)).astype(np.float32)
    x *= np.arange(1, 41, dtype=np.float32)[:, None]
    if layout is sp.csc_matrix and how is ch.open:
        pytest.skip("an opened file is read by cells")
    path = tmp_path / "a.h5ad"
    ad.AnnData(layout(scaled(x).astype(np.float32))).write_h5ad(path)
    with pytest.warns(CountsWarning, match=said) if said else contextlib.nullcontext():
        ch.PCA(n_latent=2).fit(how(path), ch.Schema(counts="X", fractional=True), progress=False)


def drawn_counts() -> np.ndarray:
    """Return counts of cells of many depths, most of them 0."""
    rng = np.random.default_rng(0)
    depth = rng.lognormal(6, 0.6, (200, 1))
    rate = rng.lognormal(0, 1.5, 300)
    return rng.poisson(depth * rate / rate.sum()).astype(np.float32)


def per_ten_thousand(x: np.ndarray) -> np.ndarray:
    return 1e4 * x / x.sum(1, keepdims=True)


@pytest.mark.parametrize("how", [ad.read_h5ad, str, ch.open], ids=["memory", "path", "open"])
@pytest.mark.parametrize(
    ("role", "scaled", "said"),
    [
        (
            "counts",
            lambda x: np.round(per_ten_thousand(x)),
            "looks normalised and rounded: the values",
        ),
        ("counts", lambda x: np.round(per_ten_thousand(x)).astype(int), "drawn down to one total"),
        (
            "counts",
            lambda x: np.round(np.log1p(per_ten_thousand(x))),
            "log.*and rounded: turned back",
        ),
        (
            "counts",
            lambda x: np.round(np.log2(1 + per_ten_thousand(x))),
            "log.*and rounded: turned back",
        ),
        ("counts", lambda x: x, None),
        ("counts", lambda x: x > 0, None),
        ("counts", lambda x: np.minimum(x, 3), None),
        ("expression", lambda x: x, "looks like raw counts.*as `counts`"),
        ("expression", lambda x: x.astype(int), "looks like raw counts"),
        ("expression", lambda x: np.round(per_ten_thousand(x)), None),
        ("expression", lambda x: np.log1p(x), None),
        ("expression", lambda x: x - 2, None),
        ("expression", lambda x: x > 0, None),
    ],
)
def test_whole_numbers_of_the_wrong_role_are_told(tmp_path, how, role, scaled, said):
    path = tmp_path / "a.h5ad"
    x = scaled(drawn_counts())
    ad.AnnData(sp.csr_matrix(x.astype(np.float32) if x.dtype == bool else x)).write_h5ad(path)
    with pytest.warns(CountsWarning, match=said) if said else contextlib.nullcontext():
        ch.PCA(n_latent=2).fit(how(path), ch.Schema(**{role: "X"}), progress=False)


def test_raw_counts_of_proteins_and_peaks_are_no_rounded_values():
    rng = np.random.default_rng(0)
    proteins = rng.poisson(rng.lognormal(4, 0.5, (200, 1)) * rng.lognormal(0, 1, 14))
    peaks = rng.poisson(rng.lognormal(-3, 0.5, (200, 1)) * rng.lognormal(0, 1, 900))
    a = ad.AnnData(rng.poisson(1.0, (200, 3)), obsm={"adt": proteins, "atac": peaks})
    found = findings(Cells(a, ch.Schema(protein="obsm/adt", accessibility="obsm/atac")))
    assert [f.text for f in found if "looks" in f.text] == []
