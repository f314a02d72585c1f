"""What every test may use: simulated cells of a realistic size, quick models, and real data where it is."""

from __future__ import annotations

import dataclasses
import inspect
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
KEYS = models.keys()
KIN = {
    key
    for key in KEYS
    for first, family in FAMILIES.items()
    if issubclass(models.find(key), family) and key != first
}
#: Tests that are short for every model, so that all of them are in the fast run.
SHORT = {"test_the_objective_is_the_equation_of_the_paper"}

#: Self-supervised models share options, network, views and phases, and differ by what their modules say.
#: What no module has a word in is tried with these alone: the plainest, one with a slow copy and a queue,
#: and one that needs two modalities.
STAND = {"simclr", "moco", "scclip"}
#: Tests of such parts, as files or as names of tests, with what they are about.
SHARED = {
    "test_bad_input.py": "data that is refused, or noted, before a module is built",
    "test_nothing_is_removed_but_the_states_that_a_fit_has_kept": "files of the learner",
    "test_settings_around_a_call_change_nothing": "settings of the process",
    "test_files_are_as_good_as_objects": "reading of files",
    "test_real_cells": "reading of a file in which some cells have no RNA",
    "test_results_stream_to_a_file": "verbs that none of them has",
    "test_draws_follow_the_seed": "verbs that none of them has",
    "test_no_network_of_pickles_is_needed": "writing of tensors",
    "test_cells_outside_of_a_modality_are_asked_for_nothing": "reading of columns",
    "test_other_roles_are_refused_by_name": "a comparison of roles",
    "test_a_fit_does_not_go_on_without_genes_that_it_knows": "a comparison of genes",
    "test_mapping_a_query_leaves_the_depths_of_the_reference": "verbs that none of them has",
    "test_a_gene_that_a_query_lacks_is_not_scored_as_zero": "verbs that none of them has",
}
#: Models that differ from another one by their loss alone: options that they inherit are tried with that one.
ALIKE = {
    "simsiam": "simclr", "vicreg": "simclr", "barlowtwins": "simclr", "nnclr": "moco", "byol": "moco",
    "clear": "moco",
}  # fmt: skip


def _model(item: pytest.Item) -> str | None:
    """Return the key of the model that a test, or what it says of a page, is tried with."""
    for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
        name = getattr(value, "__name__", getattr(value, "stem", value))
        if isinstance(name, str) and name.lower() in KEYS:
            return name.lower()
    return None


def _tried_elsewhere(item: pytest.Item, key: str) -> bool:
    """Return whether another model of the family stands for this one in a test (`SHARED`, `ALIKE`)."""
    if item.originalname == "test_every_option_changes_something":
        own = inspect.get_annotations(models.find(key))
        return key in ALIKE and item.callspec.params["name"] not in own
    shared = item.originalname in SHARED or item.path.name in SHARED
    return shared and issubclass(models.find(key), Encoding) and key not in STAND


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are put aside
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another model stands for, and what is tried with kin to the slow run."""
    found = [(item, _model(item)) for item in items]
    spare = {item for item, key in found if key is not None and _tried_elsewhere(item, key)}
    config.hook.pytest_deselected(items=[*spare])
    for item, key in found:
        if key in KIN and item.originalname not in SHORT:
            item.add_marker(pytest.mark.slow)
    items[:] = [item for item in items if item not in spare]


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


def _unchecked():
    """Check no types: users have no such checks, which double the time of a fit."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


as_users_have_it = pytest.fixture(_unchecked, scope="module")
#: For tests that fit for long, or often: types are checked in the others of the same code.
without_types = pytest.fixture(_unchecked)


@pytest.fixture(scope="session")
def real():
    """Return the path of a file of real data, or skip where it is absent: ``real("pbmc3k/….h5ad")``."""

    def path(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"real data is absent: {name}")
        return DATA / name

    return path
