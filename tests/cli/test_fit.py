"""``chreode fit``: its flags, configuration files, and going on after Ctrl-C."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pytest
import torch

import chreode as ch
from chreode import config, models
from chreode.data.simulate import simulate_citeseq
from chreode.learn import sgd
from chreode.schema import Schema

KEYS = models.keys()
ROLES = "--counts layers/counts --batch obs/batch"


# flags


@pytest.mark.parametrize("key", KEYS)
def test_the_flags_of_fit_are_the_fields_of_the_dataclasses(key):
    command = getattr(importlib.import_module("chreode.commands.fit"), key)
    found = {argument.name: argument for argument in command.assemble_argument_collection()}
    model = models.find(key)
    fields = dataclasses.fields(model) + dataclasses.fields(Schema)
    flags = {"--" + field.name.replace("_", "-"): field for field in fields}
    own = {
        "--output", "--config", "--n-genes", "--rows", "--from", "--validation", "--seed", "--device",
        "--threads", "--resume", "--distributed", "--json",
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


def test_the_stage_to_lengthen_is_named_by_its_flag(say, there):
    code, out, _ = say(f"fit scvi cells.h5ad {ROLES} --max-epochs 1 -o new")
    said = "the stage SCVI was still improving: raise --max-epochs (now 1)"
    assert code == 0
    assert f"Note: {said}." in out
    assert said in say("generate new -n 2 -o cells.new.h5ad")[2]
    assert f"Note: {said.replace('--max-epochs', 'max_epochs')}." in Path("new/card.md").read_text()


def test_only_roles_that_a_model_reads_fill_its_help(say):
    _, out, _ = say("fit pca --help")
    assert "--counts" in out
    assert "--dose" not in out


# fit


def test_fit_is_what_python_does(say, there):
    code, out, _ = say(
        f"fit scvi cells.h5ad {ROLES} --n-latent 4 --linear-decoder --likelihood nb "
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
    code, out, _ = say(f"fit pca cells.h5ad {ROLES} -o p")
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
    code, _, err = say("fit pca cells.h5ad --counts X --n-genes 30 --n-latent 4 -o p")
    expected = ch.pp.select_genes("cells.h5ad", ch.Schema(counts="X"), 30)
    assert code == 0
    cells = ad.read_h5ad("cells.h5ad")
    share = 100 * np.asarray(cells[:, expected].X.sum(1)) / np.asarray(cells.X.sum(1))
    low, middle, high = np.percentile(share, (0, 50, 100))
    assert f"hold {middle:.0f} % of the counts of a cell (median; {low:.0f} to {high:.0f} %)" in err
    assert ch.load("p").spec.features["counts"] == tuple(expected)


def test_depth_is_told_where_counts_are_normalised_alone(say, there):
    more = "--n-genes 30 --n-latent 4 --max-epochs 1 -o s"
    assert "% of the counts" not in say(f"fit scvi cells.h5ad --counts X {more}")[2]
    more = "--n-genes 30 --n-latent 4 -o p"
    assert "% of the counts" not in say(f"fit pca cells.h5ad --expression X {more}")[2]


def test_n_genes_in_a_mudata_narrows_the_modality_of_the_counts(say, there):
    with mudata.set_options(pull_on_update=False):
        simulate_citeseq(120, 60, 8, seed=0).write("m.h5mu")
    code, *_ = say("fit pca m.h5mu --counts rna:X --n-genes 20 --n-latent 4 -o p")
    assert code == 0
    assert len(ch.load("p").spec.features["counts"]) == 20


# from a fit


@pytest.mark.parametrize("label", [True, False])
def test_cells_of_a_new_batch_are_mapped_without_what_the_model_does_not_read(say, there, label):
    """As `check` suggests it, a fit names the labels, which its query may lack."""
    cells = ad.read_h5ad("cells.h5ad")
    query = cells[:60].copy()
    query.obs["batch"] = "new"
    if not label:
        del query.obs["cell_type"]
    query.write_h5ad("query.h5ad")
    few = "--label obs/cell_type --n-latent 4 --n-hidden 16 --max-epochs 1"
    assert say(f"fit scvi cells.h5ad {ROLES} {few} -o base")[0] == 0
    code, _, err = say("fit scvi query.h5ad --from base --max-epochs 1 -o mapped")
    assert code == 0, err
    base, mapped = ch.load("base"), ch.load("mapped")
    assert mapped.spec.categories["batch"] == ("batch_0", "batch_1", "new")
    assert mapped.model == base.model
    for schema in (mapped.schema, base.schema):
        assert (schema.counts, schema.batch) == ("layers/counts", "obs/batch")
    old = base.module.state_dict()
    assert all(torch.equal(mapped.module.state_dict()[name], old[name]) for name in old)


# TOML


def test_a_fit_from_toml_equals_one_from_flags_and_flags_win(say, there):
    Path("fit.toml").write_text(
        '[schema]\ncounts = "layers/counts"\ncategorical = []\nbatch = "obs/cell_type"\n'
        "[model]\nn_latent = 4\nmax_epochs = 2\nlr = 1\nlinear_decoder = true\n"
    )
    code, *_ = say("fit scvi cells.h5ad --config fit.toml --lr 1e-2 --no-linear-decoder "
                   "--batch obs/batch -o toml")  # fmt: skip
    assert code == 0
    say(f"fit scvi cells.h5ad {ROLES} --n-latent 4 --max-epochs 2 --lr 1e-2 -o flags")
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
        ("a = " + "[" * 5000, "cannot be read as TOML"),
    ],
)
def test_a_wrong_toml_is_refused_before_the_data_is_read(say, there, text, said):
    Path("fit.toml").write_text(text)
    code, _, err = say("fit scvi no-such-file.h5ad --config fit.toml -o x")
    assert code == 1
    assert said in err


# going on after Ctrl-C


def test_ctrl_c_keeps_the_model_and_resume_goes_on_as_if_nothing_had_been(say, there, monkeypatch):
    line = f"fit scvi cells.h5ad {ROLES} --max-epochs 4 -o"
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
    assert "was still improving" in out
    assert "note: SCVI: interrupted in epoch 2" in err
    assert len(ch.load("r").history) == 2
    code, *_ = say(f"{line} r --resume")
    assert code == 0
    assert not Path("r.checkpoint").exists()
    a, b = ch.load("r"), ch.load("straight")
    assert all(torch.equal(a.module.state_dict()[k], v) for k, v in b.module.state_dict().items())


def test_an_interrupted_fit_replaces_no_model(say, there, monkeypatch):
    line = f"fit scvi cells.h5ad {ROLES} --max-epochs 3 -o r"
    assert say(line)[0] == 0
    epoch = sgd._Loop.run_epoch

    def stop(loop):
        if loop.epoch == 1:
            raise KeyboardInterrupt
        return epoch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(sgd._Loop, "run_epoch", stop)
        code, out, err = say(line)
    assert code == 130
    assert "saved to r.interrupted, because r holds an older model, which is kept" in out
    assert "replaced" not in err
    assert (len(ch.load("r").history), len(ch.load("r.interrupted").history)) == (3, 1)
    shutil.rmtree("r.interrupted")
    Path("r.interrupted").mkdir()
    Path("r.interrupted/thesis.txt").touch()
    code, _, err = say(line)
    assert code == 1
    assert "r.interrupted exists and holds no model" in err
