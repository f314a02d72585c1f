"""``chreode identify diversity``, ``ratio`` and ``encoders``: what Python does, resumed, refused in time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chreode as ch
from chreode.identify import Setting, recovery, studies

SHORT = "--hidden 8 --n-steps 30 --threads 1"
ONE = "identify diversity --mixings identity --samplers theorem --seeds 0"


@pytest.fixture
def say(say, monkeypatch):
    """Run a command line whose final losses are of few draws."""
    monkeypatch.setattr(recovery, "N_SETS", 1)
    monkeypatch.setattr(recovery, "_READ", 60)
    return say


@pytest.fixture
def calls(monkeypatch):
    """Count what is run."""
    settings: list[Setting] = []

    def run(setting: Setting, seed: int = 0):
        settings.append(setting)
        return recovery.recover(setting, seed)

    monkeypatch.setattr(studies, "recover", run)
    return settings


@pytest.mark.parametrize("study", ["", "diversity", "ratio", "encoders"])
def test_help(say, study):
    code, out, err = say(f"identify {study} --help")
    assert (code, err) == (0, "")
    assert f"Usage: chreode identify {study}".strip() in out
    assert ("--n-latent" in out) == bool(study)
    assert "--encoder " not in out  # which the grids set


def test_its_first_page_loads_no_heavy_library():
    script = (
        "import sys; from chreode.commands.app import main\n"
        "code = main(['identify', '--help'])\n"
        "heavy = {'torch', 'anndata', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_is_what_python_does(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = say(f"{ONE} {SHORT} -o rows.json --report page.html --json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    base = Setting(hidden=(8,), n_steps=30)
    study = ch.identify.diversity(
        ["identity"], samplers=["theorem"], seeds=[0], base=base, threads=1
    )
    assert told["kind"] == "diversity"
    assert told["answer"] == study.answer()
    r2 = pytest.approx(study.rows["r2"].tolist(), rel=1e-13)
    assert [row["r2"] for row in told["rows"]] == r2
    assert [row["run"] for row in told["table"]] == list(study.table().index)
    assert told["files"] == ["rows.json", "page.html"]
    saved = json.loads(Path("rows.json").read_text())
    assert [row["r2"] for row in saved["rows"]] == study.rows["r2"].tolist()
    assert "Does a contrastive loss recover the latents?" in Path("page.html").read_text("utf-8")
    code, *_ = say("report rows.json -o again.html")
    assert code == 0
    assert "Does a contrastive loss recover the latents?" in Path("again.html").read_text("utf-8")


def test_it_prints_few_columns_and_the_answer(say):
    code, out, _ = say(f"{ONE} {SHORT}")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split("  ")[0] == ""
    for column in ("R² (95 % interval)", "worst axis", "untrained", "paper", "note"):
        assert column in head
    assert sum(line.startswith("identity, ") for line in lines) == 3
    assert "There is one seed of each run, so nothing is known of how far seeds differ." in lines


def test_grids_are_those_of_the_flags(say, calls):
    more = "--mixings linear --samplers published --seeds 0 --n-latent 4 --kappa 5 --lr 0.01"
    code, *_ = say(
        f"identify ratio {more} --ratios 0 0.5 --n-fixed 2 --n-negatives 8 --batch-size 64 {SHORT}"
    )
    assert code == 0
    kept = {"mixing": "linear", "sampler": "published", "n_latent": 4, "n_fixed": 2, "kappa": 5.0}
    more = {"lr": 0.01, "n_negatives": 8, "batch_size": 64, "hidden": (8,), "n_steps": 30}
    assert calls == [Setting(ratio=ratio, **kept, **more) for ratio in (0.0, 0.5)]


def test_encoders_are_run_in_pairs(say, calls):
    code, *_ = say(
        f"identify encoders --mixings identity --ratios 1 --samplers theorem --seeds 1 {SHORT}"
    )
    assert code == 0
    assert [(s.n_fixed, s.ratio, s.encoder) for s in calls] == [
        (0, 0.0, "mlp"), (0, 0.0, "inverse"), (1, 1.0, "mlp"), (1, 1.0, "inverse"),
    ]  # fmt: skip


def test_what_is_named_twice_is_run_once(say, calls):
    line = "identify diversity --mixings identity identity --fixed 0 3 3 --seeds 0 0"
    code, out, _ = say(f"{line} {SHORT} --json")
    assert code == 0
    runs = [row["run"] for row in json.loads(out)["table"]]
    assert len(calls) == len(runs) == len({*runs})
    assert all(row["seeds"] == 1 for row in json.loads(out)["table"])


def test_it_continues_where_it_was_cut_off(say, calls, tmp_path, monkeypatch):
    line = f"{ONE} {SHORT} --into {tmp_path / 'runs'} --json"
    whole = studies.recover

    def cut_off(setting: Setting, seed: int = 0):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(setting, seed)

    monkeypatch.setattr(studies, "recover", cut_off)
    code, _, err = say(line)
    assert code == 130
    assert "2 " in err
    assert len(calls) == 2
    monkeypatch.setattr(studies, "recover", whole)
    code, out, _ = say(line)
    assert code == 0
    assert len(calls) == 3  # the third alone
    assert say(line)[1] == out
    assert len(calls) == 3  # nothing twice


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("diversity --mixings identiy", r"There is no mixing 'identiy'\. Did you mean 'identity'"),
        (
            "diversity --mixings identity spiral --n-latent 4",
            "defined for n_latent=3; got n_latent=4",
        ),
        ("diversity --fixed 4", "n_fixed=4: latents have 3 coordinates"),
        ("diversity --fixed -1", "n_fixed=-1"),
        ("diversity --samplers theorm", "'theorem'"),
        ("diversity --kappa 0", "kappa=0.0: expected a number above 0"),
        ("diversity --kappa 1e9", "up to 100,000"),
        ("diversity --seeds -1", "seeds: -1"),
        ("ratio --ratios 0 1.5", r"ratio=1\.5\): expected a number from 0 to 1"),
        ("ratio --ratios nan", "ratio=nan"),
        ("encoders --mixings mlp", "there is none for mixing='mlp'"),
        ("diversity --n-negatives 600", "at most 511"),
        ("diversity --into runs -o runs", "choose another place|expected a name"),
    ],
)
def test_bad_input_is_refused_before_compute(say, calls, line, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = say(f"identify {line}")
    assert (code, out, calls) == (1, "", [])

    assert re.search(error, err), err
    assert not list(tmp_path.iterdir())
