"""The bench of generation ranks what is known to be better higher, and gives memory away."""

from __future__ import annotations

import numpy as np
import pytest

import chreode as ch
from chreode.bench.generation import (
    CEILING,
    METRICS,
    MIXTURE,
    NB,
    REPLAY,
    SHUFFLED,
    class_table,
    split,
)
from chreode.data.simulate import simulate_cells


@pytest.fixture(scope="module")
def cells():
    return simulate_cells(900, 80, n_types=3, n_batches=2, seed=0)


ROLES = ch.Schema(counts="layers/counts", label="obs/cell_type")


@pytest.fixture(scope="module")
def bench(cells):
    return ch.bench.generation(cells, ROLES, seeds=(0, 1), progress=False)


def test_every_row_has_every_metric(bench):
    table = bench.table()
    assert list(table.index) == [CEILING, REPLAY, SHUFFLED, NB, MIXTURE]
    assert np.isfinite(table[list(METRICS)].to_numpy(float)).all()
    assert set(bench.methods["role"]) == {"ceiling", "control", "baseline"}


def test_cells_of_a_random_class_are_worse_than_those_of_the_class(bench):
    table = bench.table()
    for metric in ("w2", "mmd", "energy", "auc"):
        assert table.loc[SHUFFLED, metric] > table.loc[REPLAY, metric]
        assert table.loc[SHUFFLED, metric] > table.loc[CEILING, metric]
    assert table.loc[SHUFFLED, "fold_change"] < 0.3 < table.loc[CEILING, "fold_change"]
    # all classes together cannot tell
    assert table.loc[SHUFFLED, "auc_pooled"] == pytest.approx(0.5, abs=0.15)


def test_replayed_cells_are_perfect_but_for_memory(bench):
    table = bench.table()
    assert table.loc[REPLAY, "memory"] > 0.95
    assert table.loc[CEILING, "memory"] == pytest.approx(0.5, abs=0.05)
    assert table.loc[REPLAY, "w2"] == pytest.approx(table.loc[CEILING, "w2"], rel=0.1)


def test_genes_drawn_by_themselves_have_the_right_moments_and_no_correlation(bench):
    table = bench.table()
    assert table.loc[NB, "mean"] > 0.9
    assert table.loc[NB, "zeros"] > 0.9
    assert table.loc[NB, "depth"] > table.loc[CEILING, "depth"]


@pytest.mark.slow
def test_models_are_fitted_on_training_cells_and_kept(cells, tmp_path):
    models = [
        ch.SCVI(max_epochs=3),
        ch.CFGen(max_epochs=3, flow_epochs=3, hidden=(32, 16), n_latent=4, flow_width=16),
    ]
    first = ch.bench.generation(
        cells, ROLES, models, seeds=(0,), into=tmp_path / "r", progress=False
    )
    again = ch.bench.generation(
        cells, ROLES, models, seeds=(0,), into=tmp_path / "r", progress=False
    )
    assert list(first.table().index)[-2:] == ["SCVI", "CFGen"]
    assert again.scores.equals(first.scores)
    assert (first.methods["note"] == "").sum() >= 5


def test_a_split_holds_every_cell_of_a_class_once(cells):
    classes, attributes = class_table(cells, ROLES.with_(batch="obs/batch"))
    assert list(attributes.columns) == ["batch", "label"]
    assert len(attributes) == 6
    parts = split(classes, 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(900))
    assert len(parts[1]) == len(parts[2])
    assert 0.58 * 900 < len(parts[0]) < 0.62 * 900
    assert not np.array_equal(parts[0], split(classes, 1)[0])


def test_what_cannot_be_judged_is_refused(cells):
    with pytest.raises(ch.SchemaError, match="classes"):
        ch.bench.generation(cells, ch.Schema(counts="layers/counts"))
    with pytest.raises(ch.SchemaError, match="counts"):
        ch.bench.generation(cells, ch.Schema(label="obs/cell_type"))
