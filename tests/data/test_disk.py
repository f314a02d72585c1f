"""Matrices on disk: the same rows as in memory, read in bounded pieces, and damage is said."""

from __future__ import annotations

import shutil
import tracemalloc
import warnings
from itertools import pairwise

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chreode as ch
from chreode.data import check, disk, files, look, places, read
from chreode.data import source as source_module
from chreode.data.cells import Cells
from chreode.data.sampler import Balanced, Shuffled
from chreode.data.source import Source, in_windows
from chreode.schema import Place, Schema, Spec

N, G = 300, 40
DENSE = np.random.default_rng(0).poisson(0.15, (N, G)).astype(np.float32)
ROWS = {
    "all": np.arange(N),
    "contiguous": np.arange(70, 190),
    "sorted": np.sort(np.random.default_rng(1).permutation(N)[:90]),
    "random": np.random.default_rng(2).permutation(N),
    "repeated": np.array([7, 7, 299, 0, 7, 8]),
    "single": np.array([123]),
    "empty": np.array([], np.int64),
}


def long_ends(x):
    x = sp.csr_matrix(x)
    x.indptr = x.indptr.astype(np.int64)
    return x


KINDS = {
    "h5ad": (sp.csr_matrix, ".h5ad", {}),
    "gzip": (sp.csr_matrix, ".h5ad", {"compression": "gzip"}),
    "lzf": (sp.csr_matrix, ".h5ad", {"compression": "lzf"}),
    "float64": (lambda x: sp.csr_matrix(x.astype(np.float64)), ".h5ad", {}),
    "int64": (lambda x: sp.csr_matrix(x.astype(np.int64)), ".h5ad", {}),
    "uint16": (lambda x: sp.csr_matrix(x.astype(np.uint16)), ".h5ad", {}),
    "long ends": (long_ends, ".h5ad", {}),
    "dense": (np.asarray, ".h5ad", {}),
    "dense gzip": (np.asarray, ".h5ad", {"compression": "gzip"}),
    "zarr 2": (sp.csr_matrix, ".zarr", {"format": 2}),
    "zarr 3": (sp.csr_matrix, ".zarr", {"format": 3}),
    "zarr 3 dense": (np.asarray, ".zarr", {"format": 3, "chunks": (70, 15)}),
}


def write(cells, path, *, format=3, chunks=None, **options):  # noqa: A002 (zarr's word)
    if path.suffix == ".h5ad":
        cells.write_h5ad(path, **options)
        return path
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=format):
        warnings.simplefilter("ignore")  # news about zarr's formats
        cells.write_zarr(path, chunks=chunks)
    return path


@pytest.fixture(scope="module", params=KINDS)
def stored(request, tmp_path_factory):
    """Return the path of a file of `DENSE`, in many ways."""
    make, suffix, options = KINDS[request.param]
    path = tmp_path_factory.mktemp("stored") / f"cells{suffix}"
    return write(ad.AnnData(make(DENSE)), path, **options)


def dense(block):
    return block.toarray() if sp.issparse(block) else block


def source_of(matrix, **more):
    n, width = matrix.shape
    n = len(more["where"]["counts"]) if "where" in more else n
    spec = Spec(("counts",), {"counts": tuple(f"g{i}" for i in range(width))})
    return Source(spec, np.array([f"c{i}" for i in range(n)]), {"counts": matrix}, **more)


class Counting:
    """A matrix in memory that behaves like one on disk, and keeps what was asked of it."""

    def __init__(self, n, block, width=1):
        self.shape, self.block, self.asked = (n, width), block, []
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, rows):
        self.asked.append(rows)
        return np.repeat(rows[:, None].astype(np.float32), self.shape[1], 1)


# rows


