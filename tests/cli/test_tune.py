"""``chreode tune`` and the benches' flags to go on and to run on Ray."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import chreode as ch
from chreode import models
from chreode.commands.app import main
from chreode.learn import sgd

pytest.importorskip("optuna")
ROLES = "--counts layers/counts --batch obs/batch"


@pytest.mark.parametrize("key", ["", *models.keys()])
def test_help(say, key):
    code, out, err = say(f"tune {key} --help")
    assert (code, err) == (0, "")
    assert f"Usage: chreode tune {key}".strip() in out


def test_its_first_page_loads_no_heavy_library():
    script = (
        "import sys; from chreode.commands.app import main\n"
        "code = main(['tune', '--help'])\n"
        "heavy = {'torch', 'anndata', 'numpy', 'optuna', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tune_is_what_python_does(say, there):
    code, out, err = say(
        f"tune scvi cells.h5ad {ROLES} --max-epochs 2 --n-hidden 16 --batch-size 64 --trials 3 --seed 2 "
        "-o best --json"
    )
    told = json.loads(out)
    assert (code, err) == (0, "")
    model = ch.SCVI(max_epochs=2, n_hidden=16, batch_size=64)
    schema = ch.Schema(counts="layers/counts", batch="obs/batch")
    tuned = ch.tune(model, "cells.h5ad", schema, trials=3, seed=2)
    assert told["verdict"] == tuned.verdict()
    assert told["improved"] == tuned.improved
    assert [row["objective"] for row in told["trials"]] == tuned.trials["objective"].tolist()
    assert ch.load("best").model == tuned.best
    assert ch.load("best").provenance["seed"] == 2
    assert told["folder"] == "best"


def test_what_is_given_is_not_searched(say, there):
    Path("tune.toml").write_text("[model]\nlr = 0.001\nmax_epochs = 1\n")
    code, out, _ = say(
        f"tune vae cells.h5ad {ROLES} --n-latent 10 --config tune.toml --trials 2 --json"
    )
    told = json.loads(out)
    assert code == 0
    assert set(told["trials"][0]) == {
        "trial", "n_hidden", "n_layers", "batch_size", "objective", "state", "seconds", "note", "seed",
    }  # fmt: skip
    assert {told["best"]["n_latent"], told["best"]["max_epochs"]} == {10, 1}
    assert told["folder"] is None


@pytest.mark.slow
def test_it_says_how_to_fit_the_best(say, there):
    threads = torch.get_num_threads()  # on which the bits depend
    more = f"--n-genes 50 --trials 3 --threads {threads} -o best"
    code, out, _ = say(f"tune ppca cells.h5ad {ROLES} {more}")
    assert code == 0
    best = ch.load("best").model
    said = " ".join(out.split())
    assert "chreode fit ppca cells.h5ad --counts layers/counts" in said
    assert f"--n-latent {best.n_latent} --n-genes 50 --seed 0 --threads {threads} -o best" in said
    assert "PPCA as given" in out
    assert "saved to best" in out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "tune ppca cells.h5ad --counts X --n-latent 5",
            1,
            "no option to search; give fewer options",
        ),
        ("tune pca cells.h5ad --counts X", 1, "pca has no score"),
        ("tune ppca cells.h5ad --counts layers/count", 1, "Did you mean 'counts'?"),
        ("tune ppca cells.h5ad --counts X --trials 0", 2, "--trials"),
        ("tune ppca cells.h5ad --counts X --into thesis", 1, "holds no results"),
        ("tune ppca cells.h5ad --counts X -o thesis", 1, "holds no model"),
        ("tune pcca cells.h5ad", 2, "Did you mean 'pca'?"),
    ],
)
def test_errors(say, there, line, code, said):
    (there / "thesis").mkdir()
    (there / "thesis" / "chapter.txt").touch()
    again, _, err = say(line)
    assert again == code
    assert said in err


@pytest.mark.slow
def test_a_last_fit_that_was_cut_is_not_done(say, there, monkeypatch):
    epoch, fits = sgd._Loop.run_epoch, []

    def stop(loop):
        fits.extend([loop] if loop.epoch == 0 else [])
        if len(fits) == 5 and loop.epoch == 1:  # a trial and three refits came before
            raise KeyboardInterrupt
        return epoch(loop)

    monkeypatch.setattr(sgd._Loop, "run_epoch", stop)
    line = "tune vae cells.h5ad --counts X --n-latent 2 --max-epochs 2 --trials 1 -o best"
    code, out, err = say(line)
    assert code == 130
    assert "Note: interrupted in epoch 1" in out
    assert "note: VAE: interrupted in epoch 1" in err
    fits.clear()
    assert "fitted on all cells and saved to best.interrupted, because best" in say(line)[1]


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(say, there, monkeypatch):
    line = (
        "bench integration cells.h5ad --counts X --batch obs/batch --label obs/cell_type "
        "--keys true_latent --models scvi --seeds 0 --into runs --json"
    )
    epoch = sgd._Loop.run_epoch

    def stop(loop):
        signal.raise_signal(signal.SIGINT)
        return epoch(loop)

    with monkeypatch.context() as patch:
        patch.setattr(sgd._Loop, "run_epoch", stop)
        code, out, err = say(line)
    assert code == 130
    said = "interrupted; runs keeps 3 results, and the same call goes on from there"
    assert err == f"error: {said}\n"
    assert json.loads(out) == {"error": said, "kind": "KeyboardInterrupt"}
    monkeypatch.setattr(sgd, "default_epochs", lambda _: 2)
    assert say(line)[0] == 0
    lines = [json.loads(line) for line in Path("runs/rows.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines[1:]] == [
        f"{name}, seed 0" for name in ("PCA", "Harmony", "true_latent", "SCVI", "label oracle")
    ]


@pytest.mark.slow
def test_a_bench_and_a_search_on_ray(say, there):
    pytest.importorskip("ray")
    roles = "--counts X --batch obs/batch --label obs/cell_type"
    line = f"bench integration cells.h5ad {roles} --keys true_latent --models pca --seeds 0 --json"
    here, there_ = (json.loads(say(f"{line}{ray}")[1]) for ray in ("", " --ray"))
    assert there_["scores"] == here["scores"]
    line = f"tune ppca cells.h5ad {roles} --trials 1 --json"
    here, there_ = (json.loads(say(f"{line}{ray}")[1]) for ray in ("", " --ray"))
    assert there_["trials"][0]["objective"] == here["trials"][0]["objective"]
    assert there_["about"] == here["about"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cells.h5ad", "my cells.h5ad"])
def test_the_command_that_is_suggested_runs_as_printed(capsys, there, name):
    """Roles, options that were given, and quotes are in it."""
    Path("cells.h5ad").rename(name)
    given = ["--max-epochs", "2", "--trials", "1", "--n-genes", "40"]
    assert main(["tune", "scvi", name, *ROLES.split(), *given]) == 0
    out = capsys.readouterr().out
    words = shlex.split(out.split("The best: ")[1].splitlines()[0])
    assert words[:2] == ["chreode", "fit"]
    assert main(words[1:]) == 0
    fitted = ch.load(words[words.index("-o") + 1])
    assert fitted.schema == ch.Schema(counts="layers/counts", batch="obs/batch")
    assert fitted.model.max_epochs == 2
    assert fitted.spec.n_features("counts") == 40
