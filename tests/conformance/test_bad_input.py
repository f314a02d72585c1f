"""Bad input ends in an error that says what to do, before any compute, with nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode import models
from chreode.data.cells import Cells
from chreode.data.check import CountsWarning
from chreode.fitted import seal
from chreode.model import Model


@pytest.fixture(params=models.keys())
def model(request, quick):
    return quick(models.find(request.param))


@pytest.fixture
def schema(schema):
    """With time and proteins: a model that has no use for them looks at them all the same."""
    return schema.with_(time="obs/day", trajectory="obs/donor", protein="obsm/protein")


@pytest.fixture
def no_compute(monkeypatch):
    """Fail the test if the model's tensors are so much as built."""

    def learn(*_):
        pytest.fail("compute began before the input was refused")

    monkeypatch.setattr(Model, "_learn", learn)


def counts_with(value):
    def change(cells):
        counts = cells.layers["counts"].toarray()
        counts[3, 7] = value
        cells.layers["counts"] = sp.csr_matrix(counts)

    return change


def normalised(cells):
    cells.layers["counts"] = cells.layers["counts"].multiply(0.37).tocsr()


def scattered_zeros(cells):
    counts = cells.layers["counts"].toarray()
    counts[5] = 0
    cells.layers["counts"] = sp.csr_matrix(counts)


def obs(column, values):
    def change(cells):
        cells.obs[column] = values(cells.n_obs)

    return change


def names(which, value):
    def change(cells):
        index = getattr(cells, which).tolist()
        index[1] = index[0] = value
        with pytest.warns(UserWarning, match="not unique") if which == "obs" else _nothing():
            setattr(cells, which, index)

    return change


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


