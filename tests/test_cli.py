"""The command line as its users meet it: in this process where that will do, in one of its own where not."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA

import chreode as ch
from chreode import config, models
from chreode.cli import main
from chreode.commands.common import spoken
from chreode.data.simulate import simulate_cells, simulate_citeseq
from chreode.learn import sgd
from chreode.schema import Schema

KEYS = models.keys()
COMMANDS = ["demo", "check", "embed", "generate", "bench integration", "report", "models", "show"]
ROLES = ["--counts", "layers/counts", "--batch", "obs/batch"]


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    """Return a folder with cells and two fitted models, made by the command line."""
    folder = tmp_path_factory.mktemp("made")
    simulate_cells(200, 80, n_types=3, n_batches=2, seed=0).write_h5ad(folder / "cells.h5ad")
    file = str(folder / "cells.h5ad")
    for key, more in (("scvi", ["--max-epochs", "2"]), ("pca", ["--n-latent", "3"])):
        assert main(["fit", key, file, *ROLES, *more, "-o", str(folder / key)]) == 0
    return folder


@pytest.fixture
def there(_made, tmp_path, monkeypatch):
    """Stand in a folder with ``cells.h5ad`` and the fitted ``scvi`` and ``pca``, as links."""
    for name in ("cells.h5ad", "scvi", "pca"):
        (tmp_path / name).symlink_to(_made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(capsys):
    """Run a command line and return (exit code, stdout, stderr)."""

    def run(line: str):
        code = main(shlex.split(line))
        return code, *capsys.readouterr()

    return run


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def save(data: mudata.MuData, name: str) -> None:
    with mudata.set_options(pull_on_update=False):
        data.write(name)


# help


@pytest.mark.parametrize("command", ["", *COMMANDS, "fit", *(f"fit {k}" for k in KEYS)])
def test_every_command_has_help(say, command):
    code, out, err = say(f"{command} --help")
    assert (code, err) == (0, "")
    assert f"Usage: chreode {command}".strip() in out


def test_the_first_page_and_the_list_of_models_load_no_heavy_library():
    script = (
        "import sys; from chreode.cli import main\n"
        "codes = [main(line.split()) for line in ('--help', 'fit --help', '--version')]\n"
        "heavy = {'torch', 'anndata', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    done = in_a_process("-c", script)
    assert done.returncode == 0, done.stderr
    for key in KEYS:
        assert f" {key} " in done.stdout
    assert ch.__version__ in done.stdout


@pytest.mark.parametrize("key", KEYS)
def test_the_flags_of_fit_are_the_fields_of_the_dataclasses(key):
    command = getattr(importlib.import_module("chreode.commands.fit"), key)
    found = {argument.name: argument for argument in command.assemble_argument_collection()}
    model = models.find(key)
    fields = dataclasses.fields(model) + dataclasses.fields(Schema)
    flags = {"--" + field.name.replace("_", "-"): field for field in fields}
    own = {
        "--output", "--config", "--n-genes", "--validation", "--seed", "--device", "--threads",
        "--resume", "--json",
    }  # fmt: skip
    assert set(found) - {"FILE"} == set(flags) | own
    docs = {row["name"]: row["doc"] for row in config.describe(model)}
    for flag, field in flags.items():
        assert found[flag].field_info.default == field.default
        assert found[flag].parameter.help
        if field.name in docs:
            assert found[flag].parameter.help == docs[field.name]
        if isinstance(field.default, bool):
            assert f"--no-{flag[2:]}" in found[flag].names


def test_only_roles_that_a_model_reads_fill_its_help(say):
    _, out, _ = say("fit pca --help")
    assert "--counts" in out
    assert "--dose" not in out


# fit


def test_fit_is_what_python_does(say, there):
    code, out, _ = say(
        f"fit scvi cells.h5ad {' '.join(ROLES)} --n-latent 4 --linear-decoder --likelihood nb "
        "--max-epochs 2 --seed 3 --validation 0.2 -o runs/a --json"
    )
    told = json.loads(out)
    assert code == 0
    assert told["folder"] == "runs/a"
    assert (told["cells"], told["validation_cells"]) == (160, 40)
    schema = ch.Schema(counts="layers/counts", batch="obs/batch")
    model = ch.SCVI(n_latent=4, linear_decoder=True, likelihood="nb", max_epochs=2)
    same = model.fit("cells.h5ad", schema, seed=3, validation=0.2)
    fitted = ch.load("runs/a")
    assert fitted.model == model
    assert fitted.schema == schema
    for name, tensor in same.module.state_dict().items():
        assert torch.equal(tensor, fitted.module.state_dict()[name])


def test_fit_says_what_it_did(say, there):
    code, out, _ = say(f"fit pca cells.h5ad {' '.join(ROLES)} -o p")
    assert code == 0
    assert "Fitted PCA on 200 cells" in out
    assert "saved to p" in out


def test_a_role_that_takes_several_places(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["site"] = np.where(np.arange(200) % 2, "a", "b")
    cells.obs["lane"] = np.where(np.arange(200) % 3, "a", "b")
    cells.write_h5ad("more.h5ad")
    assert (
        say("fit scvi more.h5ad --counts X --categorical obs/site obs/lane --max-epochs 1 -o c")[0]
        == 0
    )
    assert ch.load("c").spec.categorical == ("site", "lane")


def test_n_genes_keeps_the_most_variable(say, there):
    code, *_ = say("fit pca cells.h5ad --counts X --n-genes 30 --n-latent 4 -o p")
    expected = ch.pp.select_genes("cells.h5ad", ch.Schema(counts="X"), 30)
    assert code == 0
    assert ch.load("p").spec.features["counts"] == tuple(expected)


def test_n_genes_in_a_mudata_narrows_the_modality_of_the_counts(say, there):
    save(simulate_citeseq(120, 60, 8, seed=0), "m.h5mu")
    code, *_ = say("fit pca m.h5mu --counts rna:X --n-genes 20 --n-latent 4 -o p")
    assert code == 0
    assert len(ch.load("p").spec.features["counts"]) == 20


# TOML


def test_a_fit_from_toml_equals_one_from_flags_and_flags_win(say, there):
    Path("fit.toml").write_text(
        '[schema]\ncounts = "layers/counts"\ncategorical = []\nbatch = "obs/cell_type"\n'
        "[model]\nn_latent = 4\nmax_epochs = 2\nlr = 1\nlinear_decoder = true\n"
    )
    code, *_ = say("fit scvi cells.h5ad --config fit.toml --lr 1e-2 --no-linear-decoder "
                   "--batch obs/batch -o toml")  # fmt: skip
    assert code == 0
    say(f"fit scvi cells.h5ad {' '.join(ROLES)} --n-latent 4 --max-epochs 2 --lr 1e-2 -o flags")
    a, b = ch.load("toml"), ch.load("flags")
    assert (a.model, a.schema) == (b.model, b.schema)
    assert all(torch.equal(a.module.state_dict()[k], v) for k, v in b.module.state_dict().items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[modl]\nn_latent = 4\n", "no table 'modl'. Did you mean 'model'?"),
        ("[model]\nn_latnt = 4\n", "no option 'n_latnt'. Did you mean 'n_latent'?"),
        ('[schema]\nbatchs = "obs/batch"\n', "no role 'batchs'. Did you mean 'batch'?"),
        ("[model]\nn_latent = 4.5\n", "n_latent=4.5"),
        ("[model]\nn_latent = 0\n", "n_latent=0"),
        ("model = 3\n", "write [model]"),
        ("[model\n", "cannot be read as TOML"),
    ],
)
def test_a_wrong_toml_is_refused_before_the_data_is_read(say, there, text, said):
    Path("fit.toml").write_text(text)
    code, _, err = say("fit scvi no-such-file.h5ad --config fit.toml -o x")
    assert code == 1
    assert said in err


# going on after Ctrl-C


def test_ctrl_c_keeps_the_model_and_resume_goes_on_as_if_nothing_had_been(say, there, monkeypatch):
    line = f"fit scvi cells.h5ad {' '.join(ROLES)} --max-epochs 4 -o"
    say(f"{line} straight")
    epoch = sgd._Loop.run_epoch

    def stop(loop):
        if loop.epoch == 2:
            raise KeyboardInterrupt
        return epoch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(sgd._Loop, "run_epoch", stop)
        code, out, err = say(f"{line} r --resume")
    assert code == 130
    assert "Converged" not in out
    assert "note: SCVI: interrupted in epoch 2" in err
    assert len(ch.load("r").history) == 2
    code, *_ = say(f"{line} r --resume")
    assert code == 0
    assert not Path("r.checkpoint").exists()
    a, b = ch.load("r"), ch.load("straight")
    assert all(torch.equal(a.module.state_dict()[k], v) for k, v in b.module.state_dict().items())


def test_ctrl_c_elsewhere_is_130_with_no_traceback(say, there, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("chreode.read.read", stop)
    code, out, err = say("check cells.h5ad --json")
    assert code == 130
    assert json.loads(out)["kind"] == "KeyboardInterrupt"
    assert err == "error: interrupted\n"


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
    assert err.startswith("note: counts (layers/counts): 3 of 80 trained features are missing")
    assert err.count("\n") == 1


def test_embed_of_a_mudata_leaves_nan_where_the_modality_is_absent(say, there):
    absent = {"rna": ["batch_1"]}
    save(simulate_citeseq(120, 60, 8, n_batches=2, absent=absent, seed=0), "m.h5mu")
    say("fit pca m.h5mu --counts rna:X --n-latent 4 -o p")
    code, _, err = say("embed p m.h5mu -o out.h5mu")
    assert (code, err) == (0, "")
    with mudata.set_options(pull_on_update=False):
        written = mudata.read_h5mu("out.h5mu")
    lacking = np.isnan(written.obsm["X_pca"]).all(1)
    np.testing.assert_array_equal(lacking, (written.obs["batch"] == "batch_1").to_numpy())


# generate


def test_generate_draws_under_conditions(say, there):
    code, out, _ = say("generate scvi -n 30 --given.batch batch_1 --seed 5 -o new.h5ad")
    assert code == 0
    assert "30 cells (batch batch_1)" in out
    new = ad.read_h5ad("new.h5ad")
    assert set(new.obs["batch"]) == {"batch_1"}
    same = ch.load("scvi").generate(30, given={"batch": "batch_1"}, seed=5)
    assert (new.X != same.X).nnz == 0


# errors: the code, the text, and nothing left behind


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("fit scvi cells.h5ad --counts layers/count -o x", 1, "Did you mean 'counts'?"),
        ("fit scvi cells.h5ad -o x", 1, "SCVI needs counts; name its place, as in --counts"),
        ("fit scvi cells.h5ad --counts obsm/true_latent -o x", 1, "negative values"),
        ("fit scvi cells.h5ad --counts X --n-latent 0 -o x", 1, "n_latent=0"),
        ("fit scvi cells.h5ad --counts X --validation 2 -o x", 1, "validation=2"),
        ("fit scvi cells.h5ad --counts X -o .", 1, "holds no model"),
        ("fit scvi gone.h5ad --counts X -o x", 1, "no file 'gone.h5ad'"),
        ("fit scvi broken.h5ad --counts X -o x", 1, "cannot be read"),
        ("fit pca cells.h5ad --n-genes 5 -o x", 1, "--counts layers/counts"),
        ("fit pca cells.h5ad --counts obsm/whole --n-genes 5 -o x", 1, "X or layers/NAME"),
        ("fit pca cells.h5ad --counts X --n-latent 5.5 -o x", 2, "'5.5' is no whole number"),
        ("fit scvi cells.h5ad --n_latnt 5 -o x", 2, "Did you mean --n-latent?"),
        ("fit scvi cells.h5ad --likelihood nbb -o x", 2, 'Did you mean "nb"?'),
        ("fit scvi cells.h5ad --threads 0 -o x", 2, "--threads"),
        ("fit scvi cells.h5ad --counts X", 2, "--output"),
        ("fit scvii cells.h5ad", 2, 'Did you mean "scvi"?'),
        ("embed pca cells.h5ad -o out.csv", 1, "ends in .h5ad"),
        ("embed gone cells.h5ad -o out.h5ad", 1, "no model folder"),
        ("generate scvi -n 5 --given.batch batch_7 -o new.h5ad", 1, "never seen"),
        ("generate scvi -n 5 --given.donor d -o new.h5ad", 1, "There is: batch"),
        ("generate pca -n 5 -o new.h5ad", 1, "PCA cannot generate; it can"),
        ("generate scvi -n 5 --guidance 2 -o new.h5ad", 1, "no guidance"),
        ("generate scvi -n -1 -o new.h5ad", 1, "n=-1"),
        ("generate scvi -n 5 -o new.csv", 1, "ends in .h5ad"),
        ("bench integration cells.h5ad --counts X --batch obs/batch --label obs/cell_type -o b.json",
         1, "Name what to score"),
        ("bench integration cells.h5ad --counts X --batch obs/batch --keys true_latent -o b.json",
         1, "needs label: --label obs/"),
        ("bench integration cells.h5ad --keys a -o b.csv", 1, "ends in .json"),
        ("report gone.json -o r.html", 1, "gone.json"),
        ("report scvi -o r.pdf", 1, "ends in .html"),
        ("show gone", 1, "no model folder"),
        ("check cells.h5ad --for scv", 1, "Did you mean 'scvi'?"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do_and_leave_nothing_behind(say, there, line, code, said):
    (there / "broken.h5ad").write_bytes(Path("cells.h5ad").read_bytes()[:5000])
    if "whole" in line:
        cells = ad.read_h5ad("cells.h5ad")
        cells.obsm["whole"] = cells.X.toarray()
        (there / "cells.h5ad").unlink()
        cells.write_h5ad("cells.h5ad")
    before = listing(there)
    assert (*say(line)[:2],) == (code, "")
    again, out, err = say(f"{line} --json")
    assert again == code
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    told = json.loads(out)
    assert said in told["error"]
    assert told["kind"].endswith("Error")
    assert listing(there) == before


def test_a_device_that_is_not_there(say, there):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, _, err = say(f"fit scvi cells.h5ad {' '.join(ROLES)} --device cuda -o x")
    assert code == 1
    assert "this machine has" in err


def test_threads_are_set_before_the_work(say, there):
    before = torch.get_num_threads()
    try:
        code, *_ = say(f"fit pca cells.h5ad {' '.join(ROLES)} --threads 2 -o p")
        assert (code, torch.get_num_threads()) == (0, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("say Schema(fractional=True).", "say --fractional."),
        ("say Schema(missing=('nan',)).", "say --missing nan."),
        ("Schema(size_factor='obs/…').", "--size-factor obs/…."),
        ("Schema(counts=3) stays", "Schema(counts=3) stays"),
    ],
)
def test_messages_are_in_the_words_of_the_command_line(text, said):
    assert spoken(text) == said


# check


def test_check_leads_from_a_file_to_a_fit(say, there):
    code, out, _ = say("check cells.h5ad --json")
    first = json.loads(out)
    assert code == 0
    assert first["suggested"] == (
        "chreode check cells.h5ad --counts layers/counts --batch obs/batch --label obs/cell_type"
    )
    code, out, _ = say(first["suggested"].removeprefix("chreode ") + " --json")
    second = json.loads(out)
    assert code == 0
    assert second["findings"] == []
    assert {m["key"] for m in second["models"]} == set(KEYS)
    fit = second["suggested"].removeprefix("chreode ")
    assert fit.startswith("fit scvi cells.h5ad --counts layers/counts")
    assert say(f"{fit} --max-epochs 1")[0] == 0
    assert ch.load("runs/scvi").schema.label == "obs/cell_type"


def test_check_tells_counts_from_what_is_not(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.raw = cells.copy()
    cells.X = np.log1p(cells.X.toarray())
    cells.layers["scaled"] = cells.X - cells.X.mean(0)
    cells.layers["seen"] = (cells.X > 0).astype(np.float32)
    cells.obsm["words"] = np.full((200, 2), "a", dtype=object)
    cells.obsm["lacking"] = np.where(np.arange(400).reshape(200, 2) % 7, 2.0, np.nan)
    cells.write_h5ad("mixed.h5ad")
    _, out, _ = say("check mixed.h5ad --json")
    told = {m["place"]: m for m in json.loads(out)["matrices"]}
    assert {place for place, m in told.items() if m["counts"]} == {
        "raw",
        "layers/counts",
        "layers/seen",
    }
    assert "normalised" in told["X"]["holds"]
    assert "scaled" in told["layers/scaled"]["holds"]
    assert "detected or not" in told["layers/seen"]["holds"]
    assert "no numbers" in told["obsm/words"]["holds"]
    assert "58 NaN" in told["obsm/lacking"]["holds"]
    assert told["layers/counts"] == {
        "place": "layers/counts", "shape": [200, 80], "dtype": "float32", "sparse": True,
        "counts": True, "holds": f"raw counts: whole numbers, 0 to {int(cells.raw.X.max())}",
    }  # fmt: skip


def test_check_looks_at_every_value(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.layers["nearly"] = cells.X.copy()
    cells.layers["nearly"].data[-1] += 0.5
    cells.write_h5ad("nearly.h5ad")
    _, out, _ = say("check nearly.h5ad --json")
    told = {m["place"]: m["counts"] for m in json.loads(out)["matrices"]}
    assert told["X"]
    assert not told["layers/nearly"]


def test_check_describes_columns(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obs["day"] = np.linspace(0, 3.5, 200)
    cells.obs["treatment"] = np.where(np.arange(200) % 2, "ctrl", "IFN beta")
    cells.obs["guide"] = np.where(np.arange(200) % 2, "A", "B")
    cells.obs["bar"] = [f"cell{i}" for i in range(200)]
    cells.obs["annotation"] = np.where(np.arange(200) % 2, "", "T")
    cells.obs["nothing"] = np.nan
    cells.write_h5ad("columns.h5ad")
    _, out, _ = say("check columns.h5ad --json")
    told = json.loads(out)
    columns = {c["place"]: c for c in told["columns"]}
    assert columns["obs/day"]["suits"] == ["time"]
    assert columns["obs/treatment"]["control"] == "ctrl"
    assert columns["obs/guide"]["suits"] == []  # none of its values could be the control
    assert columns["obs/bar"]["kind"] == "names"
    assert columns["obs/annotation"]["lacking"] == 100
    assert columns["obs/nothing"]["holds"] == "no value at all"
    assert told["suggested"].endswith("--perturbation obs/treatment --control ctrl")


def test_check_fails_on_errors_and_names_the_flag_that_mends_them(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.X = cells.X * 0.5
    cells.obs["type"] = np.where(np.arange(200) % 2, "unknown", "T")
    cells.write_h5ad("half.h5ad")
    code, out, _ = say("check half.h5ad --counts X --label obs/type")
    assert code == 1
    assert "error:   counts (X) holds" in out
    assert "say --fractional" in out
    assert "say --missing unknown" in out
    assert "chreode fit" not in out
    code, out, _ = say("check half.h5ad --counts X --fractional --label obs/type --missing unknown")
    assert code == 0
    assert (
        "chreode fit scvi half.h5ad --counts X --label obs/type --missing unknown --fractional"
        in out
    )


def test_check_for_one_model(say, there):
    code, out, _ = say("check cells.h5ad --batch obs/batch --for scvi")
    assert code == 1
    assert "scvi needs counts" in out
    code, out, _ = say("check cells.h5ad --counts X --for pca --json")
    told = json.loads(out)
    assert code == 0
    assert [m["key"] for m in told["models"]] == ["pca"]
    assert told["suggested"] == "chreode fit pca cells.h5ad --counts X -o runs/pca"


def test_check_of_a_mudata_names_modalities_and_drops_copies_of_columns(say, there):
    save(simulate_citeseq(120, 60, 8, n_batches=2, seed=0), "m.h5mu")
    code, out, _ = say("check m.h5mu --json")
    told = json.loads(out)
    assert code == 0
    assert "--counts rna:" in told["suggested"]
    assert "--batch obs/batch" in told["suggested"]
    assert not any(c["place"].endswith(":obs/batch") for c in told["columns"])
    assert say(told["suggested"].removeprefix("chreode "))[0] == 0


def test_check_survives_what_is_odd(say, there):
    cells = ad.read_h5ad("cells.h5ad")[:20].copy()
    cells.obs["whole"] = pd.array([1, None] * 10, dtype="Int64")
    cells.obs["code"] = pd.Categorical([1.0, 2.0] * 10)
    cells.obs["none"] = pd.Categorical([None] * 20, categories=["a"])
    cells.obsm["table"] = pd.DataFrame({"a": 1, "b": "z"}, index=cells.obs_names)
    cells.layers["zero"] = cells.X * 0
    cells.X = None
    cells.obs_names = ["twice", "twice", *cells.obs_names[2:]]
    cells.write_h5ad("odd.h5ad")
    code, out, _ = say("check odd.h5ad --counts X --json")
    told = json.loads(out)
    assert code == 1
    assert "'twice'" in told["findings"][0]["text"]
    assert "no X" in told["findings"][1]["text"]
    assert {m["place"]: m["holds"] for m in told["matrices"]}["layers/zero"] == "zeros alone"
    ad.AnnData(np.zeros((0, 3), np.float32)).write_h5ad("empty.h5ad")
    assert say("check empty.h5ad")[0] == 1


FILES = sorted(p.relative_to(DATA) for p in DATA.rglob("*.h5*")) or [Path("kang_pbmc_ifnb")]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=str)
def test_check_suggests_sound_roles_for_real_files(say, real, file):
    code, out, _ = say(f"check {real(file)} --json")
    suggested = json.loads(out)["suggested"]
    assert code == 0
    assert suggested.split()[3] in ("--counts", "--views")
    code, out, _ = say(suggested.removeprefix("chreode ") + " --json")
    assert code == 0
    assert not [f for f in json.loads(out)["findings"] if f["level"] == "error"]


# bench, report, models, show


def test_bench_and_report(say, there):
    code, out, err = say(
        "bench integration cells.h5ad --counts X --batch obs/batch --label obs/cell_type "
        "--keys true_latent --models ./pca ./scvi --seeds 1 -o bench.json --json"
    )
    told = json.loads(out)
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in told["table"]}
    assert {"PCA", "PCA (2)", "SCVI", "true_latent", "label oracle"} <= set(rows)
    assert rows["label oracle"]["bio"] > rows["SCVI"]["bio"]
    assert told["files"] == ["bench.json"]
    code, out, _ = say("report bench.json -o bench.html")
    assert (code, out) == (0, "written to bench.html\n")
    assert "label oracle" in Path("bench.html").read_text()
    code, out, _ = say("report scvi -o fit.html --json")
    assert (code, json.loads(out)) == (0, {"file": "fit.html"})
    assert "<svg" in Path("fit.html").read_text()


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


# as a process


def in_a_process(*tokens: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(ch.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *tokens], capture_output=True, text=True, env=environment, check=False
    )


def test_a_process_of_its_own(there):
    done = in_a_process("-m", "chreode.cli", "fit", "scvi", "gone.h5ad", "--counts", "X", "-ox")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: There is no file 'gone.h5ad'.\n"
