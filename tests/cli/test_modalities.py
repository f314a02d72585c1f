"""The commands of a self-supervised model: classify with its options, and predict."""

from __future__ import annotations

import json

import anndata as ad
import mudata
import numpy as np
import pytest

import chreode as ch
from chreode.commands.app import main
from chreode.data.simulate import simulate_citeseq


@pytest.fixture(scope="module")
def _simclr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simclr")
    cells = simulate_citeseq(200, 60, 6, n_types=3, n_batches=2, seed=0)
    with mudata.set_options(pull_on_update=False):
        cells.write(folder / "cells.h5mu")
    cells["rna"].write_h5ad(folder / "rna.h5ad")
    roles = [
        "--counts",
        "rna:X",
        "--protein",
        "adt:X",
        "--batch",
        "obs/batch",
        "--label",
        "obs/cell_type",
    ]
    quick = ["--max-epochs", "2", "--n-latent", "4", "--n-hidden", "16"]
    line = [
        "fit",
        "simclr",
        str(folder / "cells.h5mu"),
        *roles,
        *quick,
        "-o",
        str(folder / "simclr"),
    ]
    assert main(line) == 0
    return folder


@pytest.fixture
def both(there, _simclr):
    for name in ("cells.h5mu", "rna.h5ad", "simclr"):
        (there / name).symlink_to(_simclr / name)
    return there


@pytest.mark.slow
def test_classify_takes_what_the_model_offers(say, both):
    code, out, _ = say("classify simclr cells.h5mu -o a.h5mu --json")
    assert code == 0
    keys = ["simclr_label", "simclr_confidence", "simclr_novelty"]
    assert json.loads(out)["keys"] == keys
    with mudata.set_options(pull_on_update=False):
        written, cells = mudata.read_h5mu("a.h5mu"), mudata.read_h5mu("cells.h5mu")
    expected = ch.load("simclr").classify(cells)
    for key in keys:
        assert written.obs[key].tolist() == expected[key.removeprefix("simclr_")].tolist()
        assert key in written.uns["chreode"]
    code, out, _ = say("classify simclr cells.h5mu -o b.h5mu --method linear --unseen 0.5")
    assert code == 0
    assert "obs['simclr_novelty'] written to b.h5mu" in out
    linear = ch.load("simclr").classify(cells, method="linear", unseen=0.5)
    with mudata.set_options(pull_on_update=False):
        assert mudata.read_h5mu("b.h5mu").obs["simclr_label"].tolist() == linear["label"].tolist()
    n = int((linear["label"] == "unseen").sum())
    assert f"\n{n} cells of 200 are called unseen, at a novelty above 0.5. A lower limit" in out
    _, out, _ = say("show simclr")
    assert "train_objective" in out
    assert "nan" not in out


def test_predict_fills_in_protein(say, both):
    code, out, _ = say("predict simclr rna.h5ad --counts X -o proteins.h5ad --json")
    assert code == 0
    assert json.loads(out) == {"file": "proteins.h5ad", "features": {"protein": 6}}
    written = ad.read_h5ad("proteins.h5ad")
    rna = ad.read_h5ad("rna.h5ad")
    expected = ch.load("simclr").predict(rna, schema=ch.Schema(counts="X"))
    np.testing.assert_array_equal(written.X, expected.X)
    code, out, _ = say("predict simclr cells.h5mu -o again.h5ad")
    assert (code, out) == (0, "expected counts of protein (6 features) written to again.h5ad\n")
    np.testing.assert_array_equal(ad.read_h5ad("again.h5ad").X, expected.X)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict scvi cells.h5ad -o x.h5ad", "This scvi fills in nothing."),
        ("predict simclr rna.h5ad --counts X -o x.h5mu", ".h5ad"),
        ("correct simclr cells.h5mu --to.batch batch_0 -o x.h5ad",
         "chreode predict simclr cells.h5mu -o x.h5ad"),
        ("correct simclr cells.h5mu --to.batch batch_0 --latent -o x.h5mu", "no conditions to change"),
        ("classify scvi cells.h5ad -o x.h5ad --method linear", "cannot classify"),
        ("classify simclr cells.h5mu -o x.h5mu --method lin", "there is no such classifier. Did you"),
        ("classify simclr cells.h5mu -o x.h5mu --unseen 2", "from 0 to 1"),
        ("generate scvi -n 3 -o x.h5ad --guidance 2", "scvi has no guidance; leave it out."),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_is_said(say, both, line, said):
    code, out, err = say(line)
    assert (code, out) == (1, "")
    assert said in err
    assert not [*both.glob("x.*")]


def test_cells_that_lack_what_is_read_are_counted(say, both):
    """In the words of all verbs that leave NaN for them."""
    with mudata.set_options(pull_on_update=False):
        whole = mudata.read_h5mu("cells.h5mu")
        some = mudata.MuData({"rna": whole["rna"][:170].copy(), "adt": whole["adt"][:180].copy()})
        for column in ("batch", "cell_type"):
            some.obs[column] = whole.obs[column]
        some.write("some.h5mu")
    code, out, err = say("predict simclr some.h5mu -o proteins.h5ad")
    assert code == 0, err
    assert "10 cells of 180 without what the model reads: left out." in err
    values = whole["adt"].X.toarray().astype(np.float32)
    values[150:] = np.nan
    with mudata.set_options(pull_on_update=False):
        stained = ad.AnnData(values, whole["adt"].obs, whole["adt"].var)
        few = mudata.MuData({"rna": whole["rna"][:170].copy(), "adt": stained})
        few.obs["batch"] = whole.obs["batch"]
        few.write("few.h5mu")
    for verb in ("embed", "classify"):
        code, out, err = say(f"{verb} simclr few.h5mu -o {verb}.h5mu")
        assert code == 0, err
        assert "; 30 cells without what the model reads: NaN" in out
