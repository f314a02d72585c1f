"""The bench of augmentation judges by a space that neither what is learned from nor the test has shaped."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import chreode as ch
from chreode.bench.augmentation import NONE, OVERSAMPLED, WEIGHTED, split
from chreode.data.simulate import simulate_cells
from chreode.metrics.space import Space

ROLES = ch.Schema(counts="layers/counts", label="obs/cell_type")


@pytest.fixture(scope="module")
def cells():
    made = simulate_cells(500, 60, n_types=3, seed=0)
    rare = np.flatnonzero(made.obs["cell_type"] == "type_0")[30:]
    return made[np.setdiff1d(np.arange(500), rare)].copy()


def parts_of(cells, seed):
    return split(cells.obs["cell_type"].astype("category").cat.codes.to_numpy(), seed)


def test_the_space_is_of_cells_that_nothing_else_uses(cells, monkeypatch):
    parts = parts_of(cells, 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(cells.n_obs))
    seen = []
    fit = Space.of.__func__
    monkeypatch.setattr(Space, "of", classmethod(lambda c, x, *a: seen.append(x) or fit(c, x, *a)))
    table = ch.bench.augmentation(cells, ROLES, seeds=(0,), progress=False).table()
    expected = sp.csr_matrix(cells.layers["counts"])[parts.yardstick]
    assert len(seen) == 3
    assert all((x != expected).nnz == 0 for x in seen)
    assert list(table.index) == [NONE, OVERSAMPLED, WEIGHTED]


def test_every_class_is_learned_from_and_tested_and_one_cell_is_named(cells):
    for n in range(2, 12):
        parts = split(np.zeros(n, np.int64), 0)
        assert min(len(parts.train), len(parts.test)) > 0
    obs = cells.obs["cell_type"].astype(str).to_numpy()
    obs[0] = "alone"
    cells = cells.copy()
    cells.obs["cell_type"] = obs
    found = ch.bench.augmentation(cells, ROLES, seeds=(0,), progress=False)
    assert found.about["untested"] == ["alone"]
    assert "Classes of one cell cannot be tested: alone." in ch.report.findings(found)


def test_to_the_space_cells_learned_from_are_like_those_tested_on(cells):
    """Coordinates of both vary as much: in components of its own cells, a cloud is the wider one."""
    counts = sp.csr_matrix(cells.layers["counts"])
    ratios = []
    for seed in range(6):
        parts = parts_of(cells, seed)
        space = Space.of(counts[parts.yardstick], counts.shape[1], 30)
        spread = [space.place(counts[rows]).var(0).sum() for rows in (parts.train, parts.test)]
        ratios.append(spread[0] / spread[1])
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


def test_one_class_is_nothing_to_classify(cells):
    cells = cells.copy()
    cells.obs["cell_type"] = "B"
    with pytest.raises(ch.DataError, match="label tells 1 class of cells"):
        ch.bench.augmentation(cells, ROLES, floor=1000, progress=False)


def test_a_class_is_named_by_its_role_or_its_column(cells):
    said = [
        ch.bench.augmentation(cells, ROLES, by=by, seeds=(0,), progress=False)
        for by in ("label", "cell_type")
    ]
    assert said[0].table().equals(said[1].table())
    assert said[1].about["by"] == "label"
    with pytest.raises(ch.SchemaError, match="needs batch"):
        ch.bench.augmentation(cells, ROLES, by="batch", progress=False)


@pytest.mark.parametrize(("floor", "said"), [(10**9, "more than the 2 GiB"), (0, "at least 1")])
def test_a_floor_that_cannot_be_had_is_refused_before_any_work(cells, floor, said):
    with pytest.raises(ch.ConfigError, match=f"floor={floor}: .*{said}"):
        ch.bench.augmentation(cells, ROLES, floor=floor, progress=False)
