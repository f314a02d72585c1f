"""Trials on a Ray cluster of two workers: the same rows, workers that die, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import chreode as ch
from chreode.compute.progress import bar
from chreode.data.simulate import simulate_citeseq
from chreode.trials import cluster
from chreode.trials.runner import running
from chreode.trials.trial import Trial

ray = pytest.importorskip("ray")
SMALL = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 2**27}


@pytest.fixture(scope="module", autouse=True)
def two_workers():
    """Start a cluster, which trials then use and leave alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, logging_level="error", **SMALL)
        # workers cannot import test modules
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()


def run(calls, shared=None, into=None, threads=1):
    trials = [Trial(name, call, {"name": name}) for name, call in calls.items()]
    with (
        bar(len(trials), "test", False) as shown,
        running(shared, {"about": "tests"}, into=into, ray=threads) as runner,
    ):
        assert runner.workers == 2 // threads
        return dict(zip(calls, runner.run(trials, shown), strict=True))


def told(value, _):
    return {"value": value}, {"x": np.full(3, value, np.float32)}


def slowly(seconds, value, _):
    time.sleep(seconds)
    return {"value": value}, {}


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_first(file, _):
    """Kill the worker, but not the next one."""
    if not file.exists():
        file.touch()
        die(None)
    return {"value": "second attempt"}, {}


def wait_to_be_killed(file, _):
    """Tell who is to be killed, and wait for it; the next worker does not wait."""
    if file.exists():
        return {"value": "second attempt"}, {}
    file.with_suffix(".part").write_text(str(os.getpid()))
    file.with_suffix(".part").rename(file)
    time.sleep(60)
    return {"value": "nobody came"}, {}


# what becomes of trials


def test_results_are_in_the_order_of_the_trials_and_can_be_written_to():
    done = run({"slow": partial(slowly, 0.5, 1), "fast": partial(told, 2)})
    assert [(n, o.row["value"], o.attempts) for n, o in done.items()] == [
        ("slow", 1, 1),
        ("fast", 2, 1),
    ]
    done["fast"].arrays["x"] += 1
    assert ray.is_initialized()


