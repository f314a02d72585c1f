"""``--rows`` and ``--n-genes``: which cells are used, and by which of them genes are chosen."""

from __future__ import annotations

import json
import pickle
import sys
from functools import partial
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.bench.forecasters import BASELINES
from chreode.commands.fit import narrowed
from chreode.data.simulate import simulate_cells, simulate_citeseq
from chreode.data.systems import GeneNetwork, Sampling
from chreode.trials.cluster import portable

ROLES = "--counts layers/counts --batch obs/batch"
SOME = "--rows 'obs.batch == \"batch_1\"'"


@pytest.fixture
def chose(monkeypatch):
    """Return the positions of the cells that genes are chosen by, and the genes, of each choice."""
    made, choose = [], ch.pp.select_genes

    def spy(data, schema, n, *, rows=None):
        genes = choose(data, schema, n, rows=rows)
        made.append((rows, genes))
        return genes

    monkeypatch.setattr(ch.pp, "select_genes", spy)
    return made


# which cells are used


def test_a_fit_uses_the_rows_alone_and_they_choose_its_genes(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    some = cells[cells.obs["batch"] == "batch_1"]
    Path("names.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(some.obs_names[::-1]).encode())
    genes = ch.pp.select_genes(some.copy(), ch.Schema(counts="X"), 20)
    for rows in (SOME, "--rows names.txt"):
        assert say(f"fit pca cells.h5ad --counts X {rows} --n-genes 20 --n-latent 3 -o p")[0] == 0
        fitted = ch.load("p")
        assert fitted.spec.n_cells == some.n_obs
        assert fitted.spec.features["counts"] == tuple(genes)


@pytest.mark.parametrize("kind", ["sparse", "by columns", "dense", "modalities", "as if on disk"])
def test_chosen_cells_and_genes_are_those_of_the_file(there, monkeypatch, kind):
    """In memory, so that they can be sent to other processes."""
    cells = ad.read_h5ad("cells.h5ad")
    cells.raw, place = cells, "X"
    cells.X = {"by columns": cells.X.tocsc(), "dense": cells.X.toarray()}.get(kind, cells.X)
    cells.write_h5ad("file.h5ad")
    file = Path("file.h5ad")
    if kind == "modalities":
        file, place = Path("file.h5mu"), "rna:X"
        cells = simulate_citeseq(200, 80, 8, n_batches=2, seed=0)
        with mudata.set_options(pull_on_update=False):
            cells.write(file)
    if kind == "as if on disk":
        monkeypatch.setattr("chreode.data.read.IN_MEMORY", 0)
    schema, rows = ch.Schema(counts=place), "obs.batch == 'batch_1'"
    found = narrowed(file, schema, rows, 20, sent=True, depth=False)
    whole = cells.mod["rna"] if kind == "modalities" else cells
    kept = (cells.obs["batch"] == "batch_1").to_numpy()
    genes = ch.pp.select_genes(cells, schema, 20, rows=kept)
    sent = pickle.loads(pickle.dumps(portable(found)))
    sent = sent.mod["rna"] if kind == "modalities" else sent
    assert (*sent.var_names,) == (*genes,)
    dense = [x.toarray() if sp.issparse(x) else x for x in (sent.X, whole[kept, genes].X)]
    np.testing.assert_array_equal(*dense)
    again = found.mod["rna"][:, genes[:3]] if kind == "modalities" else found[:, genes[:3]]
    values, names = ch.data.places.matrix(again, ch.schema.Place("X"), "counts")
    assert values[np.arange(2)].shape == (2, len(names))


def test_genes_alone_are_in_memory_where_they_are_sent(there):
    schema = ch.Schema(counts="X")
    some = partial(narrowed, Path("cells.h5ad"), schema, None, 20, depth=False)
    assert portable(some(sent=True)).n_vars == 20
    with pytest.raises(ch.ConfigError, match="in memory"):
        portable(some())


@pytest.mark.parametrize(
    "line",
    [
        f"fit pca cells.h5ad {ROLES} -o x",
        f"tune ppca cells.h5ad {ROLES} --trials 1",
        f"bench integration cells.h5ad {ROLES} --label obs/cell_type --keys a",
        f"bench generation cells.h5ad {ROLES}",
        "bench dynamics cells.h5ad --counts X --time obs/n --trajectory obs/batch --tests batch_1",
    ],
)
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("names_missing.txt", "'names_missing.txt' is no file, and no condition"),
        ("""'obs.batch == "nan"'""", "chooses none of 200 cells"),
        ("cells.h5ad", "cells.h5ad cannot be read as text in UTF-8"),
        ("empty.txt", "holds no cell names"),
        (f"""'obs.batchs == "{300 * "a"}"'""", "Did you mean 'batch'?"),
    ],
)
def test_rows_that_choose_nothing_are_named(say, there, line, rows, said):
    Path("empty.txt").write_text("\n\n")
    code, out, err = say(f"{line} --rows {rows}")
    assert (code, out) == (1, "")
    assert said in err


