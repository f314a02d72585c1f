"""Any words on the command line end in an exit code and a sentence, never in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from fuzz.common import examples
from hypothesis import event, given
from hypothesis import strategies as st

from chreode import FitError
from chreode.commands.app import COMMANDS, main
from chreode.data.simulate import simulate_cells
from chreode.learn import sgd

#: What a system can hand over as a word.
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=8)
NAMES = [place.partition(":")[2] for place, *_ in COMMANDS]
#: Command lines that work, from which others are made.
SOUND = [
    "check cells.h5ad --counts layers/counts --batch obs/batch --label obs/cell_type",
    "check cells.h5ad --for scvi --counts X --json",
    "fit scvi cells.h5ad --counts layers/counts --batch obs/batch -o out --max-epochs 1 --json",
    "fit pca cells.h5ad --counts layers/counts -o out --n-latent 3 --validation 0.2",
    "fit vae cells.h5ad --config fit.toml -o scvi --resume --json",
    "fit nmf cells.h5ad --counts layers/counts -o out --n-genes 5 --n-factors 2",
    "embed scvi cells.h5ad -o out.h5ad --json",
    "embed scvi cells.h5ad --in-place --key-added z",
    "generate scvi -n 3 --given.batch batch_0 -o new.h5ad --json",
    "report scvi -o out.html",
    "models --json",
    "show scvi --json",
    "demo --offline",
    "bench integration cells.h5ad --counts layers/counts --batch obs/batch --label obs/cell_type",
    "tune pca cells.h5ad --counts layers/counts --trials 1",
]
WORDS = st.sampled_from(
    [
        "", "-", "--", "=", "--=", "---", "-x", "--no", "é", "\n", "0", "1", "-1", "3", "1.5",
        "1e3", "nan", "inf", "-inf", "none", "None", "true", "false", "[]", "{}", "null", "'",
        '"', "*", "a=b", "scvi", "pca", "bad", "cells.h5ad", "absent.h5ad", "torn.h5ad",
        "text.h5ad", "fit.toml", "bad.toml", "out.h5ad", "out.html", "out.json", ".", "..",
        "../x/out.h5ad", "cells.h5ad/out.h5ad", "layers/counts", "obs/batch", "obs/", "X", "raw",
        "rna:X", "obsm/X_pca", "batch_0", "cpu", "cuda", "zinb", "--given.", "--given.batch",
        "--given.batch.x",
        "--given.x=1", "--batch=obs/batch", "--json", "--help", "-h", "--version", "-o", "-n",
        "100000000000000000000", "/proc/out.h5ad", 300 * "x" + ".h5ad", *NAMES,
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make a folder with cells, a model, and files that are not what their names say."""
    folder = tmp_path_factory.mktemp("base") / "base"
    folder.mkdir()
    cells = simulate_cells(40, 12, n_types=2, n_batches=2, seed=0)
    cells.obsm["X_pca"] = np.random.default_rng(0).normal(size=(40, 2))
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "torn.h5ad").write_bytes((folder / "cells.h5ad").read_bytes()[:3000])
    (folder / "text.h5ad").write_text("no HDF5")
    (folder / "fit.toml").write_text('[schema]\ncounts = "X"\n[model]\nmax_epochs = 1\n')
    (folder / "bad.toml").write_text("[schema]\ncategorical = 3\n[model]\nlr = 'fast'\n")
    roles = ["--counts", "layers/counts", "--batch", "obs/batch"]
    with contextlib.redirect_stdout(io.StringIO()):
        out = str(folder / "scvi")
        assert main(["fit", "scvi", str(folder / "cells.h5ad"), *roles, "-o", out]) == 0
    shutil.copytree(folder / "scvi", folder / "bad")
    (folder / "bad" / "model.json").write_text("{}")
    return folder


def command(line):
    words = line.split()
    return tuple(words[: 2 if words[0] in ("fit", "bench", "tune") else 1])


@pytest.fixture(scope="module")
def flags():
    """Return the flags on the help page of each command; Ray would take seconds to start."""
    found = {}
    for words in {(), *map(command, SOUND)}:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([*words, "--help"]) == 0
        found[words] = sorted({*re.findall(r"--?[a-z][\w.-]*", said.getvalue())} - {"--ray"})
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Leave out what takes minutes or reaches beyond this process: what is tested comes before it."""

    def too_slow(*_, **__):
        raise FitError("too slow for this test")

    monkeypatch.setattr(sgd, "default_epochs", lambda n: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr("chreode.commands.demo._cells", too_slow)
    monkeypatch.setattr("chreode.bench.integration", too_slow)
    monkeypatch.setattr("chreode.bench.tuning.tune", too_slow)


@st.composite
def mangled(draw, flags):
    """Draw a command line: junk, or a sound one with flags and words put in, left out or exchanged."""
    sound = draw(st.sampled_from(SOUND))
    own = st.sampled_from(flags[command(sound)])
    words = WORDS | TEXT | own | st.sampled_from(flags[()])
    if draw(st.integers(0, 9)) == 0:
        return draw(st.lists(words, max_size=6))
    line = sound.split()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(1, len(line)))
        how = draw(st.sampled_from(["flag"] * 4 + ["value"] * 3 + ["in", "out", "double"]))
        if how == "flag":
            line += [draw(own), draw(WORDS)][: draw(st.integers(1, 2))]
        elif how == "value":
            line[at : at + 1] = [draw(WORDS | TEXT)]
        else:
            new = {"in": [draw(words)], "out": [], "double": line[at - 1 : at] * 2}[how]
            line[at - 1 : at] = new
    return line


@pytest.mark.slow
@examples(120)
@given(data=st.data())
def test_an_exit_code_and_a_sentence(base, flags, tmp_path, monkeypatch, data):
    line = data.draw(mangled(flags), label="line")
    shutil.rmtree(tmp_path / "here", ignore_errors=True)
    shutil.copytree(base, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(line)
    event(f"exit code {code}")
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue() + out.getvalue()
    if code == 2:
        assert err.getvalue().startswith("error: ")
    if "--json" in line and out.getvalue():
        json.loads(out.getvalue())
    elif code == 1 and not out.getvalue():
        assert "error: " in err.getvalue()
    left = [path.name for path in tmp_path.rglob(".*")]
    assert not [name for name in left if "writing" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in SOUND if line.split()[0] not in ("demo", "bench", "tune")]
)
def test_the_sound_ones_work(base, tmp_path, monkeypatch, capsys, line):
    shutil.copytree(base, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert main(line.split()) == 0, capsys.readouterr()
