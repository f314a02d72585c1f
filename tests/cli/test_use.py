"""Commands that ask, judge and list: embed, generate, bench, report, models, show."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import warnings
from pathlib import Path

import anndata as ad
import h5py
import mudata
import numpy as np
import pytest
import zarr

import chreode as ch
from chreode import models
from chreode.commands.app import app
from chreode.data.simulate import simulate_citeseq

KEYS = models.keys()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# embed


def test_embed_writes_a_copy_beside_and_nothing_else(say, there):
    before = listing(there)
    code, out, _ = say("embed scvi cells.h5ad")
    assert code == 0
    assert "cells.embedded.h5ad" in out
    written = ad.read_h5ad("cells.embedded.h5ad")
    expected = ch.load("scvi").embed(ad.read_h5ad("cells.h5ad"))
    np.testing.assert_array_equal(written.obsm["X_scvi"], expected)
    assert set(listing(there)) - set(before) == {str(there / "cells.embedded.h5ad")}


def test_embed_overwrites_its_input_only_when_told(say, there):
    Path("mine.h5ad").write_bytes(Path("cells.h5ad").read_bytes())
    for line in ("embed pca mine.h5ad -o mine.h5ad", "embed pca mine.h5ad --in-place -o x.h5ad"):
        code, _, err = say(line)
        assert code == 1
        assert "--in-place" in err
    assert "X_pca" not in ad.read_h5ad("mine.h5ad").obsm
    code, out, _ = say("embed pca mine.h5ad --in-place --key-added X_mine --json")
    assert code == 0
    assert json.loads(out) == {"file": "mine.h5ad", "key": "X_mine", "cells": 200, "n_latent": 3}
    assert "X_mine" in ad.read_h5ad("mine.h5ad").obsm


def test_embed_takes_a_query_whose_counts_live_elsewhere(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    del cells.layers["counts"]
    cells.write_h5ad("query.h5ad")
    assert say("embed scvi query.h5ad -o out.h5ad")[0] == 1
    assert say("embed scvi query.h5ad --counts X -o out.h5ad")[0] == 0


def test_missing_genes_are_one_line_on_stderr(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells[:, 3:].write_h5ad("query.h5ad")
    code, out, err = say("embed scvi query.h5ad -o out.h5ad --json")
    assert code == 0
    assert json.loads(out)["cells"] == 200
    lines = [line for line in err.splitlines() if "lacks 3 of 80 trained features" in line]
    assert len(lines) == 1
    assert lines[0].startswith("note: counts (layers/counts) lacks 3 of 80")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("still improving", "was still improving"),
        ("overfitted", "had been better on the validation cells"),
        ("moving target", ""),
        ("rested", ""),
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        "embed MODEL cells.h5ad -o out.h5ad",
        "generate MODEL -n 5 -o out.h5ad",
        "correct MODEL cells.h5ad --to.batch batch_0 -o out.h5ad",
        "augment MODEL cells.h5ad --by batch -o out.h5ad",
    ],
)  # fmt: skip
def test_a_model_that_had_not_come_to_rest_is_told_in_a_line(say, there, line, state, said):
    fitted = ch.load("scvi")
    fitted.provenance["state"] = state
    fitted.save("model")
    code, _, err = say(line.replace("MODEL", "model"))
    assert code == 0
    assert err.count("\n") == bool(said)
    assert err.startswith("note: The model model " if said else "")
    assert said in err


def test_embed_of_a_mudata_leaves_nan_where_the_modality_is_absent(say, there):
    absent = {"rna": ["batch_1"]}
    with mudata.set_options(pull_on_update=False):
        simulate_citeseq(120, 60, 8, n_batches=2, absent=absent, seed=0).write("m.h5mu")
    say("fit pca m.h5mu --counts rna:X --n-latent 4 -o p")
    code, _, err = say("embed p m.h5mu -o out.h5mu")
    assert (code, err) == (0, "")
    with mudata.set_options(pull_on_update=False):
        written = mudata.read_h5mu("out.h5mu")
    lacking = np.isnan(written.obsm["X_pca"]).all(1)
    np.testing.assert_array_equal(lacking, (written.obs["batch"] == "batch_1").to_numpy())


def stored(path: Path) -> dict[str, tuple]:
    """Return every array and attribute of a file or a zarr folder."""
    found = {}
    file = zarr.open_group(path, mode="r") if path.suffix == ".zarr" else h5py.File(path)
    items = []
    if path.suffix == ".zarr":
        items = list(file.members(max_depth=None))
    else:
        file.visititems(lambda name, item: items.append((name, item)))
    for name, item in items:
        values = np.asarray(item[...]).tolist() if hasattr(item, "dtype") else None
        found[name] = (values, {k: np.asarray(v).tolist() for k, v in item.attrs.items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_embed_adds_its_slots_and_touches_nothing_else(say, there, monkeypatch, suffix, limit):
    cells = ad.read_h5ad("cells.h5ad")
    cells.raw, cells.uns["chreode"] = cells.copy(), {"X_old": "{}"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # news about zarr's formats
        cells.write_h5ad("a.h5ad", compression="gzip") if suffix == ".h5ad" else cells.write_zarr(
            "a.zarr"
        )
    before = stored(Path(f"a{suffix}"))
    monkeypatch.setattr("chreode.data.read.IN_MEMORY", limit)
    for out in (f"a.embedded{suffix}", f"a{suffix}"):
        more = " --in-place" if out == f"a{suffix}" else ""
        assert say(f"embed scvi a{suffix}{more}")[0] == 0
        after = stored(Path(out))
        assert {k: v for k, v in after.items() if k in before} == before
        assert set(after) - set(before) == {"obsm/X_scvi", "uns/chreode/X_scvi"}
        written = (ad.read_h5ad if suffix == ".h5ad" else ad.read_zarr)(out)
        np.testing.assert_array_equal(written.obsm["X_scvi"], ch.load("scvi").embed(cells))
        assert written.uns["chreode"]["X_scvi"] == cells.uns["chreode"]["X_scvi"]
        assert written.uns["chreode"]["X_old"] == "{}"
    # a second time, the slot is replaced
    assert say(f"embed scvi a{suffix} --in-place")[0] == 0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("room", [-1000, 500])  # while it is copied, and while slots are added
def test_a_full_disk_leaves_what_was_there(say, there, in_place, room):
    mine = Path("mine.h5ad")
    mine.write_bytes(Path("cells.h5ad").read_bytes())
    before = listing(there)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (mine.stat().st_size + room, limits[1]))
    try:
        code, _, err = say("embed scvi mine.h5ad" + " --in-place" * in_place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "could not be written" in err
    assert listing(there) == before


# generate


def test_generate_draws_under_conditions(say, there):
    code, out, _ = say("generate scvi -n 30 --given.batch batch_1 --seed 5 -o new.h5ad")
    assert code == 0
    assert "30 cells (batch batch_1)" in out
    new = ad.read_h5ad("new.h5ad")
    assert set(new.obs["batch"]) == {"batch_1"}
    same = ch.load("scvi").generate(30, given={"batch": "batch_1"}, seed=5)
    assert (new.X != same.X).nnz == 0


# bench, report, models, show


@pytest.mark.slow
def test_bench_and_report(say, there):
    code, out, err = say(
        "bench integration cells.h5ad --counts X --batch obs/batch --label obs/cell_type "
        "--keys true_latent --models ./pca ./scvi pca --seeds 1 -o bench.json --json"
    )
    told = json.loads(out)
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in told["table"]}
    assert [*rows] == ["PCA", "Harmony", "true_latent", "PCA pca", "SCVI scvi", "label oracle"]
    assert rows["label oracle"]["bio"] > rows["SCVI scvi"]["bio"]
    assert told["files"] == ["bench.json"]
    code, out, _ = say("report bench.json -o bench.html")
    assert (code, out) == (0, "written to bench.html\n")
    assert "label oracle" in Path("bench.html").read_text()
    code, out, _ = say("report scvi -o fit.html --json")
    assert (code, json.loads(out)) == (0, {"file": "fit.html"})
    assert "<svg" in Path("fit.html").read_text()


@pytest.mark.slow
def test_a_probe_is_a_table_a_file_and_a_page(say, there):
    roles = "--counts layers/counts --batch obs/batch --label obs/cell_type"
    line = (
        f"bench probe cells.h5ad {roles} --tasks typing --seeds 0 --keys true_latent --models ./pca"
    )
    assert (
        "Held out as query, and seen by no fit of a model here: batch_"
        in say(f"{line} --depths 1")[1]
    )
    code, out, _ = say(
        f"{line} --held-out batch_1 --depths 1 0.5 --n-genes 80 -o bench.json --report page.html --json"
    )
    told = json.loads(out)
    rows = {row["method"]: row for row in told["table"]}
    assert code == 0
    assert [*rows] == [
        "PCA", "Harmony", "logistic regression", "true_latent", "PCA pca", "query's own labels",
    ]  # fmt: skip
    assert all(
        "given: it may know the query" in rows[n]["note"] for n in ("true_latent", "PCA pca")
    )
    assert rows["true_latent"]["knn_shared_f1"] > rows["Harmony"]["knn_shared_f1"] - 0.1
    assert told["about"]["held out"] == ["batch_1"]
    assert told["about"]["depths"] == [1.0, 0.5]
    assert "Which types are told for which" in Path("page.html").read_text()
    assert say("report bench.json -o again.html")[0] == 0
    for wrong, why in (
        ("--held-out batch1", "there is no batch 'batch1'. Did you mean 'batch_1'?"),
        ("--held-out batch_0 batch_1", "names all 2 batches"),
        ("--n-genes 60", "name those of the query, as in --held-out"),
        ("--held-out batch_1 --depths 2", "depths: 2 is no share of the counts"),
    ):
        code, out, err = say(f"{line} {wrong}")
        assert (code, out) == (1, "")
        assert why in err
    code, _, err = say(line.replace("--tasks typing", "--tasks typin"))
    assert (code, "no task 'typin'. Did you mean 'typing'?" in err) == (1, True)


def test_genes_that_are_left_out_are_those_of_no_fitted_model(say, there, monkeypatch):
    """It was scored without them, as of a worse model."""
    line = (
        "bench integration cells.h5ad --counts layers/counts --batch obs/batch --label obs/cell_type "
        "--models scvi ./scvi --n-genes"
    )
    code, out, err = say(f"{line} 50")
    assert (code, out) == (1, "")
    assert "--n-genes leaves out 30 of the 80 genes of scvi." in err
    assert (
        "chreode embed scvi cells.h5ad -o embedded.h5ad, then bench embedded.h5ad with --keys X_scvi"
        in err
    )

    def stop(_data, _schema, methods, **_):
        raise ch.DataError(f"judges {[*methods]}")

    monkeypatch.setattr("chreode.bench.integration", stop)
    assert "judges ['SCVI', 'SCVI scvi']" in say(f"{line} 80")[2]


def test_models_say_what_fitted_ones_can(say, there):
    code, out, _ = say("models --json")
    told = {row["key"]: row for row in json.loads(out)}
    assert code == 0
    assert tuple(told) == KEYS
    for key, row in told.items():
        assert getattr(ch, row["class"]) is models.find(key)
        assert row["verbs"]
        assert [f["name"] for f in row["fields"]] == [
            f.name for f in dataclasses.fields(models.find(key))
        ]
    for key in ("scvi", "pca"):
        assert told[key]["verbs"] == ch.load(key).verbs
    assert told["scvi"]["needs"] == ["counts"]
    code, out, _ = say("models")
    assert code == 0
    assert "needs expression or counts" in out


def test_show(say, there):
    code, out, _ = say("show scvi")
    assert code == 0
    for said in ("# SCVI", "| n_latent | 10 |", "layers/counts", "batch_0, batch_1", "train_elbo"):
        assert said in out
    _, out, _ = say("show scvi --json")
    told = json.loads(out)
    assert told["features"] == {"counts": 80}
    assert told["categories"] == {"batch": ["batch_0", "batch_1"]}
    assert [row["epoch"] for row in told["history"]] == [0, 1]


def test_a_long_role_stands_apart_from_its_place(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["condition"] = np.where(np.arange(200) % 2, "a", "b")
    cells.write_h5ad("more.h5ad")
    say("fit scvi more.h5ad --counts X --categorical obs/condition --max-epochs 1 -o c")
    assert "categorical/condition  obs/condition\n" in say("show c")[1]


def test_what_to_leave_out_is_what_was_given(say, there):
    code, _, err = say("correct scvi cells.h5ad --to.batch batch_1 --latent -o z.h5ad")
    assert code == 1
    assert "scvi embeds cells under no other conditions; leave out --latent." in err


def test_show_is_for_people(say, there):
    """No escapes of Markdown, and no rows of what other phases log."""
    fitted = ch.load("scvi")
    object.__setattr__(fitted, "history", fitted.history.assign(other=[0.0, np.nan])[1:])
    fitted.provenance["notes"] += ["n_layers [a|b]", "raise max_epochs (now 2)"]
    fitted.save("model")
    _, out, _ = say("show model")
    assert "raise --max-epochs (now 2)" in out
    assert "Note: n_layers [a|b]." in out
    assert "nan" not in out
    assert r"\[a\|b\]" in Path("model/card.md").read_text()


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("embed pca cells.h5ad -o new.h5ad", "new.h5ad"),
        ("generate scvi -n 3 -o new.h5ad", "new.h5ad"),
        ("correct scvi cells.h5ad --to.batch batch_0 -o new.h5ad", "new.h5ad"),
        ("augment scvi cells.h5ad --by batch -o new.h5ad", "new.h5ad"),
        ("fit pca cells.h5ad --counts X --n-latent 2 -o new", "new"),
    ],
)
def test_what_is_replaced_is_told(say, there, line, made):
    said = f"note: {made} was there already and has been replaced."
    code, _, err = say(line)
    assert code == 0
    assert said not in err
    code, _, err = say(line)
    assert code == 0
    assert said in err
    wrong = "fit pca cells.h5ad --counts X --n-latent 900 -o new" if made == "new" else (
        f"generate scvi -n 3 --given.batch none -o {made}"
    )  # fmt: skip
    code, _, err = say(wrong)
    assert code == 1
    assert "replaced" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "mine"),
    [
        ("embed pca cells.h5ad -o mine.h5ad", "mine.h5ad"),
        ("generate scvi -n 3 -o mine.h5ad", "mine.h5ad"),
        ("generate scvi -n 3 -o notes.h5ad", "notes.h5ad"),
        ("correct scvi cells.h5ad --to.batch batch_0 -o mine.h5ad", "mine.h5ad"),
        ("augment scvi cells.h5ad --by batch -o mine.h5ad", "mine.h5ad"),
        ("trajectory scvi cells.h5ad -o mine.h5ad", "mine.h5ad"),
        ("embed pca a.zarr -o mine.zarr", "mine.zarr/zarr.json"),
        ("report scvi -o mine.html", "mine.html"),
        ("bench integration cells.h5ad --keys a -o mine.json", "mine.json"),
        ("rank scvi -o mine.csv", "mine.csv"),
        ("demo --offline -o .", "bench.json"),
    ],
)
def test_what_chreode_did_not_write_is_never_replaced(say, there, line, mine):
    """A slip in a name took raw data, with a note alone."""
    cells = ad.read_h5ad("cells.h5ad")
    cells.write_h5ad("mine.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # news about zarr's formats
        cells.write_zarr("mine.zarr")
        cells.write_zarr("a.zarr")
    for name in ("notes.h5ad", "mine.html", "mine.csv"):
        Path(name).write_text("years of work")
    for name in ("mine.json", "bench.json"):
        Path(name).write_text('{"years": "of work"}')
    before = listing(there)
    code, out, err = say(line)
    assert (code, out) == (1, "")
    assert "Choose another name, or move this file away first." in err
    assert listing(there) == before
    if mine in ("mine.h5ad", "notes.h5ad"):  # nor in Python
        with pytest.raises(ch.StoreError, match="chreode did not write it"):
            ch.load("scvi").generate(3, into=mine)
    if mine.endswith(".h5ad"):  # an empty file, as pipelines make it, is nothing to lose
        Path(mine).write_bytes(b"")
        assert "move this file away" not in say(line)[2]


@pytest.mark.slow
def test_reports_and_scores_replace_their_own(say, there):
    for _ in range(2):
        assert say("report scvi -o page.html")[0] == 0
    Path("bench.json").write_text(json.dumps({"kind": "integration", "scores": []}, indent=1))
    _, _, err = say("bench integration cells.h5ad --keys a -o bench.json")
    assert "move this file away" not in err


def test_embed_in_place_replaces_nothing_else(say, there):
    Path("mine.h5ad").write_bytes(Path("cells.h5ad").read_bytes())
    assert "replaced" not in say("embed pca mine.h5ad --in-place")[2]
    Path("mine.embedded.h5ad").symlink_to("mine.h5ad")
    before = Path("mine.h5ad").read_bytes()
    code, _, err = say("embed pca mine.h5ad -o mine.embedded.h5ad")
    assert code == 1
    assert "is the input. If it is to be overwritten, add --in-place." in err
    assert Path("mine.h5ad").read_bytes() == before


@pytest.mark.parametrize("stands", ["another result", "a link", "a broken link"])
def test_a_name_that_was_not_given_replaces_nothing(say, there, stands):
    made, other = Path("cells.embedded.h5ad"), Path("other/mine.h5ad")
    other.parent.mkdir()
    other.write_text("years of work")
    if stands == "another result":
        assert say("embed scvi cells.h5ad")[0] == 0
    else:
        made.symlink_to(other if stands == "a link" else "gone.h5ad")
    before = listing(there)
    code, out, err = say("embed pca cells.h5ad")
    assert (code, out) == (1, "")
    assert err == f"error: {made} is there already. To replace it, name it: -o {made}\n"
    assert listing(there) == before
    code = say(f"embed pca cells.h5ad -o {made}")[0]
    assert code == (stands == "a link")  # it leads to what chreode did not write


@pytest.mark.parametrize("scale", ["counts", "log1p CP10k"])
def test_correct_names_what_it_writes(say, there, monkeypatch, scale):
    monkeypatch.setattr(ch.SCVI, "scale", scale)
    code, out, _ = say("correct scvi cells.h5ad --to batch=batch_1 -o new.h5ad")
    assert code == 0
    assert out.split()[0] == ("counts" if scale == "counts" else "expression")


@pytest.mark.parametrize(
    "written", ["--given batch=p=3 --given a.b=NK", "--given.batch p=3 --given.a.b NK"]
)
def test_conditions_are_given_in_two_ways(written):
    _, bound, _ = app.parse_args(f"generate scvi -n 3 -o new.h5ad {written}")
    assert bound.arguments["given"] == {"batch": "p=3", "a.b": "NK"}


def test_augment_reads_roles_elsewhere_and_keeps_the_columns_of_real_cells(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["lane"] = cells.obs["batch"]
    cells.obs["barcode"] = [f"AC{i}" for i in range(200)]
    cells.obs["doublet"] = np.arange(200) % 2 == 0
    cells.obs["n"] = np.arange(200)
    del cells.layers["counts"], cells.obs["batch"]
    cells[:150].write_h5ad("other.h5ad")
    assert say("augment scvi other.h5ad --by batch -o new.h5ad")[0] == 1
    roles = "--counts X --batch obs/lane"
    code, _, err = say(f"augment scvi other.h5ad --by batch --floor 80 {roles} -o new.h5ad")
    assert code == 0
    assert "written as text" not in err
    new = ad.read_h5ad("new.h5ad")
    assert {*cells.obs.columns} < {*new.obs.columns}
    assert new.obs["lane"].value_counts().min() >= 80
    real = new[~new.obs["generated"].to_numpy()].obs
    assert real["barcode"].tolist() == cells.obs["barcode"][:150].tolist()
    assert real["n"].tolist() == list(range(150))
    assert new.obs["barcode"][new.obs["generated"]].isna().all()


@pytest.mark.slow
def test_a_folder_that_is_no_zarr_is_not_replaced_by_one(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # news about zarr's formats
        cells.write_zarr("a.zarr")
    Path("mine.zarr").mkdir()
    Path("mine.zarr/thesis.txt").write_text("years of work")
    code, _, err = say("embed pca a.zarr -o mine.zarr")
    assert code == 1
    assert "holds no .zarr" in err
    assert Path("mine.zarr/thesis.txt").read_text() == "years of work"
    for _ in range(2):  # an older one is replaced
        assert say("embed pca a.zarr -o out.zarr")[0] == 0


def test_nothing_is_written_inside_of_the_input_or_around_it(say, there):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # news about zarr's formats
        ad.read_h5ad("cells.h5ad").write_zarr("whole.zarr")
    shutil.copytree("whole.zarr", "part.zarr")
    shutil.move("part.zarr", "whole.zarr/part.zarr")
    shutil.copytree("pca", "model")
    shutil.copytree("scvi", "model/scvi")
    shutil.copyfile("cells.h5ad", "model/mine.h5ad")
    before = listing(there)
    for line, said in (
        ("embed pca whole.zarr -o whole.zarr/X/new.zarr", "is the input"),
        ("embed pca whole.zarr/part.zarr -o whole.zarr", "holds the input, whole.zarr/part.zarr,"),
        ("fit pca whole.zarr --counts X -o whole.zarr/model", "is the input"),
        ("fit pca model/mine.h5ad --counts X -o model", "holds the input, model/mine.h5ad,"),
        ("fit scvi cells.h5ad --from model/scvi -o model", "holds the input, model/scvi,"),
        ("tune ppca model/mine.h5ad --counts X -o model", "holds the input, model/mine.h5ad,"),
    ):
        code, _, err = say(line)
        assert code == 1
        assert said in err
    assert listing(there) == before