@pytest.mark.parametrize("pattern", ROWS)
def test_rows_are_those_in_memory(stored, pattern):
    matrix, rows = ch.open(stored).X, ROWS[pattern]
    found = matrix[rows]
    assert matrix.shape == (N, G)
    assert matrix.block > 1
    assert found.dtype == matrix.dtype
    np.testing.assert_array_equal(dense(found), DENSE[rows])
    if sp.issparse(found):
        assert found.has_canonical_format


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.integers(0, N - 1), max_size=60),
    gap=st.integers(0, 40),
    most=st.integers(1, 400),
)
def test_rows_do_not_depend_on_how_reads_are_joined(any_two, rows, gap, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_GAP_VALUES", gap)
        patch.setattr(disk, "_READ_VALUES", most)
        for matrix in any_two:
            np.testing.assert_array_equal(dense(matrix[np.array(rows, np.int64)]), DENSE[rows])


@pytest.fixture(scope="module")
def any_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    sparse = write(ad.AnnData(sp.csr_matrix(DENSE)), folder / "sparse.h5ad")
    chunked = write(ad.AnnData(DENSE), folder / "chunked.h5ad", compression="gzip", chunks=(70, 15))
    return [ch.open(path).X for path in (sparse, chunked)]


def test_rows_out_of_range_are_an_error_as_in_memory(any_two):
    for rows in ([-1], [N]):
        with pytest.raises(IndexError, match="from 0 to 299"):
            any_two[0][np.array(rows)]


def test_columns_out_of_order_or_twice_are_put_right(tmp_path):
    path = write(ad.AnnData(sp.csr_matrix(DENSE)), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        indices, data, ends = (file["X"][k][:] for k in ("indices", "data", "indptr"))
        for a, b in pairwise(ends):
            indices[a:b], data[a:b] = indices[a:b][::-1], data[a:b][::-1]
        row = int(np.argmax(np.diff(ends) > 1))
        indices[ends[row]] = indices[ends[row] + 1]  # now one column holds both values
        file["X/indices"][:], file["X/data"][:] = indices, data
    expected = ad.read_h5ad(path).X.toarray()
    np.testing.assert_array_equal(ch.open(path).X[np.arange(N)].toarray(), expected)
    assert not np.array_equal(expected, DENSE)


def test_batches_align_and_mark_absence_as_in_memory(stored):
    take = np.random.default_rng(3).permutation(G)
    take[[2, 30]] = -1
    where = np.full(N + 20, -1)
    where[10 : N + 10] = np.random.default_rng(4).permutation(N)
    memory = source_of(DENSE, take={"counts": take}, where={"counts": where})
    there = source_of(ch.open(stored).X, take={"counts": take}, where={"counts": where})
    items = [np.array([0, 5, 319, 20, 20]), np.arange(320), np.array([3, 1]), np.array([], int)]
    for batch, rows in zip(there.minibatches(items), items, strict=True):
        expected = memory.batch(rows)
        assert batch.rows.tolist() == rows.tolist()
        for view in ("counts",):
            np.testing.assert_array_equal(batch[view], expected[view])
            np.testing.assert_array_equal(batch.present[view], expected.present[view])
            np.testing.assert_array_equal(batch.observed[view], expected.observed[view])


# what is read, and when


def test_blocks_are_of_many_values_and_follow_large_chunks(tmp_path):
    x = sp.random(4000, 100, 0.3, "csr", np.float32, rng=0)
    path = write(ad.AnnData(x), tmp_path / "a.h5ad")
    assert ch.open(path).X.block == round(disk.BLOCK_VALUES[0] / 30)
    with h5py.File(path, "r+") as file:
        data = file["X/data"][:]
        del file["X/data"]
        file["X"].create_dataset("data", data=data, chunks=(40_000,))
    assert ch.open(path).X.block == round(20_000 / 30)
    wide = np.ones((5, 3 * disk.BLOCK_VALUES[0]), np.float32)
    assert ch.open(write(ad.AnnData(wide), tmp_path / "b.h5ad")).X.block == 2


class Spy:
    """A dataset that keeps what was read of it."""

    def __init__(self, array):
        self.array, self.reads = array, []

    def __getattr__(self, name):
        return getattr(self.array, name)

    def __getitem__(self, part):
        self.reads.append((part.start, part.stop))
        return self.array[part]


@pytest.mark.parametrize(
    ("chunks", "runs", "reads"),
    [
        (None, [(0, 5), (9, 12), (40, 41)], [(0, 12), (40, 41)]),  # a small gap is read over
        (None, [(i, i + 3) for i in range(0, 60, 6)], [(0, 33), (36, 60 - 3)]),  # up to a size
        (
            (30,),
            [(0, 5), (20, 21), (29, 31), (60, 62)],
            [(0, 31), (60, 62)],
        ),  # a chunk is read once
        ((30,), [(0, 100)], [(0, 100)]),
    ],
)
def test_neighbours_and_pieces_of_a_chunk_are_one_read(tmp_path, monkeypatch, chunks, runs, reads):
    monkeypatch.setattr(disk, "_GAP_VALUES", 4)
    monkeypatch.setattr(disk, "_READ_VALUES", 33)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.arange(100), chunks=chunks)
    with h5py.File(tmp_path / "a.h5") as file:
        spy = Spy(file["x"])
        begin, end = np.array(runs).T
        found = disk._gather("x", spy, begin, end)
    assert found.tolist() == [i for run in runs for i in range(*run)]
    assert spy.reads == reads


def test_the_heaviest_matrix_on_disk_decides_how_much_is_read():
    a, b = Counting(10, 64), Counting(10, 8)
    spec = Spec(("counts", "protein"), {"counts": ("g",), "protein": ("p",)})
    assert Source(spec, np.arange(10), {"counts": a, "protein": b}).block == 8
    assert Source(spec, np.arange(10), {"counts": a, "protein": DENSE[:10]}).block == 64
    assert Source(spec, np.arange(10), {"counts": DENSE, "protein": DENSE}).block == 1


def test_an_epoch_reads_every_row_once_in_the_order_of_the_file():
    n, block = 100_000, 51
    matrix = Counting(n, block)
    source = source_of(matrix)
    rows = np.sort(np.random.default_rng(0).permutation(n)[: 9 * n // 10])
    drawn = Shuffled(128).batches(source, rows, 0, np.random.default_rng(0))
    seen = [batch["counts"][:, 0].numpy() for batch in source.minibatches(drawn)]
    assert sorted(np.concatenate(seen)) == rows.tolist()
    assert all((np.diff(asked) > 0).all() for asked in matrix.asked)
    window = source_module.WINDOW_BLOCKS * block
    assert max(map(len, matrix.asked)) <= window
    # the last two windows are mixed as one, so their blocks are visited twice
    assert sum(map(len, matrix.asked)) == len(rows)
    whole = len(matrix.asked) - 2
    runs = [1 + int((np.diff(a) > 20).sum()) for a in matrix.asked[:whole]]
    assert max(runs) <= source_module.WINDOW_BLOCKS * 1.05 + 2


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_several_processes_make_up_the_joint_minibatches(processes):
    n = 40_000
    joint = list(
        Shuffled(100).batches(source_of(Counting(n, 20)), np.arange(n), 0, np.random.default_rng(0))
    )
    shares = []
    for rank in range(processes):
        matrix = Counting(n, 20)
        mine = (np.array_split(rows, processes)[rank] for rows in joint)
        shares.append([b["counts"][:, 0] for b in source_of(matrix).minibatches(mine)])
        assert max(map(len, matrix.asked)) <= source_module.WINDOW_BLOCKS * 20
        assert sum(map(len, matrix.asked)) == sum(map(len, shares[-1]))
    for rows, *parts in zip(joint, *shares, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), rows)


def test_windows_hold_whole_minibatches_and_at_least_one():
    parts = [np.arange(n) for n in (4, 4, 3, 20, 1)]
    assert [list(map(len, w)) for w in in_windows(parts, 10)] == [[4, 4], [3], [20], [1]]
    assert list(in_windows([], 10)) == []


def test_an_error_of_the_reader_reaches_the_caller():
    class Broken(Counting):
        def __getitem__(self, rows):
            if len(self.asked) == 1:
                raise ch.StoreError("gone")
            return super().__getitem__(rows)

    source = source_of(Broken(5000, 2))
    items = np.array_split(np.arange(5000), 50)
    seen = []
    with pytest.raises(ch.StoreError, match="gone"):
        seen.extend(len(batch) for batch in source.minibatches(items))
    assert sum(seen) == 500  # the window before it was served


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(n):
        x = sp.random(n, 200, 0.2, "csr", np.float32, rng=0)
        x.data = np.ceil(5 * x.data)
        path = write(ad.AnnData(x), tmp_path / f"{n}.h5ad", compression="lzf")
        del x
        cells = ch.open(path)
        source = source_of(cells.X)
        tracemalloc.start()
        look.look(cells.X, np.arange(n))
        for _ in source.minibatches(
            Shuffled(500).batches(source, np.arange(n), 0, np.random.default_rng(0))
        ):
            pass
        for _ in source.batches():
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "WINDOW_BLOCKS", 4)
        patch.setattr(source_module, "CHUNK_VALUES", 2**17)
        patch.setattr(look, "_PIECE", 2**17)
        small, large = peak(4_000), peak(16_000)
    stored = 12_000 * 40 * 8  # what the larger file holds more
    assert large - small < stored / 4


# how it is mixed


def entropy(codes, batches):
    counts = np.stack([np.bincount(codes[rows], minlength=codes.max() + 1) for rows in batches])
    p = counts / counts.sum(1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1)


@pytest.mark.parametrize("n", [20_000, 200_000])
@pytest.mark.parametrize("types", [10, 20])
def test_minibatches_of_a_sorted_file_are_nearly_as_mixed_as_a_true_shuffle(types, n):
    codes = np.sort(np.random.default_rng(0).integers(types, size=n))
    rows = np.sort(np.random.default_rng(1).permutation(n)[: 9 * n // 10])
    found, best = (
        entropy(codes, Shuffled(128).batches(source_of(m), rows, 0, np.random.default_rng(2)))
        for m in (Counting(n, 51), Counting(n, 1))
    )
    assert found.mean() > 0.95 * best.mean()
    assert np.quantile(found, 0.05) > 0.95 * np.quantile(best, 0.05)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3000),
    block=st.integers(2, 40),
    size=st.integers(1, 300),
    window=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_an_epoch_from_disk_has_every_row_once(n, block, size, window, seed):
    generator = np.random.default_rng(seed)
    rows = generator.permutation(2 * n)[:n]
    source = source_of(Counting(2 * n, block))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "WINDOW_BLOCKS", window)
        patch.setattr("chreode.data.sampler.WINDOW_BLOCKS", window)
        parts = list(Shuffled(size).batches(source, rows, 0, np.random.default_rng(seed)))
        again = list(Shuffled(size).batches(source, rows, 0, np.random.default_rng(seed)))
    assert len(parts) == Shuffled(size).n_batches(source, rows)
    assert sorted(np.concatenate(parts)) == sorted(rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_balanced_from_disk_draws_labels_equally():
    codes = np.array([0] * 3000 + [1] * 800 + [-1] * 200)
    source = source_of(Counting(4000, 16), columns={"label": codes})
    batches = list(Balanced(64).batches(source, np.arange(4000), 0, np.random.default_rng(0)))
    drawn = codes[np.concatenate(batches)]
    assert (drawn >= 0).all()
    assert 0.45 < (drawn == 1).mean() < 0.55
    assert entropy(codes, batches).mean() > 0.97 * np.log(2)


# whole files


@pytest.fixture(params=["h5ad", "zarr"])
def full(request, cells, tmp_path):
    """Return cells with every slot, in memory and on disk."""
    cells.raw = cells.copy()
    cells.layers["log"] = np.log1p(cells.X.toarray())
    cells.obsm["table"] = pd.DataFrame({"a": 1.0, "b": 2.0}, index=cells.obs_names)
    cells.obsm["few"] = sp.csr_matrix(DENSE[:, :7].repeat(2, 0)[: cells.n_obs])
    return cells, ch.open(write(cells, tmp_path / f"full.{request.param}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    ["X", "raw", "layers/counts", "layers/log", "obsm/true_latent", "obsm/table", "obsm/few"],
)
def test_every_place_of_a_role_is_found_on_disk(full, place):
    memory, there = full
    expected, names = places.matrix(memory, Place.parse(place), "counts")
    found, found_names = places.matrix(there, Place.parse(place), "counts")
    rows = np.random.default_rng(0).permutation(memory.n_obs)[:50]
    np.testing.assert_array_equal(dense(found[rows]), dense(expected[rows]))
    assert found_names.tolist() == names.tolist()
    assert disk.is_sparse(found) == sp.issparse(expected)


def test_tables_names_and_repr(full):
    memory, there = full
    pd.testing.assert_frame_equal(there.obs, memory.obs)
    pd.testing.assert_frame_equal(there.var, memory.var)
    assert (there.n_obs, there.n_vars) == memory.shape
    assert "500 cells x 300 features on disk in" in repr(there)
    np.testing.assert_array_equal(np.asarray(there.obsm["true_latent"]), memory.obsm["true_latent"])


def test_genes_can_be_chosen_and_cells_cannot(full):
    memory, there = full
    genes = memory.var_names[[5, 200, 3]]
    some = there[:, genes].copy()
    rows = np.arange(20, 60)
    np.testing.assert_array_equal(dense(some.X[rows]), dense(memory[rows, genes].X))
    np.testing.assert_array_equal(some.layers["log"][rows], memory[rows, genes].layers["log"])
    assert some.var_names.tolist() == genes.tolist()
    assert there[:, there.var["true_base"] > 0].n_vars == int((memory.var["true_base"] > 0).sum())
    some.obsm["new"] = 1
    assert "new" not in there.obsm
    with pytest.raises(ch.SchemaError, match="no feature 'gene_x'.*gene_"):
        there[:, ["gene_x"]]
    with pytest.raises(ch.SchemaError, match="rows"):
        there[:5, genes]


def test_what_is_wrong_with_the_values_is_said_as_in_memory(cells, schema, tmp_path):
    counts = cells.layers["counts"].toarray()
    counts[3] = 0
    counts[:, 7] = 0
    bad = counts.copy()
    bad[4, 5], bad[9, 1], bad[2, 2] = -1, 0.5, np.nan
    for name, values in (("good", counts), ("bad", bad)):
        cells.layers["counts"] = sp.csr_matrix(values)
        there = ch.open(write(cells, tmp_path / f"{name}.h5ad"))
        for rows in (None, np.arange(1, 400, 3)):
            found = check.findings(Cells(there, schema), rows)
            assert found == check.findings(Cells(cells, schema), rows)
            assert found


@pytest.mark.slow
def test_a_fit_on_disk_is_a_fit(cells, schema, tmp_path):
    path = write(cells, tmp_path / "cells.h5ad", compression="gzip")
    there = ch.open(path)
    a, b = (ch.PCA(n_latent=5).fit(data, schema) for data in (cells, there))
    np.testing.assert_array_equal(a.embed(cells), b.embed(there))  # read in the same order
    model = ch.SCVI(n_latent=5, n_hidden=32, max_epochs=8)
    a, b = (model.fit(data, schema, seed=0) for data in (cells, there))
    np.testing.assert_array_equal(a.embed(cells), a.embed(there))
    last = [f.history["validation_objective"].iloc[-1] for f in (a, b)]
    first = a.history["validation_objective"].iloc[0]
    assert abs(last[0] - last[1]) < 0.1 * (first - last[0])
    again = model.fit(ch.open(path), schema, seed=0)
    np.testing.assert_array_equal(again.embed(there), b.embed(there))
    assert "X_scvi" in there.obsm
    assert "X_scvi" in there.uns["chreode"]


def test_verbs_stream_from_disk(cells, schema, tmp_path):
    there = ch.open(write(cells, tmp_path / "cells.h5ad"))
    fitted = ch.SCVI(n_latent=5, n_hidden=32, max_epochs=1).fit(cells, schema, seed=0)
    for verb in ("score", "posterior"):
        ask = getattr(fitted, verb)
        np.testing.assert_array_equal(ask(there, seed=1), ask(cells, seed=1))
    new = fitted.predict(there, to={"batch": "batch_1"}, seed=1)
    assert (new.X != fitted.predict(cells, to={"batch": "batch_1"}, seed=1).X).nnz == 0
    assert set(new.obs["batch"]) == {"batch_1"}
    out = fitted.reconstruct(there, into=tmp_path / "out.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(out).X, fitted.reconstruct(cells).X)


def test_nan_on_disk_is_refused_by_models_that_do_not_understand_it(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    values[50, 3] = np.nan
    there = ch.open(write(ad.AnnData(values), tmp_path / "a.h5ad"))
    s = Schema(expression="X")
    with pytest.raises(ch.DataError, match="not measured.*PCA"):
        ch.PCA(n_latent=2).fit(there, s)
    assert np.isfinite(ch.PPCA(n_latent=2).fit(there, s).embed(there)).all()


def test_a_path_is_read_if_it_is_small_and_opened_if_it_is_large(cells, schema, tmp_path):
    path = write(cells, tmp_path / "cells.h5ad", compression="gzip")
    bytes_ = sum(
        x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
        for x in (cells.X, *(x for x in cells.layers.values() if sp.issparse(x)))
    )
    assert files.stored_bytes(path) > bytes_ > path.stat().st_size
    small = read.read(path)
    assert sp.issparse(places.matrix(small, Place.parse("X"), "counts")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "IN_MEMORY", bytes_)
        large = read.read(path)
        assert isinstance(places.matrix(large, Place.parse("X"), "counts")[0], disk.DiskSparse)
        fitted = ch.PCA(n_latent=3).fit(str(path), schema)
        np.testing.assert_array_equal(fitted.embed(path), fitted.embed(cells))


def test_backed_data_are_read_where_they_lie(cells, schema, tmp_path):
    s = Schema(counts="X", batch="obs/batch")
    backed = ad.read_h5ad(write(cells, tmp_path / "cells.h5ad"), backed="r")
    fitted = ch.PCA(n_latent=3).fit(backed, s)
    np.testing.assert_array_equal(fitted.embed(backed), fitted.embed(cells))
    assert isinstance(places.matrix(backed, Place.parse("X"), "counts")[0], disk.DiskSparse)
    assert "X_pca" in backed.obsm
    with pytest.raises(ch.StoreError, match="rows="):
        fitted.embed(backed[:10])


def test_modalities_of_a_mosaic_are_found_on_disk(tmp_path):
    import mudata

    data = ch.simulate.simulate_citeseq(
        150, 60, 8, n_batches=2, absent={"rna": ["batch_1"]}, seed=0
    )
    with mudata.set_options(pull_on_update=False):
        data.write(tmp_path / "m.h5mu")
    there = ch.open(tmp_path / "m.h5mu")
    s = Schema(counts="rna:layers/counts", batch="obs/batch")
    fitted = ch.PCA(n_latent=3).fit(data, s)
    np.testing.assert_array_equal(fitted.embed(there), fitted.embed(data))
    assert np.isnan(there.obsm["X_pca"]).any()
    assert "60 rna, 8 adt" in repr(there)
    with pytest.raises(ch.SchemaError, match="no modality 'rn'"):
        fitted.embed(there, schema=s.with_(counts="rn:X"))
    with pytest.raises(ch.SchemaError, match="name the modality"):
        fitted.embed(there, schema=s.with_(counts="X"))


# several files


@pytest.fixture
def parts(cells, tmp_path):
    """Return paths of three parts of `cells`: as it is, with features turned round, and as zarr."""
    turned = cells[200:350, ::-1].copy()
    turned.X = turned.X.toarray()
    return [
        write(cells[:200].copy(), tmp_path / "a.h5ad"),
        write(turned, tmp_path / "b.h5ad"),
        write(cells[350:].copy(), tmp_path / "c.zarr"),
    ]


@pytest.mark.slow
def test_several_files_are_one(cells, parts, schema):
    there = ch.open(parts)
    assert there.obs_names.tolist() == cells.obs_names.tolist()
    assert there.obs["batch"].tolist() == cells.obs["batch"].tolist()
    rows = np.random.default_rng(0).permutation(cells.n_obs)
    for place in ("X", "layers/counts", "obsm/true_latent"):
        found = places.matrix(there, Place.parse(place), "counts")[0]
        expected = places.matrix(cells, Place.parse(place), "counts")[0]
        for some in (rows, rows[:7], np.arange(190, 210), rows[:0]):
            np.testing.assert_array_equal(dense(found[some]), dense(expected[some]))
    fitted = ch.PCA(n_latent=4).fit(there, schema)
    np.testing.assert_array_equal(fitted.embed(there), fitted.embed(cells))


@pytest.mark.slow
def test_files_with_other_features_are_refused_or_cut_to_what_they_share(cells, parts, tmp_path):
    fewer = write(cells[:50, 10:].copy(), tmp_path / "fewer.h5ad")
    for order in ([parts[0], fewer], [fewer, parts[0]]):
        with pytest.raises(ch.SchemaError, match="10 features in one alone, such as 'gene_.*inner"):
            ch.open(order)
    there = ch.open([parts[0], fewer], join="inner")
    assert there.var_names.tolist() == cells.var_names[10:].tolist()
    np.testing.assert_array_equal(dense(there.X[np.array([0, 200])]), dense(cells[[0, 0], 10:].X))
    # the same barcodes in two files are different cells
    assert there.obs_names[[0, 200]].tolist() == [
        f"{cells.obs_names[0]}-0",
        f"{cells.obs_names[0]}-1",
    ]


def test_slots_that_not_all_files_have_are_not_offered(cells, parts, tmp_path):
    lean = ad.AnnData(cells.X, cells.obs, cells.var, obsm={"true_latent": np.ones((500, 3))})
    there = ch.open([parts[0], write(lean, tmp_path / "lean.h5ad")])
    assert (there.layers, there.obsm, there.raw) == ({}, {}, None)
    with pytest.raises(ch.SchemaError, match="no 'counts' in layers"):
        ch.PCA().fit(there, Schema(counts="layers/counts"))


def test_no_file_is_an_error():
    with pytest.raises(ch.StoreError, match="no file"):
        ch.open([])
    with pytest.raises(ch.StoreError, match=r"no file 'gone\.h5ad'"):
        ch.open("gone.h5ad")


# what cannot be read


def test_columns_are_refused_with_the_cure(tmp_path, cells, schema):
    cells.layers["counts"] = cells.layers["counts"].tocsc()
    there = ch.open(write(cells, tmp_path / "csc.h5ad"))
    with pytest.raises(ch.StoreError, match=r"by columns \(CSC\).*tocsr"):
        ch.PCA().fit(there, schema)
    # another matrix of the file is not touched by that
    assert ch.PCA(n_latent=3).fit(there, Schema(counts="X")).embed(there).shape == (500, 3)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("indptr", lambda x: x[:-1]),
        ("indptr", lambda x: x + 1),
        ("indptr", lambda x: np.where(np.arange(len(x)) == 5, 10**6, x)),
        ("indices", lambda x: np.where(np.arange(len(x)) == 50, G, x)),
        ("indices", lambda x: np.where(np.arange(len(x)) == 50, -1, x)),
        ("data", lambda x: x[:-1]),
    ],
)
def test_damage_is_said_before_it_does_harm(tmp_path, part, change):
    path = write(ad.AnnData(sp.csr_matrix(DENSE)), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        values = change(file["X"][part][:])
        del file["X"][part]
        file["X"][part] = values
    with pytest.raises(ch.StoreError, match="is damaged.*again"):
        ch.open(path).X[np.arange(N)]


def test_a_file_cut_short_while_it_is_open_is_an_error(tmp_path):
    path = write(ad.AnnData(np.ones((20_000, 50), np.float32)), tmp_path / "a.h5ad")
    there = ch.open(path)
    there.X[np.arange(10)]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ch.StoreError, match=r"a\.h5ad.*cut short.*open it anew"):
        there.X[np.arange(19_000, 20_000)]
    del there
    with pytest.raises(ch.StoreError, match="cut short"):
        ch.open(path)


def test_a_folder_of_zarr_that_loses_its_chunks_is_no_matrix_of_zeros(tmp_path):
    path = write(ad.AnnData(sp.csr_matrix(DENSE)), tmp_path / "a.zarr")
    copy = shutil.copytree(path, tmp_path / "b.zarr")
    there = ch.open(path)
    there.X[np.arange(10)]
    shutil.rmtree(path)
    with pytest.raises(ch.StoreError, match="removed.*while it was open"):
        there.X[np.arange(100)]
    shutil.rmtree(copy / "X" / "indices" / "c")
    with pytest.raises(ch.StoreError, match="Its zarr array lacks 1 piece"):
        ch.open(copy).X[np.arange(10)]


def test_zeros_alone_are_no_damage(tmp_path):
    for name, x in (
        ("none", sp.csr_matrix((9, 4))),
        ("first", sp.csr_matrix(np.eye(9, 4) * 0 + [1, 0, 0, 0])),
    ):
        there = ch.open(write(ad.AnnData(x.astype(np.float32)), tmp_path / f"{name}.zarr"))
        np.testing.assert_array_equal(there.X[np.arange(9)].toarray(), x.toarray())


def test_what_is_no_data_is_refused(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"no")
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    (tmp_path / "a.txt").write_text("no")
    for name, said in (
        ("a.h5ad", "cannot be read"),
        ("a.zarr", "cannot be read"),
        ("a.txt", r"ends in \.h5ad"),
    ):
        with pytest.raises(ch.StoreError, match=said):
            ch.open(tmp_path / name)
        with pytest.raises(ch.StoreError, match=said):
            read.read(tmp_path / name)


def test_files_of_old_anndata_are_refused_with_the_cure(tmp_path):
    path = write(ad.AnnData(sp.csr_matrix(DENSE)), tmp_path / "old.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(N, [("X_pca", "f4", 2)])
    for open_ in (ch.open, lambda p: files.editable(p).__enter__()):
        with pytest.raises(ch.StoreError, match=r"old\.h5ad.*older than 0\.7.*write_h5ad"):
            open_(path)
