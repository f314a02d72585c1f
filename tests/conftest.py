"""What every test may use: simulated cells of a realistic size, quick models, and real data where it is."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import anndata as ad
import jaxtyping
import pytest
import torch

import chreode as ch
from chreode import models
from chreode.data.simulate import simulate_cells, simulate_citeseq
from chreode.learn import analogs
from chreode.models.selfsupervised.options import Encoding

DATA = Path(__file__).parents[2] / "shared" / "data"
#: Of models of one family, one stands for all in the fast run: what they share is most of them.
FAMILIES = {"neuralode": ch.NeuralODE, "simclr": Encoding}
KIN = {
    key
    for key in models.keys()  # noqa: SIM118 (a function)
    for first, family in FAMILIES.items()
    if issubclass(models.find(key), family) and key != first
}


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are put aside
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what is tried with every model, or every page, to the slow run where the model is kin."""
    for item in items:
        for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
            name = getattr(value, "__name__", getattr(value, "stem", value))
            if isinstance(name, str) and name.lower() in KIN:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)  # the same bits on every machine, and no fight between workers


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    # a shell ignores it for what it starts in the background, and so would the tests of it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _simulated() -> ad.AnnData:
    cells = simulate_cells(500, 300, n_types=4, n_batches=3, seed=0)
    cells.obs["plate"] = [f"plate{i % 2}" for i in range(cells.n_obs)]
    cells.obs["age"] = [float(20 + i % 30) for i in range(cells.n_obs)]
    cells.obs["day"] = [float(i % 17) for i in range(cells.n_obs)]
    cells.obs["donor"] = [f"donor{i // 2 % 3}" for i in range(cells.n_obs)]
    stained = simulate_citeseq(500, 300, 15, n_types=4, n_batches=3, seed=0)  # the same cells
    cells.obsm["protein"] = stained["adt"].X.toarray()
    return cells


@pytest.fixture
def cells(_simulated: ad.AnnData) -> ad.AnnData:
    """500 cells x 300 genes, 4 types, 3 batches, two further covariates, time, 15 proteins; a fresh copy."""
    return _simulated.copy()


@pytest.fixture
def schema() -> ch.Schema:
    """Where the roles of `cells` live."""
    return ch.Schema(
        counts="layers/counts",
        batch="obs/batch",
        label="obs/cell_type",
        categorical=("obs/plate",),
        continuous=("obs/age",),
    )


@pytest.fixture(scope="session")
def quick():
    """Return a model that fits in a second: ``quick(cls, **options)``."""

    def make(cls, **options):
        names = {f.name for f in dataclasses.fields(cls)}
        small = {
            "max_epochs": 3, "flow_epochs": 3, "n_latent": 5, "n_factors": 5, "flow_width": 32,
            "match_steps": 4, "piece_steps": 4, "path_steps": 4, "strengths": (0.1,),
        }  # fmt: skip
        return cls(**{**{k: v for k, v in small.items() if k in names}, **options})

    return make


@pytest.fixture(scope="module")
def few_settings():
    """Compare starts in 10 of the 30 ways that LineageNODE and analogs choose from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analogs, "WIDTHS", (0.5, 2.0))
        yield


@pytest.fixture(scope="module")
def as_users_have_it():
    """Check no types: users have no such checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real():
    """Return the path of a file of real data, or skip where it is absent: ``real("pbmc3k/….h5ad")``."""

    def path(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"real data is absent: {name}")
        return DATA / name

    return path
