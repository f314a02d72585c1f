"""Two processes over gloo have loss and gradient of the joint minibatch: CLEAR, CLAIRE, Concerto, ScCLIP.

Run by torchrun, this file is what each process does: ``test_domain_methods_in_two_processes.py FOLDER``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import chreode as ch
from chreode.compute.processes import Group
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch
from chreode.module import Step
from chreode.nn.blocks import share_statistics
from chreode.schema import Spec

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SOURCES = str(Path(ch.__file__).parents[1])
QUIET = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": SOURCES
}  # fmt: skip
#: Options without anything drawn, which would be drawn otherwise in every process.
MODELS = {
    "CLEAR": {}, "CLAIRE": {"mix": 1.0}, "Concerto": {"dropout": 0.0}, "ScCLIP": {}
}  # fmt: skip
N = 22


def found(group, name):
    """Return loss, gradient and, of those with one, the queue after a step of 22 cells."""
    torch.set_default_dtype(torch.float64)
    features = {"counts": tuple(f"g{i}" for i in range(30))}
    if name == "ScCLIP":
        features["protein"] = tuple(f"p{i}" for i in range(5))
    spec = Spec(tuple(features), features, n_cells=N)
    with Rng(0).scope("init"):
        module = getattr(ch, name)(n_latent=6, augment=(), **MODELS[name]).build(spec).double()
    share_statistics(module, among_processes=not group.alone)
    rows = group.share(np.arange(N))
    r = np.random.default_rng(0)
    # cells beyond the first are partners
    of_each = [r.poisson(2.0, (N, 30 if k < 4 else 5)).astype(float) for k in range(5)]
    several = 4 if name == "CLAIRE" else 1
    views = {"counts": np.concatenate([table[rows] for table in of_each[:several]])}
    present = {}
    if name == "ScCLIP":  # most cells of the second process lack proteins
        views["protein"] = of_each[4][rows]
        present["protein"] = torch.from_numpy((np.arange(N) < 13)[rows])
    tensors = {role: torch.from_numpy(table) for role, table in views.items()}
    batch = CellBatch(torch.arange(len(rows) * several), tensors, present)
    step = Step(Rng(0), 0, 0.0, group=group)
    loss = module.train()(batch, step)
    objective = loss.objectives["model"] * (len(rows) / N)
    weights = [p for p in module.parameters() if p.requires_grad]
    values = [objective.detach(), *torch.autograd.grad(objective, weights)]
    group.add(values)
    if loss.outputs:
        outputs = {k: v.detach() for k, v in loss.outputs.items()}
        module.after_step(Step(Rng(0), 0, 0.0, group=group, outputs=outputs))
        # of CLAIRE both keys of the first process come before those of the second
        values.append(module.queue.held.sort(0).values)
    torch.set_default_dtype(torch.float32)
    return torch.cat([v.flatten() for v in values]).tolist()


def main():
    """Write what this process found to FOLDER/RANK.json."""
    torch.set_num_threads(1)
    group = Group.join()
    told = {name: found(group, name) for name in MODELS}
    Path(sys.argv[1], f"{group.rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    command = list(map(str, [*TORCHRUN, __file__, folder]))
    done = subprocess.run(command, env=QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_joint_minibatch(both, name):
    alone = np.array(found(Group(), name))
    assert len(both) == 2
    for one in both:
        np.testing.assert_allclose(one[name], alone, rtol=1e-9, atol=1e-11 * np.abs(alone).max())


if __name__ == "__main__":
    main()
