"""Run what is missing of the comparison with scvi-tools, one job at a time; kill and repeat at will."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluator
import harmonypy
import numpy as np
import pandas as pd
import rows
import torch
from benchmarks.common import RIVALS, ROOT, alone, machine, say
from exchange import TEST, TRAIN, VALIDATION, Settings, Stopwatch, Task, as_json, load_arrays
from fit_chreode import as_anndata
from tasks import TASKS, prepare

import chreode as ch
from chreode.metrics.integration import integration_scores, summary

SCRATCH = ROOT / ".cache" / "benchmarks" / "integration"
#: Method -> its interpreter, its script, and seconds of one core per epoch of a million values.
FITS = {
    "scvi-tools": (RIVALS, "fit_scvi_tools.py", 0.22),
    "chreode": (Path(sys.executable), "fit_chreode.py", 0.12),
}


@dataclass
class Bench:
    """One task, and what its jobs share."""

    name: str
    data: Path
    settings: Settings

    @cached_property
    def scratch(self) -> Path:
        return SCRATCH / sha256(as_json(self.settings).encode()).hexdigest()[:12] / self.name

    @cached_property
    def task(self) -> Task:
        path = self.scratch / "task.npz"
        if not path.exists():
            prepare(self.name, self.data, self.settings).save(path)
        return Task.load(path)

    @cached_property
    def pca(self) -> tuple[np.ndarray, Stopwatch]:
        """Coordinates of all cells on axes of the cells that the models learn from."""
        cells = as_anndata(self.task)
        with Stopwatch() as watch:
            fitted = ch.PCA(n_latent=50).fit(
                cells, ch.Schema(counts="X"), rows=self.task.rows(TRAIN, VALIDATION)
            )
            x = fitted.embed(cells, progress=False)
        return x, watch

    def scores(self, embedding: np.ndarray, seed: int) -> dict[str, float | None]:
        """Judge the embedding of all cells by the one code."""
        task = self.task
        found = integration_scores(embedding, task.label, task.batch, pre=self.pca[0], seed=seed)
        values = {key: score.value for key, score in {**found, **summary(found)}.items()}
        return {key: None if math.isnan(value) else value for key, value in values.items()}

    # jobs: each returns what its row holds beside the description of the run

    def null(self, seed: int) -> dict[str, Any]:  # noqa: ARG002 (a job)
        with Stopwatch() as watch:
            frequency, theta = evaluator.fit_null(self.task.counts[self.task.rows(TRAIN)])
        elbo = evaluator.null_elbo(self.task.counts[self.task.rows(TEST)], frequency, theta)
        return {"version": ch.__version__, "elbo": elbo.mean(), **watch.times()}

    def baseline(self, seed: int) -> dict[str, Any]:
        x, watch = self.pca
        return {"version": ch.__version__, "scores": self.scores(x, seed), **watch.times()}

    def harmony(self, seed: int) -> dict[str, Any]:
        table = pd.DataFrame({"batch": self.task.batch})
        x = self.pca[0]
        with Stopwatch() as watch:
            mixed = harmonypy.run_harmony(x, table, "batch", random_state=seed, verbose=False)
        corrected = np.asarray(mixed.Z_corr)
        # releases differ in which way round they return it
        corrected = corrected if corrected.shape == x.shape else corrected.T
        scores = self.scores(corrected, seed)
        return {"version": version("harmonypy"), "scores": scores, **watch.times()}

    def fit(self, method: str, seed: int) -> dict[str, Any]:
        python, script, _ = FITS[method]
        out = self.scratch / f"{method}-{seed}.npz"
        if not out.exists():
            command = [
                python, Path(__file__).with_name(script),
                self.scratch / "task.npz", as_json(self.settings), str(seed), out,
            ]  # fmt: skip
            with (self.scratch / "fits.log").open("a") as log:
                # the lock's descriptor goes along: a fit that outlives this process still holds it
                ended = subprocess.run(command, stdout=log, stderr=log, close_fds=False)
            if ended.returncode:
                sys.exit(f"{method} on {self.name}, seed {seed}, failed: see {log.name}")
        fit = load_arrays(out)
        elbo = evaluator.held_out_elbo(self.task.counts[self.task.rows(TEST)], fit)
        curve = fit["validation_elbo"].tolist()
        row = {
            "version": str(fit["version"]), "elbo": elbo.mean(),
            "elbo_error": elbo.mean(1).std(ddof=1) / math.sqrt(len(elbo)),
            "own_elbo": fit["own_elbo"],
            "epochs": len(curve), "validation_elbo": curve,
            "unconverged": evaluator.unconverged(curve),
            "scores": self.scores(fit["embedding"], seed),
            **{k: fit[k] for k in ("seconds", "cpu_seconds", "foreign_cores")},
        }  # fmt: skip
        out.unlink()
        return row


@dataclass(frozen=True)
class Job:
    """What makes one row, and about how many seconds it takes on one core."""

    task: str
    method: str
    seed: int
    cost: float
    work: Callable[[int], dict[str, Any]]


def jobs(bench: Bench, seeds: list[int]) -> Iterator[Job]:
    """List a task's jobs; the two libraries take turns."""
    cells, values = bench.task.counts.shape[0], bench.task.counts[:1].shape[1]
    size = cells * values / 1e6
    judge = 1.5e-3 * cells
    yield Job(bench.name, "null", 0, 1.5 * size, bench.null)
    yield Job(bench.name, "PCA", 0, judge, bench.baseline)
    for seed in seeds:
        yield Job(bench.name, "Harmony", seed, 2 * judge, bench.harmony)
    for seed in seeds:
        for method, (_, _, rate) in FITS.items():
            cost = 15 + rate * size * bench.settings.epochs + judge
            yield Job(bench.name, method, seed, cost, partial(bench.fit, method))


