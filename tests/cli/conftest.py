"""A folder to stand in, with cells and two fitted models, and a way to run a command line there."""

from __future__ import annotations

import shlex

import pytest

from chreode.commands.app import main
from chreode.data.simulate import simulate_cells


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    """Return a folder with cells and two fitted models, made by the command line."""
    folder = tmp_path_factory.mktemp("made")
    simulate_cells(200, 80, n_types=3, n_batches=2, seed=0).write_h5ad(folder / "cells.h5ad")
    file = str(folder / "cells.h5ad")
    roles = ["--counts", "layers/counts", "--batch", "obs/batch"]
    for key, more in (("scvi", ["--max-epochs", "2"]), ("pca", ["--n-latent", "3"])):
        assert main(["fit", key, file, *roles, *more, "-o", str(folder / key)]) == 0
    return folder


@pytest.fixture
def there(_made, tmp_path, monkeypatch):
    """Stand in a folder with ``cells.h5ad`` and the fitted ``scvi`` and ``pca``, as links."""
    for name in ("cells.h5ad", "scvi", "pca"):
        (tmp_path / name).symlink_to(_made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(capsys):
    """Run a command line and return (exit code, stdout, stderr)."""

    def run(line: str):
        code = main(shlex.split(line))
        return code, *capsys.readouterr()

    return run
