"""Two processes over gloo learn what one learns from the joint minibatch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import chreode as ch
from chreode.compute.processes import Group
from chreode.errors import ConfigError

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*command: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command, env=QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and what each of two found."""
    worker, folders = str(Path(__file__).with_name("worker.py")), {}
    for kind, launcher in {"alone": [sys.executable], "distributed": TORCHRUN}.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        run(*launcher, worker, str(folders[kind]), kind)
    return {
        kind: [json.loads(file.read_text()) for file in sorted(folder.iterdir())]
        for kind, folder in folders.items()
    }


def test_the_gradient_is_that_of_the_joint_minibatch(found):
    (alone,), both = found["alone"], found["distributed"]
    assert len(both) == 2
    largest = max(np.abs(expected).max() for expected in alone["gradient"].values())
    assert largest > 0
    for one in both:
        for name, expected in alone["gradient"].items():
            np.testing.assert_allclose(
                one["gradient"][name], expected, atol=1e-12 * largest, rtol=0, err_msg=name
            )


def test_both_processes_end_with_the_same_bits(found):
    first, second = found["distributed"]
    assert first["fits"] == second["fits"]


@pytest.mark.parametrize("model", ["scvi", "factoranalysis"])
def test_a_whole_fit_agrees_with_one_process(found, model):
    (alone,), (first, _) = found["alone"], found["distributed"]
    one, shared = alone["fits"][model], first["fits"][model]
    assert one["history"].keys() == shared["history"].keys()
    for name, values in one["history"].items():
        np.testing.assert_allclose(shared["history"][name], values, rtol=2e-4, err_msg=name)
    for name, values in one["weights"].items():
        np.testing.assert_allclose(shared["weights"][name], values, atol=5e-3, err_msg=name)


def test_every_model_ends_with_the_same_bits(found):
    first, second = found["distributed"]
    assert set(first["every"]) == set(ch.models.keys())
    for key, one in first["every"].items():
        assert one == second["every"][key], key
        assert np.isfinite([v for of in one["weights"].values() for v in of if of == of]).any(), key


@pytest.mark.parametrize("lacking", ["few", "half", "most"])
def test_cells_that_lack_a_modality_are_learned_from_alike(found, lacking):
    """One process may have cells that lack nothing, and another cells that lack everything."""
    (alone,), (first, second) = found["alone"], found["distributed"]
    assert first["mosaic"][lacking] == second["mosaic"][lacking]
    one, shared = alone["mosaic"][lacking], first["mosaic"][lacking]
    for name, values in one["history"].items():
        # the least are hundredths of a nat: what is left of them by rounding is told in nats per cell
        np.testing.assert_allclose(
            shared["history"][name], values, rtol=1e-3, atol=1e-4, err_msg=name
        )
    if lacking == "most":  # batch norm of two or three cells makes much of rounding
        return
    for name, values in one["weights"].items():
        # batch norm takes biases before it out: their gradient is rounding, of which Adam makes whole steps
        out = "effect" in name or name.endswith(("linear.bias", "mean.bias"))
        if name.startswith("autoencoder") and not out:
            np.testing.assert_allclose(shared["weights"][name], values, atol=5e-3, err_msg=name)


def test_early_stopping_is_agreed(found):
    (alone,), (first, second) = found["alone"], found["distributed"]
    epochs = [len(f["fits"]["scvi"]["history"]["epoch"]) for f in (alone, first, second)]
    assert len(set(epochs)) == 1


def test_a_loss_that_is_not_finite_in_one_process_stops_all(found):
    for one in found["distributed"]:
        assert "is not finite" in one["broken"]


def test_shares_cover_the_rows():
    rows = np.arange(11)
    shares = [Group(rank, 3).share(rows) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Group().share(rows) is rows


def test_without_torchrun_it_says_what_to_type(cells, schema, quick):
    with pytest.raises(ConfigError, match="torchrun"):
        quick(ch.PPCA).fit(cells, schema, distributed=True)


def test_what_another_program_has_set_is_no_torchrun(cells, schema, quick, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun starts"):
        quick(ch.PPCA).fit(cells, schema, distributed=True)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "x",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="cannot meet"):
        quick(ch.PPCA).fit(cells, schema, distributed=True)


@pytest.mark.slow
def test_the_command_line_shares_a_fit(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    done = run(
        *TORCHRUN, "-m", "chreode", "fit", "scvi", str(tmp_path / "cells.h5ad"), "--counts",
        "layers/counts", "--max-epochs", "2", "-o", str(tmp_path / "model"), "--distributed", "--json",
    )  # fmt: skip
    said = json.loads(done.stdout)  # one document: the first process speaks for both
    assert said["last_epoch"]["epoch"] == 1
    assert ch.load(tmp_path / "model").embed(cells).shape == (500, 10)
