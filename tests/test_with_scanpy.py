"""Beside scanpy: the page for its users, the notebook, and the calls that errors name.

scanpy and the tools of notebooks are in an environment of their own, which sees that of the tests;
`make scanpy` builds it. Without it these tests skip.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

import chreode as ch

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-scanpy" / "bin" / "python"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def beside_scanpy(test):
    """Mark a test that needs scanpy: it is slow, and skips where scanpy is absent."""
    absent = pytest.mark.skipif(
        not PYTHON.exists(), reason="scanpy is not there: make scanpy builds it"
    )
    return pytest.mark.slow(absent(test))


#: Runs the blocks of a page as `test_docs` does, with fits of two epochs.
RUNNER = """
import json, sys
import anndata, chreode as ch
from chreode.bench import integration
from chreode.learn import sgd
sgd.default_epochs = lambda _: 2
sys.modules["chreode.bench.integration"].DRAWS = 20
names = {"a": anndata.read_h5ad("pbmc.h5ad")}
for line, code in json.load(sys.stdin):
    exec(compile("\\n" * (line - 1) + code, "docs/with-scanpy.md", "exec"), names)
"""


def run(*words, **options):
    """Run something in the environment that has scanpy, in the folder of the test."""
    here = {
        "PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "Agg", "IPYTHONDIR": str(Path.cwd()),
        "JUPYTER_CONFIG_DIR": str(Path.cwd()), "JUPYTER_PLATFORM_DIRS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [PYTHON, *words],
        env=os.environ | here,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture
def cells(tmp_path, monkeypatch, _simulated):
    """Return cells, and stand in a folder that holds them in every format that the page reads."""
    monkeypatch.chdir(tmp_path)
    cells = _simulated[:300, :200].copy()
    cells.obs["donor"] = cells.obs["batch"].cat.rename_categories(["p1", "p2", "p3"])
    cells.obs["stage"] = pd.Categorical([f"day_{(0, 1.5, 3, 7)[i % 4]}" for i in range(300)])
    cells.write_h5ad("pbmc.h5ad")
    counts = cells.layers["counts"].astype("i4")
    genes = [f"ENSG{i}" for i in range(200)], ["gene_1", *cells.var_names[1:]]  # one symbol twice
    with h5py.File("filtered_feature_bc_matrix.h5", "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(counts, name)
        file["matrix/shape"] = counts.shape[::-1]
        file["matrix/barcodes"] = np.array(cells.obs_names, "S")
        for name, values in zip(("id", "name"), genes, strict=True):
            file[f"matrix/features/{name}"] = np.array(values, "S")
        for name, value in (("feature_type", "Gene Expression"), ("genome", "none")):
            file[f"matrix/features/{name}"] = np.array([value] * 200, "S")
    folder = tmp_path / "filtered_feature_bc_matrix"
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, counts.T.tocoo())
    for name, columns in (
        ("features", {"id": genes[0], "name": genes[1], "type": "Gene Expression"}),
        ("barcodes", {"name": cells.obs_names}),
    ):
        table = pd.DataFrame(columns)
        table.to_csv(folder / f"{name}.tsv.gz", sep="\t", header=False, index=False)
    pd.DataFrame(counts.toarray().T, cells.var_names, cells.obs_names).to_csv("counts.csv")
    return cells


@beside_scanpy
@pytest.mark.usefixtures("cells")
def test_the_blocks_of_the_page_run():
    text = (ROOT / "docs" / "with-scanpy.md").read_text(encoding="utf-8")
    blocks = [
        (text[: match.start()].count("\n") + 2, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    assert len(blocks) > 10
    run("-c", RUNNER, input=json.dumps(blocks))


@beside_scanpy
def test_the_calls_that_errors_name_convert_the_file(cells):
    calls, made = [], []
    for name in ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", "counts.csv"):
        with pytest.raises(ch.StoreError) as error:
            ch.open(name)
        call, new = re.search(r"in Python: (.*write_h5ad\('(.*)'\))\. ", str(error.value)).groups()
        calls.append(call)
        made.append(new)
    run("-c", "\n".join(calls))
    for new in made:
        found = ad.read_h5ad(new)
        if new == "counts.h5ad":  # its rows are genes
            found = found.T
        assert found.var_names.is_unique
        assert list(found.obs_names) == list(cells.obs_names)
        found = found.X.toarray() if hasattr(found.X, "toarray") else found.X
        np.testing.assert_array_equal(found, cells.layers["counts"].toarray())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_holds_no_output(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 12
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@beside_scanpy
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_tables_and_pictures_and_nothing_red(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(notebook, "shown.ipynb")  # its folder is where it runs
    run("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "shown.ipynb")
    shown = json.loads(Path("shown.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in shown["cells"] for output in cell.get("outputs", ())]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert kinds.count("image/png") >= 3
    assert kinds.count("text/html") >= 3
    widgets = shown["metadata"].get("widgets", {}).values()  # bars are among them
    states = [model["state"] for kind in widgets for model in kind["state"].values()]
    assert "danger" not in [state.get("bar_style") for state in states]
