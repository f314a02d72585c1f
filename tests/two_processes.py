"""A test file that is run once by itself and once by the two processes that torchrun starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import chreode as ch
from chreode.compute.processes import Group

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCHERS = {"alone": [sys.executable], "distributed": TORCHRUN}
SEEN = os.pathsep.join(map(str, (Path(ch.__file__).parents[1], Path(__file__).parent)))
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": SEEN}


def found_by(file, tmp_path_factory, *given):
    """Return what the one process of each run found, or each of its two: by "alone" and "distributed"."""
    found = {}
    for kind, launcher in LAUNCHERS.items():
        folder = tmp_path_factory.mktemp(kind)
        command = [*launcher, file, folder, kind, *given]
        done = subprocess.run(
            list(map(str, command)), env=QUIET, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[kind] = [json.loads(part.read_text()) for part in sorted(folder.iterdir())]
    return found


def tell(find):
    """Write what this process finds, as one of such a run, to a file that is named by its rank."""
    torch.set_num_threads(1)
    folder, kind, *given = sys.argv[1:]
    group = Group.join() if kind == "distributed" else Group()
    Path(folder, f"{group.rank}.json").write_text(json.dumps(find(group, *given)))
    if kind == "distributed":
        dist.destroy_process_group()