BAD = {
    "normalised": (normalised, {}, "with decimals .* normalised.*raw counts"),
    "negative": (counts_with(-2.0), {}, "negative value.*raw counts"),
    "NaN": (counts_with(np.nan), {}, "NaN.*remove such cells or features"),
    "infinite": (counts_with(np.inf), {}, "infinite value.*; remove"),
    "zero cell": (scattered_zeros, {}, "1 cell without any counts.*Remove such cells"),
    "absent layer": (None, {"counts": "layers/count"}, "no 'count' in layers.*Did you mean 'counts'"),
    "absent column": (None, {"batch": "obs/batches"}, "no column 'batches'.*Did you mean 'batch'"),
    "absent raw": (None, {"counts": "raw"}, "no raw"),
    "modality of an AnnData": (None, {"counts": "rna:X"}, "names a modality"),
    "batch of one cell": (
        obs("batch", lambda n: ["lonely"] + ["b"] * (n - 1)), {},
        r"1 category of one cell \('lonely'\).*merge",
    ),
    "batch with NaN": (obs("batch", lambda n: [None] + ["b"] * (n - 1)), {}, "no value in 1 cell"),
    "label of floats": (
        obs("cell_type", lambda n: np.linspace(0, 1, n)), {}, "floats, not categories.*continuous",
    ),
    "strings for numbers": (obs("age", lambda n: ["old"] * n), {}, "expected numbers.*extract"),
    "infinite covariate": (obs("age", lambda n: [np.inf] * n), {}, "NaN or infinite"),
    "duplicated genes": (names("var_names", "twice"), {}, "not unique.*var_names_make_unique"),
    "duplicated cells": (names("obs_names", "twice"), {}, "not unique.*obs_names_make_unique"),
    "batch is a matrix": (None, {"batch": "layers/counts"}, "one value per cell.*obs/NAME"),
    "counts is a column": (None, {"counts": "obs/batch"}, "is a matrix"),
    "no place": (None, {"counts": "layer/counts"}, "does not name a place.*layers/NAME"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings(
    "ignore:Variable names are not unique", "ignore:Observation names are not"
)
def test_refused_before_any_compute(model, cells, schema, no_compute, case):
    change, roles, said = BAD[case]
    if change is not None:
        change(cells)
    before = cells.copy()
    with pytest.raises((ch.DataError, ch.SchemaError), match=f"(?s){said}"):
        model.fit(cells, schema.with_(**roles))
    assert list(cells.obsm) == list(before.obsm)
    assert "chreode" not in cells.uns


def test_no_cells_and_too_few(model, cells, schema, no_compute):
    with pytest.raises(ch.DataError, match="no cells"):
        model.fit(cells[:0].copy(), schema)
    with pytest.raises(ch.DataError, match="no cells"):
        model.fit(cells, schema, rows=[])


def test_fewer_cells_than_learning_needs(model, cells):
    cells.obs["day"] = 0.0  # four would do for a path
    with pytest.raises(ch.ChreodeError, match=r"needs?\b"):
        model.fit(cells[:4].copy(), ch.Schema(counts="layers/counts", time="obs/day"))


def test_a_needed_role_that_is_not_named(model, cells, no_compute):
    with pytest.raises(ch.SchemaError, match="needs .*counts; name its place"):
        model.fit(cells, ch.Schema(batch="obs/batch", time="obs/day"))


def test_a_file_cut_short(model, cells, schema, tmp_path, no_compute):
    whole = tmp_path / "whole.h5ad"
    cells.write_h5ad(whole)
    for share in (0.1, 0.5, 0.95):
        cut = tmp_path / "cut.h5ad"
        cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        with pytest.raises(ch.StoreError, match="cannot be read.*cut short"):
            model.fit(cut, schema)
    with pytest.raises(ch.StoreError, match="no file"):
        model.fit(tmp_path / "absent.h5ad", schema)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ch.StoreError, match=r"ends in \.h5ad"):
        model.fit(tmp_path / "table.csv", schema)


def test_strings_that_stand_for_missing_are_pointed_out_and_can_be_declared(cells, schema, quick):
    from chreode.data.check import findings

    cells.obs["cell_type"] = ["unknown" if i < 9 else "B" for i in range(500)]
    said = [f for f in findings(Cells(cells, schema)) if f.level == "warning"]
    assert "9 cells" in said[0].text
    declared = schema.with_(missing=("unknown",))
    assert not [f for f in findings(Cells(cells, declared)) if f.level == "warning"]


def test_silent_genes_are_kept_and_reported(model, cells, schema):
    from chreode.data.check import findings

    cells = cells[:, :100].copy()
    counts = cells.layers["counts"].toarray()
    counts[:, :4] = 0
    counts[:, 10] += 1
    cells.layers["counts"] = sp.csr_matrix(counts)
    silent = int((counts.sum(0) == 0).sum())
    assert silent >= 4
    assert any(
        f"{silent} features with zeros alone" in f.text for f in findings(Cells(cells, schema))
    )
    assert model.fit(cells, schema).spec.n_features("counts") == 100


def test_fractional_counts_must_be_declared(model, cells, schema):
    cells = cells[:, :100].copy()
    normalised(cells)
    assert np.isfinite(model.fit(cells, schema.with_(fractional=True)).embed(cells)).all()


def test_log_normalised_values_are_told_where_fractional_ones_are_counts(model, cells, schema):
    x = cells.layers["counts"].toarray()
    cells.layers["counts"] = sp.csr_matrix(np.log1p(1e4 * x / x.sum(1, keepdims=True)))
    with pytest.warns(CountsWarning, match="looks log-normalised.*as `expression`"):
        model.fit(cells, schema.with_(fractional=True))


@pytest.mark.slow
def test_warnings_name_the_line_of_the_user():
    script = """
import warnings
import anndata, numpy, chreode as ch
x = numpy.random.default_rng(0).poisson(2.0, (40, 30)) + 1.0
cells = anndata.AnnData(numpy.log1p(x / x.sum(1, keepdims=True)))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    pca = ch.PCA(n_latent=2).fit(cells, ch.Schema(counts="X", fractional=True), progress=False)
    pca.embed(cells[:, 1:].copy(), progress=False)
    ch.metrics.neighbours.exact_neighbours(x[:3], k=5)
print(*((w.category.__name__, w.filename, w.lineno) for w in told), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == [
        "('CountsWarning', '<string>', 8)",
        "('MissingFeatures', '<string>', 9)",
        "('UserWarning', '<string>', 10)",
    ]


def test_every_warning_is_given_where_the_line_of_the_user_is_found():
    folder = Path(ch.__file__).parent
    warn = [p.name for p in folder.rglob("*.py") if "warnings.warn(" in p.read_text("utf-8")]
    assert warn == ["errors.py"]


@pytest.fixture(scope="module")
def saved(quick, _simulated, tmp_path_factory):
    """Return a fitted model and the folder it was saved to."""
    roles = ch.Schema(counts="layers/counts", batch="obs/batch")
    fitted = quick(ch.SCVI).fit(_simulated.copy(), roles)
    return fitted, fitted.save(tmp_path_factory.mktemp("models") / "scvi")


class TestModelFolders:
    @pytest.fixture
    def folder(self, saved, tmp_path):
        return Path(shutil.copytree(saved[1], tmp_path / "scvi"))

    @staticmethod
    def edit(folder, change):
        info = json.loads((folder / "model.json").read_text())
        change(info)
        info["sha256"] = seal({k: v for k, v in info.items() if k != "sha256"})
        (folder / "model.json").write_text(json.dumps(info))

    @pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
    def test_a_missing_or_linked_file(self, folder, name):
        target = folder / name
        target.rename(folder / "moved")
        with pytest.raises(ch.StoreError, match=f"{name} is absent or a link"):
            ch.load(folder)
        target.symlink_to(folder / "moved")
        with pytest.raises(ch.StoreError, match=f"{name} is absent or a link"):
            ch.load(folder)

    def test_cut_short(self, folder):
        weights = folder / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ch.StoreError, match="cut short"):
            ch.load(folder)
        (folder / "model.json").write_text((folder / "model.json").read_text()[:200])
        with pytest.raises(ch.StoreError, match="malformed"):
            ch.load(folder)

    def test_changed_bytes(self, folder):
        weights = folder / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
        with pytest.raises(ch.StoreError, match="changed since it was written"):
            ch.load(folder)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda i: i.update(format=99), "newer than this"),
            (lambda i: i.update(format=1), "fit it anew"),
            (lambda i: i.update(key="../../etc/passwd"), "no model"),
            (lambda i: i.update(key="os"), "no model"),
            (lambda i: i["config"].update(n_layers=10**9), "from 1 to 20"),
            (lambda i: i["config"].update(n_hidden=10**8), "provenance is not that of the model"),
            (
                lambda i: [
                    c.update(n_hidden=10**8) for c in (i["config"], i["provenance"]["config"])
                ],
                "size mismatch",
            ),
            (lambda i: i["config"].update(evil=1), "no option 'evil'"),
            (lambda i: i["config"].update(n_latent="10"), "expected a whole number"),
            (lambda i: i.pop("spec"), "spec"),
            (lambda i: i["spec"].pop("features"), "malformed"),
            (lambda i: i["spec"]["blocks"].update(batch=[7]), "do not add up"),
            (lambda i: i["weights"].update(bytes="many"), "cut short|malformed"),
            (lambda i: i.pop("weights"), "malformed"),
        ],
    )
    def test_tampered_descriptions(self, folder, change, said):
        self.edit(folder, change)
        with pytest.raises(ch.StoreError, match=said):
            ch.load(folder)

    def test_no_folder_and_a_folder_of_other_things(self, saved, tmp_path):
        with pytest.raises(ch.StoreError, match="no model folder"):
            ch.load(tmp_path / "absent")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ch.StoreError, match="holds no model"):
            saved[0].save(tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_an_old_folder_survives_a_full_disk(self, saved, folder):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # smaller than the weights
            with pytest.raises(ch.StoreError, match="untouched"):
                saved[0].save(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert [p.name for p in folder.parent.iterdir()] == ["scvi"]

    @pytest.mark.slow
    @pytest.mark.parametrize("when", ["_flush", "replace"])
    def test_an_old_folder_survives_a_kill(self, folder, when):
        script = f"""
import os, signal, pathlib
import chreode as ch
from chreode import store
from chreode.data.cells import Cells
fitted = ch.load({str(folder)!r})
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if {when!r} == "_flush":
    store._flush = die
else:
    plain = pathlib.Path.replace
    calls = []
    def second(self, target):  # when the old folder is out of the way
        calls.append(1)
        return die() if len(calls) == 2 else plain(self, target)
    pathlib.Path.replace = second
fitted.save({str(folder)!r})
"""
        done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
        assert done.returncode == -signal.SIGKILL
        if when == "replace":
            with pytest.warns(UserWarning, match="lost while being replaced"):
                assert ch.load(folder).model.key == "scvi"
        else:
            assert ch.load(folder).model.key == "scvi"


def test_conditions_never_seen_are_named(cells, schema, quick):
    fitted = quick(ch.SCVI).fit(cells, schema)
    with pytest.raises(ch.SchemaError, match="'batch_9' was never seen.*batch_"):
        fitted.generate(5, given={"batch": "batch_9"})
    with pytest.raises(ch.SchemaError, match="Did you mean 'plate'"):
        fitted.generate(5, given={"plat": "plate0"})
    with pytest.raises(ch.SchemaError, match="condition 'label'"):
        fitted.generate(5, given={"label": "type_0"})
    cells.obs["batch"] = "elsewhere"
    with pytest.raises(ch.DataError, match="never saw.*elsewhere.*from_=fitted"):
        fitted.reconstruct(cells)
    assert np.isfinite(fitted.embed(cells)).all()  # the encoder takes no batch


@pytest.mark.parametrize("place", ["X", "raw", "layers/counts", "obsm/genes", "rna:layers/counts"])
def test_what_is_said_to_remove_cells_without_counts_removes_them(cells, quick, place):
    data = cells.copy()
    scattered_zeros(data)
    data.obsm["genes"] = data.layers["counts"]
    if place in ("X", "raw"):
        data.X = data.layers["counts"]
        data.raw = data
    if place != "X":
        data.X = np.ones(data.shape, dtype="float32")  # where no cell is without counts
    with mudata.set_options(pull_on_update=False):
        whole = mudata.MuData({"rna": data}) if place.startswith("rna") else data
    with pytest.raises(ch.DataError, match="without any counts") as told:
        quick(ch.PCA).fit(whole, ch.Schema(counts=place))
    kept = eval(str(told.value).split("Remove such cells: ")[1].removesuffix("."), {"data": whole})
    assert 0 < kept.n_obs < data.n_obs
    quick(ch.PCA).fit(kept, ch.Schema(counts=place.removeprefix("rna:")))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("layers/counts", r"data\.var_names_make_unique\(\)"),
        ("raw", "rename them before you set raw"),
        ("obsm/genes", r"rename the columns of data\.obsm\['genes'\]"),
    ],
)
def test_names_of_features_are_mended_where_they_are(cells, quick, place, said):
    names("var_names", "twice")(cells)
    cells.raw = cells
    cells.obsm["genes"] = pd.DataFrame(cells.X.toarray(), cells.obs_names, cells.var_names)
    with pytest.raises(ch.DataError, match=f"feature names are not unique.*{said}"):
        quick(ch.PCA).fit(cells, ch.Schema(expression=place))


@pytest.mark.parametrize("bad", [-1, 1.5, True])
def test_counts_of_cells_to_generate(cells, schema, quick, bad):
    fitted = quick(ch.SCVI).fit(cells, schema)
    with pytest.raises((ch.ConfigError, Exception), match="whole number|type"):
        fitted.generate(bad)
    assert fitted.generate(0).n_obs == 0
    assert fitted.generate(1).n_obs == 1


def test_results_larger_than_memory_ask_for_a_file(cells, schema, quick, tmp_path):
    fitted = quick(ch.SCVI).fit(cells, schema)
    with pytest.raises(ch.DataError, match=r"GiB.*into='out\.h5ad'"):
        fitted.generate(5_000_000)
    with pytest.raises(ch.StoreError, match=r"ends in \.h5ad"):
        fitted.generate(5, into=tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []
