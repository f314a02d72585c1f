"""Partners from other batches are the right cells: those that brute force finds, by their own rows."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pytest
from scipy.spatial.distance import cdist

import chreode as ch
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.sampler import Paired
from chreode.errors import DataError, SchemaError
from chreode.learn import Rng, Session, Split
from chreode.learn.components import components
from chreode.learn.partners import BatchBalanced, MutualNeighbours
from chreode.metrics.neighbours import neighbours_by_group

K = 3


def kang(path):
    """Return 500 cells of three donors, of unequal numbers, and 200 genes."""
    data = anndata.read_h5ad(path, backed="r")
    rng, donor = np.random.default_rng(0), data.obs.donor.astype(str).to_numpy()
    kept = [
        rng.permutation(np.flatnonzero(donor == name))[:n]
        for name, n in zip(np.unique(donor), (300, 150, 50), strict=False)
    ]
    some = data[np.sort(np.concatenate(kept))].to_memory()
    some.obs["batch"] = some.obs.donor.astype(str)
    return some[:, np.argsort(-np.asarray(some.X.mean(0)).ravel())[:200]].copy()


@pytest.fixture(scope="module", params=["simulated", "real"])
def seen(request, real, _simulated):
    """Return a source with components, a split, their table and the batch of every cell."""
    if request.param == "real":
        data = kang(next(real("kang_pbmc_ifnb").glob("*.h5ad")))
        schema = ch.Schema(counts="X", batch="obs/batch")
    else:
        data, schema = _simulated, ch.Schema(counts="layers/counts", batch="obs/batch")
    cells, roles = Cells.of(data, schema), ("counts", "batch")
    source = open_source(cells, learn_spec(cells, roles, np.arange(len(cells))), roles, {})
    order = np.random.default_rng(1).permutation(len(source))
    # neither the first cells, nor in the order of the data: a place in a list is no row
    split = Split(np.sort(order[:280]), np.sort(order[280:430]))
    found, _ = components(10)(None, source, split, Session(Rng(0)))
    return found, split, found.columns["components"], source.columns["batch"]


def brute(x, batch, rows, k):
    """Return for each row the set of its nearest rows in each batch, by plain loops."""
    apart = cdist(x[rows], x[rows])
    np.fill_diagonal(apart, np.inf)
    found = {}
    for i, row in enumerate(rows):
        for b in np.unique(batch[rows]):
            there = np.flatnonzero((batch[rows] == b) & (rows != row))
            found[row, b] = set(rows[there[np.argsort(apart[i, there])[:k]]])
    return found


def by_position(partner):
    """Return a partner that gives neighbours' places in the list in place of rows, as published code did."""

    def wrong(source, rows, anchors, generator):
        return np.searchsorted(np.unique(rows), partner(source, rows, anchors, generator))

    return wrong


def mutual_cells(near, batch, rows):
    return {
        row: {
            other
            for b in np.unique(batch[rows])
            if b != batch[row]
            for other in near[row, b]
            if row in near[other, batch[row]]
        }
        for row in rows
    }


def drawn(partner, source, rows, times=60):
    return np.stack(
        [partner(source, rows, rows, np.random.default_rng(seed)) for seed in range(times)]
    )


def are_mutual(partner, seen):
    """Return whether all cells drawn, and no others, are those that brute force finds."""
    source, split, x, batch = seen
    right = True
    for rows in (split.train, split.validation):
        near = brute(x, batch, rows, K)
        mutual, cells = mutual_cells(near, batch, rows), drawn(partner, source, rows)
        for i, row in enumerate(rows):
            right &= set(cells[:, i, 0]) == near[row, batch[row]]
            right &= set(cells[:, i, 1]) <= (mutual[row] or {row})
        some = {row for row in rows if mutual[row]}
        assert 0.1 * len(rows) < len(some) < len(rows)
        missed = [set(cells[:, i, 1]) < mutual[row] for i, row in enumerate(rows) if row in some]
        right &= np.mean(missed) < 0.02
    return right


def test_mutual_neighbours_are_those_of_brute_force(seen):
    assert are_mutual(MutualNeighbours(K), seen)


def test_places_in_the_list_in_place_of_rows_are_found_out(seen):
    assert not are_mutual(by_position(MutualNeighbours(K)), seen)
    assert not are_balanced(by_position(BatchBalanced(K)), seen)


def are_balanced(partner, seen):
    source, split, x, batch = seen
    right = True
    for rows in (split.train, split.validation):
        near, cells = brute(x, batch, rows, K), drawn(partner, source, rows, 80)
        for i, row in enumerate(rows):
            allowed = set.union(*(near[row, b] for b in np.unique(batch[rows])))
            right &= set(cells[:, i].ravel()) == allowed
        assert (cells != rows[:, None]).all() or not right
    return right


def test_balanced_neighbours_are_those_of_brute_force(seen):
    assert are_balanced(BatchBalanced(K), seen)


def test_batches_are_drawn_alike_and_views_apart(seen):
    source, split, _, batch = seen
    cells = drawn(BatchBalanced(K), source, split.train, 100)
    n_batches = len(np.unique(batch[split.train]))
    share = np.bincount(batch[cells].ravel()) / cells.size
    n = cells.size / 2
    assert (np.abs(share - 1 / n_batches) < 5 / np.sqrt(n)).all()
    same = (cells[..., 0] == cells[..., 1]).mean()
    assert abs(same - 1 / (n_batches * K)) < 0.01  # two draws of their own


def test_mutual_neighbours_are_drawn_alike(seen):
    source, split, x, batch = seen
    rows = split.train
    mutual = mutual_cells(brute(x, batch, rows, K), batch, rows)
    i = max(range(len(rows)), key=lambda i: len(mutual[rows[i]]))
    n = len(mutual[rows[i]])
    partner, anchor = MutualNeighbours(K), rows[i : i + 1].repeat(4000)
    cells = partner(source, rows, anchor, np.random.default_rng(0))[:, 1]
    times = np.unique(cells, return_counts=True)[1]
    assert len(times) == n > 1
    assert (np.abs(times - 4000 / n) < 5 * np.sqrt(4000 / n)).all()


def test_minibatches_hold_both_partners(seen):
    source, split, *_ = seen
    parts = list(
        Paired(64, MutualNeighbours(K)).batches(source, split.train, 0, np.random.default_rng(0))
    )
    assert all(part.shape[1] == 3 for part in parts)
    assert np.isin(np.concatenate(parts), split.train).all()
    again = Paired(64, MutualNeighbours(K)).batches(
        source, split.train, 0, np.random.default_rng(0)
    )
    for one, two in zip(parts, again, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("partner", [MutualNeighbours(K), BatchBalanced(K)])
def test_one_batch_is_refused(seen, partner):
    source, split, _, batch = seen
    rows = split.train[batch[split.train] == batch[split.train[0]]]
    with pytest.raises(DataError, match="Cells of two batches are needed for .* come from"):
        partner(source, rows, rows, np.random.default_rng(0))
    bare = replace(source, columns={"components": source.columns["components"]})
    with pytest.raises(SchemaError, match="name batch"):
        partner(bare, split.train, rows, np.random.default_rng(0))


def test_a_batch_of_one_cell_and_batches_of_fewer_than_k():
    rng = np.random.default_rng(0)
    x, group = rng.standard_normal((20, 3)), np.array([0] * 17 + [1, 2, 2])
    near, apart = neighbours_by_group(x, group, 4), cdist(x, x)
    np.fill_diagonal(apart, np.inf)
    for i in range(20):
        for b in range(3):
            there = np.flatnonzero((group == b) & (np.arange(20) != i))
            nearest = there[np.argsort(apart[i, there])[:4]]
            expected = [*nearest, *[-1] * (4 - len(nearest))]
            assert near[i, b].tolist() == expected