def test_a_worker_that_dies_is_replaced(tmp_path):
    done = run({
        "a": partial(told, 1), "dies": partial(die_at_first, tmp_path / "died"), "b": partial(told, 2),
    })  # fmt: skip
    assert [o.failed for o in done.values()] == ["", "", ""]
    assert done["dies"].row == {"value": "second attempt"}
    assert {name: o.attempts for name, o in done.items()} == {"a": 1, "dies": 2, "b": 1}


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    file = tmp_path / "worker"

    def kill():
        wait_for(file.exists)
        os.kill(int(file.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    done = run({"a": partial(told, 1), "killed": partial(wait_to_be_killed, file)})
    assert done["killed"].row == {"value": "second attempt"}
    assert done["killed"].attempts == 2
    assert done["a"].row == {"value": 1}


@pytest.mark.slow
def test_a_trial_that_always_dies_is_a_row_and_is_tried_again_next_time(tmp_path):
    done = run({"a": partial(told, 1), "dies": die, "b": partial(told, 2)}, into=tmp_path)
    assert done["dies"].attempts == cluster.RETRIES + 1 == 3
    assert (
        done["dies"].failed == "its worker died 3 times (WorkerCrashed): killed, or out of memory"
    )
    assert [done[n].row["value"] for n in ("a", "b")] == [1, 2]
    done = run({"a": die, "dies": partial(told, 3), "b": die}, into=tmp_path)
    assert [o.row["value"] for o in done.values()] == [1, 3, 2]


@pytest.mark.slow
def test_errors_come_back_as_rows():
    def wrong(error, _):
        raise error

    with pytest.warns(UserWarning, match="bug failed: KeyError: 'x'"):
        done = run({
            "data": partial(wrong, ch.DataError("too few cells")), "bug": partial(wrong, KeyError("x")),
            "a": partial(told, 1),
        })  # fmt: skip
    assert done["data"].failed == "too few cells"
    assert not done["a"].failed


@pytest.mark.slow
def test_each_trial_has_its_threads():
    def threads(_):
        return {"threads": torch.get_num_threads()}, {}

    for n in (1, 2):
        assert run({"a": threads}, threads=n)["a"].row == {"threads": n}
    with pytest.raises(ch.ConfigError, match="A trial of 3 threads does not fit"):
        run({"a": threads}, threads=3)


@pytest.mark.slow
def test_what_is_shared_travels_once_and_is_whole():
    shared = np.arange(10.0)

    def total(values):
        return {"total": float(values.sum()), "own": bool(values.flags.writeable)}, {}

    done = run({str(i): total for i in range(4)}, shared)
    assert all(o.row == {"total": 45.0, "own": False} for o in done.values())


# benches


@pytest.fixture(scope="module")
def arguments(_simulated, quick):
    cells = _simulated[:200, :100].copy()
    cells.obsm["X_noise"] = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    schema = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    fitted = quick(ch.VAE).fit(cells, schema, seed=5)
    methods = ["noise", quick(ch.SCVI), quick(ch.SCVI, n_latent=3), fitted]
    options = {"seeds": (0, 1), "metrics": ["silhouette_label", "nmi_kmeans", "ilisi"]}
    return (cells, schema, methods), options


@pytest.mark.slow
def test_a_bench_is_the_same_with_and_without_ray(arguments, tmp_path):
    (cells, schema, methods), options = arguments
    cells.write_h5ad(tmp_path / "cells.h5ad")
    here = ch.bench.integration(cells, schema, methods, **options)
    there = ch.bench.integration(cells, schema, methods, ray=True, **options)
    file = ch.bench.integration(tmp_path / "cells.h5ad", schema, methods, ray=True, **options)
    for other in (there, file):
        pd.testing.assert_frame_equal(other.scores, here.scores, check_exact=True)
        pd.testing.assert_frame_equal(
            other.methods.drop(columns="seconds"), here.methods.drop(columns="seconds")
        )
        assert list(other.embeddings) == list(here.embeddings)
        for name, x in here.embeddings.items():
            np.testing.assert_array_equal(other.embeddings[name], x)
        assert other.about == here.about


def fit_and_embed_at_second_attempt(file, model, given, seed):
    if not file.exists():
        file.touch()
        die(None)
    # the module of the worker: that of the test's process has this function in its place
    return import_module("chreode.bench.embedded")._fit_and_embed(model, given, seed)


@pytest.mark.slow
def test_a_bench_that_loses_a_worker_has_all_its_rows(arguments, tmp_path, monkeypatch):
    (cells, schema, methods), options = arguments
    here = ch.bench.integration(cells, schema, methods, **options)
    monkeypatch.setattr(
        import_module("chreode.bench.embedded"),
        "_fit_and_embed",
        partial(fit_and_embed_at_second_attempt, tmp_path / "died"),
    )
    there = ch.bench.integration(cells, schema, methods, ray=True, into=tmp_path / "run", **options)
    pd.testing.assert_frame_equal(there.scores, here.scores, check_exact=True)
    lines = map(json.loads, (tmp_path / "run" / "rows.jsonl").read_text().splitlines()[1:])
    attempts = {line["trial"]: line["attempts"] for line in lines}
    assert sorted(attempts.values()) == [1] * (len(attempts) - 1) + [2]


@pytest.mark.slow
def test_a_search_on_two_workers_is_the_same_each_time(arguments, quick):
    (cells, schema, _), _ = arguments
    options = {"trials": 5, "space": {"n_latent": (2, 20), "lr": (1e-4, 1e-2)}}
    model = quick(ch.VAE, n_latent=5)
    a, b = (ch.tune(model, cells, schema, ray=True, **options) for _ in range(2))
    pd.testing.assert_frame_equal(
        a.trials.drop(columns="seconds"), b.trials.drop(columns="seconds")
    )
    assert a.best == b.best
    # what is suggested depends on how many run at once, and what each brings does not
    here = ch.tune(model, cells, schema, **{**options, "trials": 1})
    assert here.trials.loc[0, "objective"] == a.trials.loc[0, "objective"]
    pd.testing.assert_frame_equal(
        here.refits.drop(columns="seconds"), a.refits[:3].drop(columns="seconds")
    )


@pytest.mark.slow
def test_what_cannot_be_sent_is_asked_for_as_a_file(cells, schema, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    roles = ch.Schema(counts="rna:X", batch="obs/batch", label="obs/cell_type")
    for data, where in (
        (simulate_citeseq(60, 30, 5, seed=0), roles),
        (ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"), schema),
        (ch.open(tmp_path / "cells.h5ad"), schema),
    ):
        with pytest.raises(ch.ConfigError, match="Give the path"):
            ch.bench.integration(data, where, [], ray=True)


# clusters

IN_ITS_OWN = """
import os, sys, time
from functools import partial
from pathlib import Path
import chreode
from chreode.trials.runner import Trial, running
from chreode.compute.progress import bar

def work(file, seconds, _):
    import ray
    file.with_suffix(".part").write_text(str(os.getpid()))
    file.with_suffix(".part").rename(file)
    time.sleep(seconds)
    return {"node": ray.get_runtime_context().get_node_id()}, {}

if __name__ == "__main__":
    call = partial(work, Path(sys.argv[1]), float(sys.argv[2]))
    with bar(1, "", False) as shown, running(None, {}, ray=True) as runner:
        (outcome,) = runner.run([Trial("a", call, {})], shown)
        print(outcome.row["node"], outcome.failed)
"""


def in_a_process(tmp_path, seconds, **environment):
    """Run a trial in a process of its own, whose worker writes its number to the file ``worker``."""
    script = tmp_path / "script.py"
    script.write_text(IN_ITS_OWN)
    source = str(Path(ch.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, script, tmp_path / "worker", str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_it_joins_the_cluster_of_the_address(tmp_path):
    context = ray.get_runtime_context()
    with in_a_process(tmp_path, 0, RAY_ADDRESS=context.gcs_address) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == [context.get_node_id()]


@pytest.mark.slow
def test_ctrl_c_ends_the_cluster_that_it_started(tmp_path):
    file = tmp_path / "worker"
    with in_a_process(tmp_path, 600) as process:
        wait_for(file.exists)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt: interrupted; nothing is kept" in err
    assert out == ""
    wait_for(lambda: not is_running(int(file.read_text())))
