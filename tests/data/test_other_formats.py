"""A file of another format is refused by every route, with the call that converts it."""

from __future__ import annotations

import anndata as ad
import pytest

import chreode as ch
from chreode.commands.app import main

SCHEMA = ch.Schema(counts="X")
PYTHON = "in Python: import {0}; a = {1}; a.var_names_make_unique(); a.write_h5ad({2!r})."
CALLS = {
    "x.h5": PYTHON.format("scanpy", "scanpy.read_10x_h5('x.h5')", "x.h5ad"),
    "ten/matrix.mtx.gz": PYTHON.format("scanpy", "scanpy.read_10x_mtx('ten')", "ten/matrix.h5ad"),
    "ten/GSM1_matrix.mtx": PYTHON.format(
        "scanpy", "scanpy.read_10x_mtx('ten', prefix='GSM1_')", "ten/GSM1_matrix.h5ad"
    ),
    "x.mtx": PYTHON.format("anndata", "anndata.io.read_mtx('x.mtx')", "x.h5ad"),
    "x.csv": PYTHON.format("anndata", "anndata.io.read_csv('x.csv')", "x.h5ad"),
    "X.v2.CSV.gz": PYTHON.format("anndata", "anndata.io.read_csv('X.v2.CSV.gz')", "X.v2.h5ad"),
    "x.tsv": PYTHON.format("anndata", r"anndata.io.read_csv('x.tsv', delimiter='\t')", "x.h5ad"),
    "x.txt": PYTHON.format("anndata", "anndata.io.read_text('x.txt')", "x.h5ad"),
    "x.loom": PYTHON.format("anndata", "anndata.io.read_loom('x.loom')", "x.h5ad"),
    "x.h5Seurat": "in R: SeuratDisk::Convert('x.h5Seurat', dest = 'h5ad').",
    "x.rds": "in R: anndataR::write_h5ad(readRDS('x.rds'), 'x.h5ad').",
    "x.h5ad.gz": "Unpack it first: gunzip 'x.h5ad.gz'.",
    "x.loom.gz": "Unpack it first: gunzip 'x.loom.gz'.",
}


@pytest.fixture
def stand(tmp_path, monkeypatch):
    """Stand in a folder with an empty file of this name."""

    def there(name):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        monkeypatch.chdir(tmp_path)
        return name

    return there


ROUTES = {
    "open": ch.open,
    "fit": lambda file: ch.PCA().fit(file, SCHEMA),
    "select_genes": lambda file: ch.pp.select_genes(file, SCHEMA),
    "bench": lambda file: ch.bench.generation(file, SCHEMA),
}


@pytest.mark.parametrize(("name", "said"), CALLS.items(), ids=CALLS)
def test_python_names_the_call_for_this_format(stand, name, said):
    file = stand(name)
    for route in ROUTES.values():
        with pytest.raises(ch.StoreError) as error:
            route(file)
        assert f"{file!r}: expected a name that ends in .h5ad, .h5mu or .zarr." in str(error.value)
        assert said in str(error.value)


@pytest.mark.parametrize(("name", "said"), CALLS.items(), ids=CALLS)
def test_so_does_the_command_line(stand, capsys, name, said):
    file = stand(name)
    for line in (["check", file], ["fit", "pca", file, "--counts", "X", "-o", "m"]):
        assert main(line) == 1
        assert said in capsys.readouterr().err


def test_a_folder_of_10x_is_known_by_what_it_holds(stand):
    stand("ten/matrix.mtx.gz")
    with pytest.raises(ch.StoreError) as error:
        ch.open("ten")
    assert CALLS["ten/matrix.mtx.gz"] in str(error.value)


@pytest.mark.parametrize("name", ["x.pdf", "x.tar.gz", "x"])
def test_of_what_nobody_can_convert_nothing_more_is_said(stand, name):
    with pytest.raises(ch.StoreError, match=r"ends in \.h5ad, \.h5mu or \.zarr\.$"):
        ch.open(stand(name))


def test_what_the_calls_of_anndata_need_is_there():
    for call in ("read_csv", "read_text", "read_mtx", "read_loom"):
        assert callable(getattr(ad.io, call))
