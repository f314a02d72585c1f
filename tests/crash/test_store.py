"""Writing aside: what replaces what, what is kept, what is cleared away, and what a full disk does."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import chreode as ch
import chreode.fitted
from chreode import store, version
from chreode.version import code_hash


def write(target, text):
    with store.aside(target) as made:
        made.write_text(text)


def write_folder(target, text):
    with store.aside(target) as made:
        made.mkdir()
        (made / "a").write_text(text)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead():
    """Return the number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_dead_process_left_is_removed_and_what_others_write_is_not(tmp_path, dead):
    host = platform.node()
    theirs = [
        f".x.writing-{host}-{os.getpid()}-abc", f".x.writing-{host}x-{dead}-abc",
        f".x.writing-{host}-notes", f".y.writing-{host}-{dead}-abc",
    ]  # fmt: skip
    for name in (*theirs, f".x.writing-{host}-{dead}-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("half")
    write(tmp_path / "x", "whole")
    assert left(tmp_path) == sorted([*theirs, "x"])
    assert (tmp_path / "x").read_text() == "whole"


def test_a_folder_lost_between_two_renames_comes_back(tmp_path, dead):
    previous = tmp_path / f".x.writing-{platform.node()}-{dead}-abc" / "x.previous"
    previous.mkdir(parents=True)
    (previous / "a").write_text("old")
    assert store.survivor(tmp_path / "x") == previous
    with pytest.raises(RuntimeError), store.aside(tmp_path / "x"):
        raise RuntimeError("the new one could not be made")
    assert (tmp_path / "x" / "a").read_text() == "old"
    assert left(tmp_path) == ["x"]
    assert store.survivor(tmp_path / "x") is None


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("old")
    plain, calls = Path.replace, []

    def replace(self, target):
        calls.append(1)
        if len(calls) == 2:  # the old one is out of the way
            raise OSError(5, "Input/output error")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(ch.StoreError, match="untouched"):
        write_folder(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a").read_text() == "old"
    assert left(tmp_path) == ["x"]


def test_links_are_followed_and_what_is_private_stays_private(tmp_path):
    real = tmp_path / "disk"
    real.mkdir()
    (real / "x").write_text("old")
    (real / "x").chmod(0o600)
    (tmp_path / "x").symlink_to(real / "x")
    write(tmp_path / "x", "new")
    assert (tmp_path / "x").is_symlink()
    assert (real / "x").read_text() == "new"
    assert (real / "x").stat().st_mode & 0o777 == 0o600


def test_a_folder_and_a_file_do_not_replace_each_other(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ch.StoreError, match="untouched"):
        write(tmp_path / "folder", "text")
    with pytest.raises(ch.StoreError, match="untouched"):
        write_folder(tmp_path / "file", "text")
    assert (tmp_path / "folder" / "a").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    assert left(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("place", ["/proc/x/out", "/dev/null/out"])
def test_places_that_cannot_be_written(place):
    with pytest.raises(ch.StoreError, match=f"{place} cannot be written"):
        write(place, "text")


@pytest.mark.slow
def test_two_processes_that_write_at_once(tmp_path):
    """The last one wins, and neither fails."""
    script = """
import sys, pathlib
from chreode import store
for i in range(60):
    with store.aside(sys.argv[1]) as made:
        made.mkdir()
        for name in "abc":
            (made / name).write_text(sys.argv[2])
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x"), word])
        for word in ("one", "two", "three")
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert left(tmp_path) == ["x"]
    said = {(tmp_path / "x" / name).read_text() for name in "abc"}
    assert len(said) == 1


@pytest.fixture
def fitted(cells, quick):
    return quick(ch.PCA).fit(cells, ch.Schema(counts="layers/counts"))


def test_other_files_in_a_model_folder_are_kept(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    (folder / "umap.png").write_bytes(b"picture")
    (folder / "notes" / "old").mkdir(parents=True)
    (folder / "notes" / "old" / "model.json").write_text("mine")
    (folder / "latest").symlink_to("umap.png")
    fitted.save(folder)
    assert (folder / "umap.png").read_bytes() == b"picture"
    assert (folder / "notes" / "old" / "model.json").read_text() == "mine"
    assert (folder / "latest").is_symlink()
    assert ch.load(folder).model == fitted.model


def test_a_model_is_not_saved_over_a_file(fitted, tmp_path):
    (tmp_path / "thesis.docx").write_text("years")
    with pytest.raises(ch.StoreError, match="holds no model"):
        fitted.save(tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "years"


def test_a_loaded_model_does_not_change_with_its_file(fitted, cells, tmp_path):
    loaded = ch.load(fitted.save(tmp_path / "model"))
    weights = tmp_path / "model" / "weights.safetensors"
    with weights.open("r+b") as file:  # in place, as rsync --inplace does
        file.truncate(100)
    np.testing.assert_array_equal(loaded.embed(cells), fitted.embed(cells))


def test_a_history_is_read_to_the_last_bit(cells, quick, tmp_path):
    fitted = quick(ch.SCVI).fit(cells, ch.Schema(counts="layers/counts"))
    assert ch.load(fitted.save(tmp_path / "model")).history.equals(fitted.history)


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_tensors_of_every_kind(tmp_path, kind, shape):
    tensor = torch.arange(6)[: int(np.prod(shape))].reshape(shape).to(kind)
    store.write_tensors(tmp_path / "t", {"a": tensor, "b": torch.ones(2, 3).T}, {"epoch": 3})
    tensors, told = store.read_tensors(tmp_path / "t")
    assert told == {"epoch": 3}
    assert torch.equal(tensors["a"], tensor)
    assert torch.equal(tensors["b"], torch.ones(3, 2))


@pytest.fixture
def small_disk():
    """Let every write beyond the first 20,000 bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_hdf5_works_on_until_it_is_told_of_a_full_disk(tmp_path, small_disk):
    values = np.random.default_rng(0).normal(size=(40, 1000))

    def write_and_read_again():
        with store.hdf5(tmp_path / "x.h5") as (file, _):
            for i, row in enumerate(values):
                file.create_dataset(f"{i}/row", data=row)
            file.flush()
            for i in reversed(range(40)):
                np.testing.assert_array_equal(file[f"{i}/row"][:], values[i])

    with pytest.raises(OSError, match="too large"):
        write_and_read_again()
    assert (tmp_path / "x.h5").stat().st_size <= 20_000


def test_chunks_stop_when_the_disk_is_full(tmp_path, small_disk):
    taken = []

    def chunks():
        for i in range(100):
            taken.append(i)
            yield np.ones(1000)

    def write_all():
        with store.hdf5(tmp_path / "x.h5") as (file, while_there_is_room):
            for i, chunk in enumerate(while_there_is_room(chunks())):
                file.create_dataset(str(i), data=chunk)
                file.flush()

    with pytest.raises(OSError, match="too large"):
        write_all()
    assert len(taken) < 5


def test_hdf5_is_hdf5(tmp_path):
    values = np.random.default_rng(0).normal(size=(500, 30))
    with store.hdf5(tmp_path / "x.h5") as (file, while_there_is_room):
        rows = file.create_dataset("rows", (0, 30), "f8", maxshape=(None, 30), chunks=(7, 30))
        for i, part in enumerate(while_there_is_room(np.split(values, 10))):
            rows.resize((50 * (i + 1), 30))
            rows[-50:] = part
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["rows"][:], values)
    shutil.copy(tmp_path / "x.h5", tmp_path / "y.h5")
    with h5py.File(tmp_path / "y.h5", "r+") as file:
        del file["rows"]


def test_the_hash_of_the_code_sees_every_source_file(monkeypatch, tmp_path):
    home = tmp_path / "chreode"
    shutil.copytree(Path(version.__file__).parent, home)
    monkeypatch.setattr(version, "__file__", str(home / "version.py"))
    of = code_hash.__wrapped__
    before = of()
    assert before == code_hash()
    (home / "junk.pyc").write_text("compiled")
    assert of() == before
    for name in ("models/pca.py", "losses/kernel.c", "bench/__init__.py"):
        (home / name).write_text((home / name).read_text() + "\n")
        assert of() != before
        before = of()
    (home / "models" / "pca.py").rename(home / "models" / "pcb.py")
    assert of() != before


def test_every_fit_and_row_names_the_code_that_made_it(fitted, cells, tmp_path):
    assert fitted.provenance["code"] == code_hash()
    roles = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    bench = ch.bench.integration(
        cells, roles, [], seeds=(0,), metrics=["silhouette_label"], into=tmp_path / "rows"
    )
    rows = map(json.loads, (tmp_path / "rows" / "rows.jsonl").read_text().splitlines())
    assert {row["code"] for row in rows} == {bench.about["code"]} == {code_hash()}


# a model that is read while it is replaced


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
@pytest.mark.parametrize("away", [False, True])
def test_a_model_that_is_replaced_while_it_is_read_is_one_of_the_two(
    fitted, cells, quick, tmp_path, monkeypatch, name, away
):
    """The other one comes right before a file is read, or its folder is away for a moment."""
    other = quick(ch.PCA).fit(cells[:300].copy(), ch.Schema(counts="layers/counts"), seed=1)
    folder, plain, done = fitted.save(tmp_path / "model"), store.read_once, []

    def read_once(path, most):
        if path.name == name and not done:
            done.append(1)
            other.save(folder)
            if away:
                folder.rename(tmp_path / "away")
        elif away and done and not folder.exists():
            (tmp_path / "away").rename(folder)
        return plain(path, most)

    monkeypatch.setattr(store, "read_once", read_once)
    if away:  # as between the two renames of a replacement
        monkeypatch.setattr(store, "survivor", lambda _: tmp_path / "away")
        place = ch.fitted._place
        monkeypatch.setattr(
            ch.fitted, "_place",
            lambda f: place(f) or ((tmp_path / "away").rename(folder) and None if done else None),
        )  # fmt: skip
    loaded = ch.load(folder)
    assert loaded.provenance["seed"] == 1
    np.testing.assert_array_equal(loaded.embed(cells), other.embed(cells))


def test_a_folder_of_another_program_is_not_replaced(fitted, tmp_path):
    for name in ("model.json", "history.csv"):
        (tmp_path / name).write_text('{"class_name": "Sequential", "config": {}}')
    with pytest.raises(ch.StoreError, match="holds no model"):
        fitted.save(tmp_path)
    assert (tmp_path / "history.csv").read_text().startswith('{"class_name"')


# strangers' models, sealed anew


def forged(folder, change=lambda info: None, tensors=None, history=None):
    """Write a folder anew whose hashes all fit."""
    info = json.loads((folder / "model.json").read_text())
    weights = folder / "weights.safetensors"
    if tensors is not None:
        held, told = store.read_tensors(weights)
        tensors(held)
        store.write_tensors(weights, held, told)
    if history is not None:
        (folder / "history.csv").write_text(history)
    for key, file in (("weights", weights), ("history", folder / "history.csv")):
        info[key] = {"bytes": file.stat().st_size, "sha256": store.sha256(file)}
    change(info)
    info.pop("sha256")
    (folder / "model.json").write_text(json.dumps({**info, "sha256": ch.fitted.seal(info)}))


def setting(*path, to):
    def change(info):
        for key in path[:-1]:
            info = info[key]
        info[path[-1]] = to

    return change


@pytest.fixture
def strange(cells, quick, tmp_path):
    roles = ch.Schema(counts="layers/counts", batch="obs/batch")
    model = quick(ch.SCVI, max_epochs=1)
    return model.fit(cells[:60, :20].copy(), roles).save(tmp_path / "strange")


NO_NOTES = ("text", [1], [None], [["a"]], ["\x1b[2J"], ["\ud800"], {"a": 1})
WORDS = ("version", "torch", "code", "kernel", "device")
NUMBERS = ("seed", "cells", "validation_cells", "threads")
NO_NUMBERS = (float("nan"), True, "1", 1.0, None, 10**400, [1])


def test_what_is_forged_without_harm_loads(strange):
    notes = ch.load(strange).provenance["notes"]
    forged(strange)
    assert ch.load(strange).provenance["notes"] == notes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_wherever_they_are(strange, value):
    names = list(store.read_tensors(strange / "weights.safetensors")[0])
    whole = (strange / "weights.safetensors").read_bytes()
    for name in names:

        def poison(held, name=name):
            if held[name].is_floating_point() and held[name].numel():
                held[name].view(-1)[-1] = value
            else:
                held["module/another"] = torch.zeros(1)

        forged(strange, tensors=poison)
        with pytest.raises(ch.StoreError):
            ch.load(strange)
        (strange / "weights.safetensors").write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        *[setting("provenance", "notes", to=to) for to in NO_NOTES],
        *[setting("provenance", key, to="\x1b]0;x\x07") for key in WORDS],
        *[setting("provenance", key, to=to) for key in NUMBERS for to in NO_NUMBERS],
        *[setting("provenance", "state", to=to) for to in ("asleep", 1, ["rested"])],
        setting("spec", "blocks", "batch", to=[3, *[0] * 100_000]),
        setting("spec", "blocks", "batch", to=[1]),
        setting("key", to="../scvi"),
        setting("key", to=["scvi"]),
    ],
)  # fmt: skip
def test_odd_descriptions_are_refused(strange, change):
    forged(strange, change)
    with pytest.raises(ch.StoreError):
        ch.load(strange)


