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


@pytest.fixture
def made(tmp_path):
    """Return a folder with cells, a model, and a file that is to be written over."""
    cells = simulate_cells(300, 60, n_batches=2, seed=0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    roles = ch.Schema(counts="layers/counts")
    ch.SCVI(max_epochs=1, n_hidden=8).fit(cells, roles).save(tmp_path / "model")
    ch.load(tmp_path / "model").generate(5, into=tmp_path / "out.h5ad")
    return tmp_path


def test_the_end_that_a_scheduler_sends_loses_nothing_either(made):
    fit = "-m chreode fit scvi cells.h5ad --counts layers/counts -o model --resume --max-epochs 40"
    command, alone = [sys.executable, *fit.split()], {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=made, env=alone, stdout=subprocess.DEVNULL)
    state = made / "model.checkpoint" / "phase0.safetensors"
    while not state.exists():
        assert running.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    running.terminate()
    assert running.wait() == -signal.SIGTERM
    assert ch.load(made / "model").model.max_epochs == 1
    assert store.read_tensors(state)[1]["epoch"] >= 1
    subprocess.run(command, cwd=made, env=alone, stdout=subprocess.DEVNULL, check=True)
    assert len(ch.load(made / "model").history) == 40
    assert {p.name for p in made.iterdir()} == {"cells.h5ad", "model", "out.h5ad"}


FULL = """
import resource, signal
from pathlib import Path
import chreode as ch
from chreode.commands.use import embed

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fitted, out = ch.load("model"), Path("out.h5ad")
for size in (0, 5_000, 20_000, 40_000, 60_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    for write in (
        lambda: fitted.generate(3_000, into=out),
        lambda: fitted.reconstruct("cells.h5ad", into=out),
        lambda: embed(Path("model"), Path("cells.h5ad"), output=out),
    ):
        try:
            write()
        except ch.StoreError as error:
            print("untouched" in str(error))
"""


def test_a_full_disk_is_refused_and_the_session_lives(made):
    """HDF5 by itself ends the process when it closes a file that it could not write."""
    before = (made / "out.h5ad").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=made, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 15
    assert (made / "out.h5ad").read_bytes() == before
    assert {p.name for p in made.iterdir()} == {"cells.h5ad", "model", "out.h5ad"}
