"""Generation on the command line: fit, generate, correct, augment, and the bench with its page."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import chreode as ch
from chreode.data.simulate import simulate_cells

SMALL = "--max-epochs 3 --flow-epochs 3 --n-latent 4 --hidden 16 8 --flow-width 16"
ROLES = "--counts X --batch obs/batch --label obs/cell_type"


@pytest.fixture
def model(say, there):
    code, _, err = say(f"fit cfgen cells.h5ad {ROLES} {SMALL} -o cfgen")
    assert (code, err) == (0, "")
    return ch.load("cfgen")


def test_a_preset_fills_in_what_is_not_given(say, there):
    code, *_ = say(f"fit cfgen cells.h5ad {ROLES} {SMALL} --preset paper --kl 0.5 -o cfgen")
    fitted = ch.load("cfgen").model
    assert code == 0
    assert (fitted.conditioning, fitted.solver, fitted.kl) == ("additive", "dopri5", 0.5)


@pytest.mark.slow
def test_generate_weighs_conditions(say, there, model):
    code, out, _ = say(
        "generate cfgen -n 20 --given.label type_1 --guidance 2 --seed 3 -o new.h5ad"
    )
    assert code == 0
    assert "20 cells" in out
    same = model.generate(20, given={"label": "type_1"}, guidance=2.0, seed=3)
    assert (ad.read_h5ad("new.h5ad").X != same.X).nnz == 0


@pytest.mark.slow
def test_correct_writes_counts_or_coordinates(say, there, model):
    code, out, _ = say("correct cfgen cells.h5ad --to.batch batch_1 -o as.h5ad")
    assert code == 0
    assert "batch batch_1" in out
    assert set(ad.read_h5ad("as.h5ad").obs["batch"]) == {"batch_1"}
    code, _, _ = say("correct cfgen cells.h5ad --to.batch batch_1 --latent -o z.h5ad")
    cells = ad.read_h5ad("cells.h5ad")
    assert code == 0
    np.testing.assert_array_equal(
        ad.read_h5ad("z.h5ad").obsm["X_cfgen_to"], model.embed(cells, to={"batch": "batch_1"})
    )
    code, _, err = say("correct cfgen cells.h5ad --to.batch batch_9 -o no.h5ad")
    assert code == 1
    assert "never seen" in err
    assert not Path("no.h5ad").exists()


@pytest.mark.slow
def test_augment_marks_what_is_new(say, there, model):
    code, _, _ = say("augment cfgen cells.h5ad --floor 90 -o more.h5ad")
    assert code == 0
    more = ad.read_h5ad("more.h5ad")
    assert more.obs["cell_type"].value_counts().min() >= 90
    assert (~more.obs["generated"]).sum() == 200
    code, _, err = say("augment cfgen cells.h5ad --by donor -o no.h5ad")
    assert code == 1
    assert "batch, label" in err or "label, batch" in err


@pytest.mark.slow
def test_bench_generation_makes_a_page(say, there):
    code, out, err = say(
        "bench generation cells.h5ad --counts X --label obs/cell_type --models pca --seeds 0"
    )
    assert code == 1
    assert "generates no counts" in err
    code, _, err = say(
        "bench generation cells.h5ad --counts X --label obs/cell_type --seeds 0 --models scvi"
    )
    assert code == 1
    assert "No class has 20 cells" in err
    simulate_cells(600, 60, n_types=3, seed=0).write_h5ad("more.h5ad")
    code, out, _ = say(
        "bench generation more.h5ad --counts X --label obs/cell_type --models scvi --seeds 0 "
        "-o bench.json --report page.html --json"
    )
    told = json.loads(out)
    assert code == 0
    assert {"real cells", "NB per class"} <= {row["method"] for row in told["table"]}
    assert "<svg" in Path("page.html").read_text()
