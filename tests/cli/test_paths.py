"""`chreode trajectory` and `rank`: from a file of cells over time to edges and a knock-out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from chreode.bench.forecasters import BASELINES
from chreode.data.systems import GeneNetwork, Sampling


@pytest.fixture
def fitted(say, there):
    cells = GeneNetwork.random(8).simulate(Sampling(n_trajectories=4, n_times=12), seed=0)
    cells.write_h5ad("paths.h5ad")
    cells[cells.obs["time"] == 0].copy().write_h5ad("starts.h5ad")
    roles = "--expression X --time obs/time --trajectory obs/trajectory"
    code, _, said = say(
        f"fit pathreg paths.h5ad {roles} --match-steps 20 --piece-steps 5 --path-steps 5 -o runs/p"
    )
    assert code == 0, said
    return cells


@pytest.mark.slow
def test_trajectories_are_forecast_by_their_names(say, there, monkeypatch):
    cells = GeneNetwork.random(8).simulate(Sampling(n_trajectories=4, n_times=8), seed=0)
    cells.write_h5ad("paths.h5ad")
    few = {name: BASELINES[name] for name in ("training mean", "kernel smoother")}
    monkeypatch.setattr(sys.modules["chreode.bench.dynamics"], "BASELINES", few)
    bench = "bench dynamics paths.h5ad --expression X --time obs/time --seeds 0 --tests"
    code, out, said = say(f"{bench} path_2 path_3 --trajectory obs/trajectory --report page.html")
    assert code == 0, said
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["training", "kernel", "its"]
    assert "<svg" in Path("page.html").read_text()
    Path("told.toml").write_text("[schema]\ntrajectory = 'obs/trajectory'\n[model]\nmtch = 3\n")
    for line, told in (
        (f"{bench} path_2", "as in --trajectory obs/donor"),
        (f"{bench} path_22 --config told.toml", "no trajectory 'path_22'. Did you mean 'path_2'?"),
        (f"{bench} path_0 path_1 path_2 path_3 --config told.toml", "no cells to learn from"),
        (f"{bench} path_2 --config told.toml --models pathreg", "no option 'mtch'"),
    ):
        code, _, said = say(line)
        assert code == 1
        assert told in said


@pytest.mark.slow
def test_paths_of_cells_and_of_named_starts(say, fitted):
    code, out, said = say("trajectory runs/p starts.h5ad --times 0 2.5 5 -o ends.h5ad --json")
    assert code == 0, said
    assert json.loads(out)["file"] == "ends.h5ad"
    paths = ad.read_h5ad("ends.h5ad")
    assert paths.shape == (12, 8)
    assert paths.obs["time"].tolist() == [0.0, 2.5, 5.0] * 4
    assert say("trajectory runs/p --start path_1 --knockout gene_2 -o gone.h5ad")[0] == 0
    gone = ad.read_h5ad("gone.h5ad")
    assert gone.n_obs == 20
    np.testing.assert_allclose(gone.X[:, 2], 0, atol=1e-6)


@pytest.mark.slow
def test_edges_are_printed_and_written(say, fitted):
    code, out, said = say("rank runs/p -n 3 -o edges.csv --json")
    assert code == 0, said
    shown = json.loads(out)
    assert len(shown) == 3
    table = pd.read_csv("edges.csv")
    assert table.columns.tolist() == ["source", "target", "weight", "confidence"]
    assert shown[0]["source"] == table["source"][0]
    assert (table["weight"].abs().diff().dropna() <= 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trajectory runs/p --start path_9 -o x.h5ad", "path_9"),
        (
            "trajectory runs/p --start path_1 --knockout gene_22 -o x.h5ad",
            "not among the 8 genes of the fit",
        ),
        ("trajectory runs/p starts.h5ad -o x.csv", "h5ad"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(say, fitted, there, command, said):
    code, _, error = say(command)
    assert code != 0
    assert said in error
    assert not list(there.glob("x.*"))
