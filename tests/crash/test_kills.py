"""Jobs killed at random moments go on bit for bit; the benchmark of the same name kills far more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import chreode as ch
from chreode import store
from chreode.data.simulate import simulate_cells

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_nothing_is_lost(tmp_path):
    rows = tmp_path / "rows.jsonl"
    jobs = [
        "fit scvi, two phases",
        "save over a model",
        "generate into a file",
        "chreode embed --in-place",
    ]
    command = [sys.executable, "-m", "benchmarks.crash.run", "--kills", "12", "--rows", str(rows)]
    done = subprocess.run(
        [*command, "--jobs", *jobs], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {row["job"] for row in told} == set(jobs)
    assert all(row["equal"] and not row["lost"] for row in told)
    assert sum(len(row["cuts"]) for row in told) >= 12


def test_the_end_that_a_scheduler_sends_loses_nothing_either(tmp_path):
    simulate_cells(300, 60, n_batches=2, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "model"
    fit = [
        sys.executable,
        "-m",
        "chreode",
        "fit",
        "scvi",
        str(tmp_path / "cells.h5ad"),
        "-o",
        str(out),
    ]
    fit += ["--counts", "layers/counts", "--batch", "obs/batch", "--resume", "--n-hidden", "16"]
    for epochs in ("1", "100"):  # a model that stands there, and a longer fit over it
        running = subprocess.Popen([*fit, "--max-epochs", epochs], stdout=subprocess.DEVNULL)
        if epochs == "1":
            assert running.wait() == 0
    state = tmp_path / "model.checkpoint" / "phase0.safetensors"
    while not state.exists():
        assert running.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    running.terminate()
    assert running.wait() == -signal.SIGTERM
    assert ch.load(out).model.max_epochs == 1
    assert store.read_tensors(state)[1]["epoch"] >= 1
    assert subprocess.run([*fit, "--max-epochs", "100"], stdout=subprocess.DEVNULL).returncode == 0
    assert len(ch.load(out).history) == 100
    assert not state.parent.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"cells.h5ad", "model"}


FULL = """
import resource, signal, sys
import chreode as ch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fitted = ch.load("model")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
try:
    {what}
except ch.StoreError as error:
    assert "untouched" in str(error), error
    print("refused")
fitted.generate(3)  # the session goes on
"""


@pytest.mark.parametrize("size", [0, 20_000, 60_000])
@pytest.mark.parametrize(
    "what",
    [
        'fitted.generate(3_000, into="out.h5ad")',
        'fitted.reconstruct("cells.h5ad", into="out.h5ad")',
        'from chreode.commands.use import embed; embed("model", __import__("pathlib").Path("cells.h5ad"), output=__import__("pathlib").Path("out.h5ad"))',
    ],
)
def test_a_full_disk_is_refused_and_the_session_lives(made, what, size):
    """HDF5 by itself ends the process when it closes a file that it could not write."""
    before = (made / "out.h5ad").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(what=what), str(size)],
        cwd=made, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout == "refused\n", done.stderr
    assert done.returncode == 0
    assert (made / "out.h5ad").read_bytes() == before
    assert {p.name for p in made.iterdir()} == {"cells.h5ad", "model", "out.h5ad"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with cells, a model, and a file that is to be written over."""
    folder = tmp_path_factory.mktemp("made")
    cells = simulate_cells(300, 60, n_batches=2, seed=0)
    cells.write_h5ad(folder / "cells.h5ad")
    ch.SCVI(max_epochs=1, n_hidden=8).fit(cells, ch.Schema(counts="layers/counts")).save(
        folder / "model"
    )
    (folder / "out.h5ad").write_text("what was there before")
    return folder