# by which cells genes are chosen


def test_a_search_chooses_genes_by_cells_that_judge_nothing(say, there, chose, monkeypatch):
    pytest.importorskip("optuna")
    cells, tuning = ad.read_h5ad("cells.h5ad"), sys.modules["chreode.bench.tuning"]
    names = cells.obs_names[::-2]
    Path("names.txt").write_text("\n".join(names))
    given, made = [], tuning.Given
    monkeypatch.setattr(tuning, "Given", lambda *parts: given.append(parts) or made(*parts))
    line = "tune ppca cells.h5ad --counts X --rows names.txt --n-genes 20 --trials 1 -o best"
    code, out, _ = say(line)
    assert code == 0
    assert "--rows names.txt --n-genes 20" in out
    ((data, _, *parts, _, _),) = given
    train, *judged = ({*data.obs_names[rows]} for rows in parts)
    (first, _), (last, genes) = chose
    assert {*cells.obs_names[first]} == train
    assert not train & set.union(*judged)
    # the last fit judges nothing, and is the one that is suggested
    assert {*cells.obs_names[last]} == {*names}
    assert ch.load("best").spec.features["counts"] == tuple(genes)


def test_forecasts_are_of_genes_that_the_tests_have_not_chosen(say, there, chose, monkeypatch):
    cells = GeneNetwork.random(8).simulate(Sampling(n_trajectories=4, n_times=8), seed=0)
    cells.write_h5ad("paths.h5ad")
    few = {"training mean": BASELINES["training mean"]}
    monkeypatch.setattr(sys.modules["chreode.bench.dynamics"], "BASELINES", few)
    code, out, err = say(
        "bench dynamics paths.h5ad --expression X --time obs/time --trajectory obs/trajectory "
        "--tests path_3 --rows 'obs.trajectory != \"path_0\"' --n-genes 4 --seeds 0 --json"
    )
    assert code == 0, err
    ((rows, _),) = chose
    assert set(cells.obs["trajectory"].iloc[rows]) == {"path_1", "path_2"}
    assert json.loads(out)["about"]["train"] == len(rows) == 16


def test_generated_cells_are_of_genes_that_no_held_out_cell_has_chosen(
    say, there, chose, monkeypatch
):
    cells = simulate_cells(600, 40, n_types=2, seed=0)
    cells.write_h5ad("more.h5ad")
    names = cells.obs_names[::-1][:500]
    Path("names.txt").write_text("\n".join(names))
    generation, held_out = sys.modules["chreode.bench.generation"], set()

    def stop(*_, seeds, **__):
        raise ch.DataError(f"at the trials of {len(seeds)} seeds")

    def spy(split, classes, seed):
        parts = split(classes, seed)
        held_out.update(names[parts.reference])
        return parts

    monkeypatch.setattr(generation, "split", partial(spy, generation.split))
    monkeypatch.setattr(generation, "contest", stop)
    line = (
        "bench generation more.h5ad --counts X --label obs/cell_type --rows names.txt --n-genes 20"
    )
    code, _, err = say(line)
    assert code == 1
    assert "at the trials of 3 seeds" in err
    ((rows, _),) = chose
    assert {*cells.obs_names[rows]} == {*names} - held_out
    assert len(held_out) > 200
    many = " ".join(map(str, range(40)))
    assert "too few: name fewer" in say(f"{line} --seeds {many}")[2]


@pytest.mark.slow
def test_a_bench_says_what_it_was_made_of_and_where_its_pictures_are(say, there):
    cells = ad.read_h5ad("cells.h5ad")
    cells.obsm["X_e"] = np.random.default_rng(0).normal(size=(cells.n_obs, 3))
    cells.write_h5ad("e.h5ad")
    line = "bench integration e.h5ad --counts X --batch obs/batch --label obs/cell_type --keys e --seeds 0"
    rows = "--rows 'not missing(obs.batch)' --n-genes 30"
    code, out, err = say(f"{line} {rows} -o b.json")
    assert code == 0, err
    assert "The JSON file has the scores alone: --report draws the pictures too." in out
    about = json.loads(Path("b.json").read_text())["about"]
    assert {k: about[k] for k in ("file", "chosen cells", "chosen genes", "seeds")} == {
        "file": "e.h5ad", "chosen cells": "not missing(obs.batch)", "chosen genes": 30, "seeds": [0]
    }  # fmt: skip
    assert ch.bench.Bench.load("b.json").about == about
    cells.obsm["X_e"][:7] = np.nan
    cells.write_h5ad("e.h5ad")
    code, out, _ = say(f"{line} --report b.html")
    assert code == 0
    assert "Not scored: 7 cells that a method cannot place" in out
    assert "The JSON file" not in out
    assert "e.h5ad" in Path("b.html").read_text()