def describe(job: Job, bench: Bench) -> dict[str, Any]:
    task = bench.task
    return {
        "task": job.task, "method": job.method, "seed": job.seed,
        "dataset": task.dataset, "sha256": task.sha256,
        "cells": [len(task.rows(part)) for part in (TRAIN, VALIDATION, TEST)],
        "genes": len(task.genes), "batches": len(np.unique(task.batch)),
        "labels": len(np.unique(task.label)), "settings": asdict(bench.settings),
        "threads": bench.settings.threads, "machine": machine(),
    }  # fmt: skip


def run(plan: list[tuple[Job, Bench]], path: Path) -> None:
    settings = asdict(plan[0][1].settings)
    done = rows.read(path)
    if any(row["settings"] != settings for row in done):
        sys.exit(f"{path} holds rows of other settings: move it away, or name another by --rows.")
    have = {(row["task"], row["method"], row["seed"]) for row in done}
    todo = [(j, b) for j, b in plan if (j.task, j.method, j.seed) not in have]
    left = sum(job.cost for job, _ in todo)
    pace = 1 / settings["threads"] ** 0.7  # two threads are not twice as fast
    say(f"{len(todo)} of {len(plan)} jobs to do, about {pace * left / 60:.0f} minutes")
    spent = finished = 0.0
    for number, (job, bench) in enumerate(todo, 1):
        start = time.perf_counter()
        found = job.work(job.seed)
        rows.append(json.loads(json.dumps(describe(job, bench) | found, default=float)), path)
        spent, finished = spent + time.perf_counter() - start, finished + job.cost
        left -= job.cost
        told = [f"ELBO {found['elbo']:.2f}"] if "elbo" in found else []
        told += [f"total {found['scores']['total']:.3f}"] if "scores" in found else []
        told += [f"others kept {found['foreign_cores']:.1f} cores busy"]
        say(
            f"[{number}/{len(todo)}] {job.task} {job.method} seed {job.seed}: {', '.join(told)}; "
            f"{found['seconds']:.0f} s; about {max(0, spent / finished * left / 60):.0f} minutes left"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=Path, default=rows.FILE, help="where results are kept")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--cells", type=int, help="a random subset of each task, to try it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    given = parser.parse_args()
    settings = Settings(epochs=given.epochs, cells=given.cells, threads=given.threads)
    torch.set_num_threads(given.threads)
    if not RIVALS.exists():
        sys.exit("scvi-tools is not there: make rivals")
    # an exception, so that subprocess.run ends the fit that is under way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; run again to go on"))
    with alone():
        benches = [Bench(name, given.data, settings) for name in given.tasks]
        run([(job, bench) for bench in benches for job in jobs(bench, given.seeds)], given.rows)


if __name__ == "__main__":
    main()