@pytest.mark.parametrize(
    "text", ["", "phase", "epoch\n1\n", "phase,epoch\n", "phase,epoch\nfit,\x1b[2J\n"]
)  # fmt: skip
def test_odd_histories_are_refused(strange, text):
    forged(strange, history=text)
    with pytest.raises(ch.StoreError):
        ch.load(strange)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
def test_files_that_promise_terabytes_cost_nothing(strange, name):
    """They are sparse: nothing is stored, and reading them would take all memory."""
    with (strange / name).open("r+b") as file:
        file.truncate(2**41)
    if name != "model.json":
        key = name.partition(".")[0]
        info = json.loads((strange / "model.json").read_text())
        info[key]["bytes"] = 2**41
        info.pop("sha256")
        (strange / "model.json").write_text(json.dumps({**info, "sha256": ch.fitted.seal(info)}))
    with pytest.raises(ch.StoreError, match=r"2,199,023,255,552 bytes, expected"):
        ch.load(strange)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
def test_pipes_links_and_folders_in_the_place_of_files_are_refused(strange, name):
    file = strange / name
    copy = shutil.move(file, strange.parent / "elsewhere")
    for make in (lambda: file.symlink_to(copy), lambda: os.mkfifo(file), file.mkdir):
        make()
        with pytest.raises(ch.StoreError):
            ch.load(strange)
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(ch.StoreError, match="absent"):
        ch.load(strange)
