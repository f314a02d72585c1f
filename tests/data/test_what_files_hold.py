"""Parts of a file that do not fit each other are refused by every route, and hide nothing else."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.data import places, read
from chreode.data.cells import Cells
from chreode.data.files import OnDisk
from chreode.schema import Place

N, G = 60, 12
SCHEMA = ch.Schema(counts="X", batch="obs/batch")
OPENED = pytest.mark.parametrize("how", [str, ch.open], ids=["path", "open"])
ROUTES = {"path": str, "open": ch.open, "backed": lambda path: ad.read_h5ad(path, backed="r")}


def made(seed=0, prefix="c"):
    """Return cells with a matrix in every kind of slot."""
    counts = np.random.default_rng(seed).poisson(1.0, (N, G)).astype("f4") + np.eye(
        N, G, dtype="f4"
    )
    counts[:, 0] += 1
    obs = pd.DataFrame({"batch": ["x", "y"] * (N // 2)}, [f"{prefix}{i}" for i in range(N)])
    cells = ad.AnnData(sp.csr_matrix(counts), obs=obs)
    cells.var_names = [f"g{i}" for i in range(G)]
    cells.raw = cells.copy()
    cells.layers["counts"], cells.layers["dense"] = cells.X.copy(), counts
    cells.obsm["panel"] = counts[:, :3]
    return cells


@pytest.fixture
def path(tmp_path):
    made().write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


def put(file, place, values):
    """Put other values in the place of a part, with its attributes."""
    about = dict(file[place].attrs)
    del file[place]
    file.create_dataset(place, data=values).attrs.update(about)


def more_rows(file):
    file["X"].attrs["shape"] = [N + 10, G]
    put(file, "X/indptr", np.append(file["X/indptr"][:], [file["X/indptr"][-1]] * 10))


def fewer_rows(file):
    file["X"].attrs["shape"] = [N - 10, G]
    put(file, "X/indptr", file["X/indptr"][: N - 9])


def more_columns(file):
    file["X"].attrs["shape"] = [N, G + 5]


# shapes


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("change", [more_rows, fewer_rows, more_columns])
def test_a_matrix_of_other_cells_or_features_than_the_tables_is_refused(path, change, route):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises((ch.StoreError, ch.DataError), match="beside"):
        ch.PCA(n_latent=2).fit(ROUTES[route](path), SCHEMA)
    other = SCHEMA.with_(counts="layers/counts")
    assert ch.PCA(n_latent=2).fit(ROUTES[route](path), other).spec.n_cells == N


@OPENED
@pytest.mark.parametrize("place", ["layers/dense", "obsm/panel", "raw"])
def test_so_is_one_of_any_slot(path, place, how):
    with h5py.File(path, "r+") as file:
        if place == "raw":
            file["raw/X"].attrs["shape"] = [N, G + 5]
        else:
            put(file, place, file[place][: N - 5])
    with pytest.raises(ch.StoreError, match="beside"):
        places.matrix(read.read(how(path)), Place.parse(place), "counts")
    assert ch.PCA(n_latent=2).fit(how(path), SCHEMA).spec.n_cells == N


# what nobody asks for


def without(part):
    def change(file):
        del file[part]

    return change


def foreign_records(file):
    file["uns"].create_group("chreode").attrs["encoding-type"] = "of another program"


def broken_header(file):
    file.attrs["at"] = h5py.h5o.get_info(file["layers/dense"].id).addr


UNASKED = {
    "raw values": without("raw/X/data"),
    "raw names": without("raw/var/_index"),
    "records": foreign_records,
    "header": broken_header,
}


@OPENED
@pytest.mark.parametrize("what", UNASKED)
def test_what_nobody_asks_for_stops_nothing(path, what, how):
    with h5py.File(path, "r+") as file:
        UNASKED[what](file)
        at = int(file.attrs.get("at", 0))
    if at:
        with path.open("r+b") as raw:
            raw.seek(at)
            raw.write(b"\xff" * 16)
    data = read.read(how(path))
    assert ch.PCA(n_latent=2).fit(data, SCHEMA).embed(data).shape == (N, 2)
    if what.startswith("raw"):
        with pytest.raises(ch.StoreError, match="raw of .* cannot be read"):
            places.matrix(data, Place.parse("raw"), "counts")


@OPENED
def test_a_table_that_is_none_is_refused(path, how):
    with h5py.File(path, "r+") as file:
        for name in list(file["obs"].attrs):
            del file["obs"].attrs[name]
    with pytest.raises(ch.StoreError, match="no table"):
        ch.PCA(n_latent=2).fit(how(path), SCHEMA)


def test_records_of_another_kind_are_refused_before_any_work(path):
    cells = made()
    fitted = ch.PCA(n_latent=2).fit(cells, SCHEMA)
    cells.uns["chreode"] = "mine"
    with pytest.raises(ch.ConfigError, match="uns"):
        fitted.embed(cells)
    assert "X_pca" not in cells.obsm


@OPENED
def test_what_is_nested_without_end_is_refused(path, how):
    """Such a file took HDF5 minutes, for nothing that anybody had asked for."""
    with h5py.File(path, "r+") as file:
        file.create_group("uns" + "/a" * 110)
    with pytest.raises(ch.StoreError, match="100 deep"):
        ch.PCA(n_latent=2).fit(how(path), SCHEMA)


@OPENED
def test_a_device_is_no_file(tmp_path, how):
    (tmp_path / "a.h5ad").symlink_to("/dev/null")
    with pytest.raises(ch.StoreError, match="a pipe or a device"):
        read.read(how(tmp_path / "a.h5ad"))


# several files


@pytest.mark.parametrize("part", ["obs/batch/codes", "X/indptr", "layers/counts/data"])
def test_files_as_one_refuse_what_each_of_them_refuses(part, tmp_path):
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for seed, file in enumerate(files):
        made(seed, prefix=f"{seed}-").write_h5ad(file)
    with h5py.File(files[1], "r+") as file:
        del file[part]
    schema = SCHEMA.with_(counts="layers/counts") if "layers" in part else SCHEMA
    with pytest.raises(ch.StoreError, match=r"b\.h5ad: "):
        ch.PCA(n_latent=2).fit(ch.open(files), schema)


@pytest.mark.slow
def test_pieces_that_one_zarr_of_several_lost_are_no_first_category(tmp_path):
    files = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for seed, file in enumerate(files):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what anndata will write from its next version on
            made(seed, prefix=f"{seed}-").write_zarr(file)
    lose(files[1] / "obs/batch/codes")
    with pytest.raises(ch.StoreError, match=r"b\.zarr: Its zarr array lacks 1 piece"):
        ch.PCA(n_latent=2).fit(ch.open(files), SCHEMA)


def lose(array):
    """Remove the pieces of a zarr array, and leave what describes it."""
    pieces = [f for f in array.rglob("*") if f.is_file() and f.name not in ("zarr.json", ".zarray")]
    for piece in [f for f in pieces if f.name != ".zattrs"]:
        piece.unlink()


def test_names_that_are_numbers_are_no_positions(tmp_path):
    files, order = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"], np.roll(np.arange(G), 2)
    cells = made()
    for file, names in zip(files, (np.arange(G), order), strict=True):
        cells.write_h5ad(file)
        with h5py.File(file, "r+") as held:
            put(held, "var/_index", names)
            held["var/_index"].attrs["encoding-type"] = "array"
    values, names = places.matrix(ch.open(files), Place.parse("X"), "counts")
    assert list(names) == list(map(str, range(G)))
    both = values[np.arange(2 * N)].toarray()
    np.testing.assert_array_equal(both[N:][:, order], both[:N])


# features of an opened file


def test_a_light_file_by_columns_gives_features(tmp_path):
    cells = made()
    cells.X = cells.X.tocsc()
    cells.write_h5ad(tmp_path / "a.h5ad")
    data = read.read(tmp_path / "a.h5ad")
    assert isinstance(data, OnDisk)
    values, _ = places.matrix(data[:, ["g3", "g1"]], Place.parse("X"), "counts")
    np.testing.assert_array_equal(values.toarray(), cells[:, ["g3", "g1"]].X.toarray())


@pytest.mark.parametrize(
    "odd", [3.5, b"g1", [["a"], ["b", "c"]], slice("g1", "g3"), np.zeros((2, 2), int), [True] * 3]
)
def test_what_names_no_features_is_refused(path, odd):
    with pytest.raises(ch.SchemaError, match="data"):
        ch.open(path)[:, odd]


def test_cells_that_share_a_name_are_not_chosen_by_it():
    cells = made()
    cells.obs_names = ["x"] * N
    with pytest.raises(ch.SchemaError, match="not unique"):
        ch.PCA(n_latent=2).fit(cells, SCHEMA, rows=["x"])


@pytest.mark.parametrize("kind", [bool, "boolean"])
def test_a_mask_with_the_cells_in_another_order_is_refused(kind):
    cells = made()
    mask = pd.Series(np.arange(N) < 9, cells.obs_names, dtype=kind)
    for right in (mask, mask.reset_index(drop=True), mask.to_numpy()):
        assert Cells(cells, ch.Schema()).positions(right).tolist() == list(range(9))
    with pytest.raises(ch.SchemaError, match="another order"):
        Cells(cells, ch.Schema()).positions(mask[::-1])
    assert Cells(cells, ch.Schema()).positions(
        mask[::-1].reindex(cells.obs_names)
    ).tolist() == list(range(9))


# columns


@OPENED
@pytest.mark.parametrize(
    "values", [np.zeros((N, 2)), np.zeros(N, [("a", "i4"), ("b", "f4")])], ids=["wide", "records"]
)
def test_a_column_of_no_single_values_is_refused_where_it_is_named(path, values, how):
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["column-order"] = ["batch", "odd"]
        file["obs"].create_dataset("odd", data=values).attrs["encoding-type"] = "array"
    assert ch.PCA(n_latent=2).fit(how(path), SCHEMA).spec.n_cells == N
    for role in ("batch", "size_factor"):
        with pytest.raises((ch.StoreError, ch.DataError), match="cannot be read"):
            ch.PCA(n_latent=2).fit(how(path), ch.Schema(counts="X", **{role: "obs/odd"}))


@pytest.mark.parametrize("route", ROUTES)
def test_stored_values_in_two_columns_are_refused(path, route):
    with h5py.File(path, "r+") as file:
        put(file, "X/data", np.stack([file["X/data"][:]] * 2, 1))
    with pytest.raises((ch.StoreError, ch.DataError), match=r"shape \(\d+, \d+\)"):
        ch.PCA(n_latent=2).fit(ROUTES[route](path), SCHEMA)


# words


@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize("kind", [object, str])
def test_stored_words_are_no_numbers_in_any_layout(layout, kind):
    cells = made()
    cells.X = layout(cells.X)
    cells.X.data = cells.X.data.astype(kind)
    with pytest.raises(ch.DataError, match="expected numbers"):
        ch.PCA(n_latent=2).fit(cells, ch.Schema(counts="X"))


# columns of a modality


def test_codes_of_a_modality_stay_whole_where_cells_lack_it():
    rna, other = made(), made(1, prefix="d")
    other.var_names = [f"h{i}" for i in range(G)]
    rna.obs["lane"] = np.repeat([1, 2**60 + 1], N // 2)
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": rna, "other": other})
    schema = ch.Schema(counts="rna:X", batch="rna:obs/lane")
    lanes = places.column(both, Place.parse("rna:obs/lane"), "batch").dropna()
    assert set(map(str, lanes)) == {"1", str(2**60 + 1)}
    assert ch.PCA(n_latent=2).fit(both, schema).spec.n_cells == N


@pytest.mark.parametrize("kind", ["int64", "uint64", "Int64"])
def test_whole_numbers_that_merge_as_floats_are_refused(kind):
    cells = made()
    cells.obs["ns"] = pd.array(1_700_000_000_000_000_000 + np.arange(N), dtype=kind)
    for place in ({"time": "obs/ns"}, {"continuous": ("obs/ns",)}, {"size_factor": "obs/ns"}):
        with pytest.raises(ch.DataError, match="become one"):
            ch.PCA(n_latent=2).fit(cells, SCHEMA.with_(**place))
    cells.obs["ns"] = pd.array(2**60 * np.repeat([1, 2], N // 2), dtype=kind)
    assert Cells(cells, ch.Schema(time="obs/ns")).numbers("time")[0] == 2.0**60
