"""CLAIRE: pairs of batches against brute force, what is refined, and whether batches mix."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chreode as ch
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells
from chreode.data.training import open_training
from chreode.learn.phase import Session, Split
from chreode.metrics.neighbours import exact_neighbours, neighbours_by_group
from chreode.models import claire, moco
from chreode.models.selfsupervised.options import with_components
from chreode.module import Step

SCHEMA = ch.Schema(counts="layers/counts", batch="obs/batch")
#: So few steps that a slow copy must follow faster than published.
FEW = {"max_epochs": 30, "batch_size": 128, "momentum": 0.9}


@pytest.fixture(scope="module")
def cells():
    """Two batches that differ more than types do."""
    return simulate_cells(900, 300, n_types=4, n_batches=2, batch_strength=0.6, seed=1)


@pytest.fixture
def opened(cells):
    model = ch.CLAIRE()
    return open_training(
        Cells.of(cells, SCHEMA), ["counts", "batch"], model, rows=None, validation=0.1, old=None,
        weight=None, same_model=True, progress=False,
    ).source  # fmt: skip


def brute(z, batch, k):
    """Return the pairs of cells of two batches that are each among the k nearest of the other."""

    def nearest(i, other):
        far = np.linalg.norm(z[other] - z[i], axis=1)
        return set(other[np.argsort(far, kind="stable")[:k]].tolist())

    found = set()
    for i in range(len(z)):
        for other in np.unique(batch[batch > batch[i]]):
            for j in nearest(i, np.flatnonzero(batch == other)):
                if i in nearest(j, np.flatnonzero(batch == batch[i])):
                    found.add((min(i, j), max(i, j)))
    return found


@pytest.mark.parametrize("k", [1, 4, 200])
def test_pairs_are_mutual_nearest_neighbours(k):
    rng = np.random.default_rng(0)
    z, batch = rng.normal(size=(90, 4)), rng.integers(3, size=90)
    pairs = claire.mutual_pairs(neighbours_by_group(z, batch, k), batch)
    assert {tuple(pair) for pair in pairs.tolist()} == brute(z, batch, k)
    assert len(pairs) == len(np.unique(pairs, axis=0))


def test_partners_are_what_they_are_called(opened):
    rows = np.arange(900)
    split = Split(rows[rows % 7 > 0], rows[rows % 7 == 0])
    view = claire.Constructed(n_neighbours=6, n_mutual=3)
    module = ch.CLAIRE().build(opened.spec)
    source, kept = view(module, opened, split, Session(Rng(0), progress=False))
    assert 300 < len(kept.train) < len(split.train)
    assert set(kept.train) < set(split.train)
    assert set(kept.validation) < set(split.validation)
    batch, near, mutual = (source.columns[name] for name in ("batch", "near", "mutual"))
    drawn = claire.Positives()(source, kept.train, kept.train, np.random.default_rng(0))
    close, positive, near_positive = drawn.T
    for cell, part in ((kept.train, close), (positive, near_positive)):
        assert (batch[cell] == batch[part]).all()
        assert (cell != part).all()
        assert all(p in near[c] for c, p in zip(cell, part, strict=True))
    assert (batch[positive] != batch[kept.train]).all()
    assert all(c in mutual[p] for c, p in zip(kept.train, positive, strict=True))
    z = claire.unit(
        with_components(module, opened, split, Session(Rng(0)))[0].columns["components"]
    )
    for cell in kept.train[:50]:
        others = split.train[(batch[split.train] == batch[cell]) & (split.train != cell)]
        far = np.linalg.norm(z[others] - z[cell], axis=1)
        assert set(near[cell]) == set(others[np.argsort(far)[:6]])
    # the only cell of its batch is its own neighbour
    rare = replace(opened, columns={**opened.columns, "batch": np.where(rows == 5, 2, batch)})
    alone = view(module, rare, split, Session(Rng(0), progress=False))[0].columns["near"]
    assert alone[5].tolist() == [5, -1, -1, -1, -1, -1]
    # those held out have partners of their own
    held = claire.Positives()(source, kept.validation, kept.validation, np.random.default_rng(0))
    assert set(held.ravel()) <= set(split.validation)
    assert set(drawn.ravel()) <= set(split.train)


@pytest.mark.parametrize("least", [0.5, 1.0])
def test_a_cell_is_moved_by_one_share_of_its_own(least):
    torch.manual_seed(0)
    x, y = torch.rand(2000, 5) + 1, torch.rand(2000, 5) + 3
    views = claire.MixedViews(ch.CLAIRE(mix=least), "expression", 5)
    batches = (CellBatch(torch.arange(2000), {"expression": part}) for part in (x, y))
    found = views.draw(*batches).values["expression"].dense()
    share = (found - y) / (x - y)
    torch.testing.assert_close(share, share[:, :1].expand(-1, 5), rtol=0, atol=1e-4)
    assert share.min() >= least - 1e-4
    assert share.max() <= 1 + 1e-4
    assert abs(float(share.mean()) - (least + 1) / 2) < 0.01


def test_the_loss_is_the_mean_of_both_directions(opened):
    module = ch.CLAIRE(temperature=0.2, mix=1.0).build(opened.spec).eval()
    rows = np.arange(40)
    batch = opened.batch(rows)
    loss = module.loss(batch, Step(Rng(0), 0, 0.0))
    one, _, two, _ = batch.aligned(4)
    views = [module.views.plain(part) for part in (one, two)]
    q, k = (
        [F.normalize(net(view)[1], dim=1).detach().numpy() for view in views]
        for net in (module.network, module.slow)
    )
    queue, total = module.queue.held.numpy(), []
    for queries, keys in ((q[0], k[1]), (q[1], k[0])):
        for a, b in zip(queries, keys, strict=True):
            logits = np.r_[a @ b, queue @ a].astype(float) / 0.2
            total.append(np.log(np.exp(logits).sum()) - logits[0])
    assert float(loss.objectives["model"].detach()) == pytest.approx(np.mean(total), rel=1e-5)
    np.testing.assert_allclose(loss.outputs["keys"].numpy(), np.r_[k[1], k[0]], atol=1e-6)


@pytest.mark.parametrize("wrong", [300, 1400])
def test_pairs_that_look_unlike_go_and_be_they_more(wrong):
    """The published code keeps the larger component, which would be the wrong one of 1,400 and 1,000."""
    rng = np.random.default_rng(0)
    cosines = np.r_[rng.normal(0.8, 0.06, 1000), rng.normal(0.2, 0.12, wrong)]
    kept = claire.alike(cosines, cosines)
    assert kept[:1000].mean() > 0.95
    assert kept[1000:].mean() < 0.05


@pytest.mark.slow
def test_refining_leaves_more_right_pairs(cells, monkeypatch):
    plain, seen = claire._refined, []

    def refined(pairs, embedded):
        seen.append((pairs[0], plain(pairs, embedded)[0]))
        return plain(pairs, embedded)

    monkeypatch.setattr(claire, "_refined", refined)
    ch.CLAIRE(refine=0.3, **{**FEW, "max_epochs": 10}).fit(cells, SCHEMA, progress=False)
    ((before, after),) = seen
    types = cells.obs["cell_type"].to_numpy()
    right = [(types[p[:, 0]] == types[p[:, 1]]).mean() for p in (before, after)]
    assert len(after) < len(before)
    assert right[1] > right[0] + 0.02
    seen.clear()
    never = ch.CLAIRE(refine=1.0, max_epochs=2).fit(cells, SCHEMA, progress=False)
    assert not seen
    assert len(never.history.query("phase == 'CLAIRE'")) == 2


@pytest.mark.slow
def test_the_rate_falls_after_the_refinement(cells):
    for schedule, last in (("constant", 1e-3), ("cosine", 0.25e-3)):
        how = {"max_epochs": 5, "refine": 0.4, "batch_size": 128, "schedule": schedule}
        history = ch.CLAIRE(**how).fit(cells, SCHEMA, progress=False).history
        rates = history.groupby("phase", sort=False)["lr"].apply(list)
        assert rates["all pairs"] == [1e-3, 1e-3]
        assert rates["CLAIRE"][0] == 1e-3
        assert rates["CLAIRE"][2] == pytest.approx(last)


def agreement(fitted, cells):
    """Return the share of neighbours of the same type, and of another batch."""
    z = fitted.embed(cells, progress=False)
    near = exact_neighbours(claire.unit(z.astype(float)), 15).indices
    of = {name: cells.obs[name].to_numpy() for name in ("cell_type", "batch")}
    same = {name: (values[near] == values[:, None]).mean() for name, values in of.items()}
    return same["cell_type"], 1 - same["batch"]


@pytest.mark.slow
def test_batches_mix_better_than_without_pairs_or_with_wrong_ones(cells, monkeypatch):
    clear = agreement(ch.CLEAR(**FEW).fit(cells, SCHEMA, progress=False), cells)
    right = agreement(ch.CLAIRE(**FEW).fit(cells, SCHEMA, progress=False), cells)
    plain = claire.mutual_pairs

    def shuffled(near, batch):
        pairs = plain(near, batch)
        return np.column_stack([pairs[:, 0], np.random.default_rng(0).permutation(pairs[:, 1])])

    monkeypatch.setattr(claire, "mutual_pairs", shuffled)
    wrong = agreement(ch.CLAIRE(**FEW).fit(cells, SCHEMA, progress=False), cells)
    assert right[1] > clear[1] + 0.15  # 0.5 were perfect
    assert right[1] > wrong[1] + 0.05
    assert right[0] > wrong[0] + 0.1


def test_one_batch_is_refused_before_any_compute(cells, monkeypatch):
    monkeypatch.setattr(ch.CLAIRE, "_learn", lambda *_: pytest.fail("compute began"))
    one = cells[cells.obs["batch"] == "batch_0"].copy()
    with pytest.raises(ch.DataError, match=r"come from 'batch_0' alone.*or take CLEAR"):
        ch.CLAIRE().fit(one, SCHEMA)
    rows = np.flatnonzero(cells.obs["batch"] == "batch_0")
    with pytest.raises(ch.DataError, match="come from 'batch_0' alone"):
        ch.CLAIRE().fit(cells, SCHEMA, rows=rows)
    with pytest.raises(ch.SchemaError, match="needs batch"):
        ch.CLAIRE().fit(cells, ch.Schema(counts="layers/counts"))


@pytest.mark.slow
def test_cells_to_validate_on_have_pairs_too_or_are_refused(cells):
    def fit(cells, validation):
        fitted = ch.CLAIRE(n_mutual=1, max_epochs=2, refine=0.5).fit(
            cells, SCHEMA, validation=validation, progress=False
        )
        last = fitted.history.query("phase == 'CLAIRE'")
        validated = "validation_objective" in last and last["validation_objective"].notna().all()
        return fitted.provenance["validation_cells"], bool(validated)

    batch = cells.obs["batch"].to_numpy()
    one, other = np.flatnonzero(batch == "batch_0"), np.flatnonzero(batch == "batch_1")
    with pytest.raises(
        ch.DataError, match=r"held out together, come from 'batch_0' alone.*validation=0"
    ):
        fit(cells, one[:40])
    assert fit(cells, np.sort(np.concatenate([one[:30], other[:30]]))) == (60, True)
    assert fit(cells, np.array([one[0], other[0]])) == (
        2,
        True,
    )  # each other's nearest, if far apart
    few = cells[np.r_[one, other[:40]]].copy()
    assert fit(few, 0.003) == (0, False)  # the one that was drawn is learned from


def test_mixing_is_not_asked_for_twice():
    with pytest.raises(ch.ConfigError, match="pairs cells of different batches by itself"):
        ch.CLAIRE(augment=("mnn",))


def test_too_few_pairs_are_told(cells):
    few = cells[:40].copy()
    with pytest.raises(ch.DataError, match="A mutual nearest neighbour.*raise n_mutual"):
        ch.CLAIRE(n_mutual=1).fit(few[:14].copy(), SCHEMA, progress=False)


def test_pairs_that_the_refinement_leaves_out_are_not_said_to_be_not_found():
    """And what the message says to do helps."""
    few = simulate_cells(60, 80, n_types=4, n_batches=2, batch_strength=0.6, seed=0)[:18].copy()
    how = {"seed": 0, "validation": 0, "progress": False}
    with pytest.raises(
        ch.DataError, match=r"left out.* unlike\. \d of these cells are left.*refine=1"
    ):
        ch.CLAIRE(max_epochs=4, refine=0.5, n_mutual=2).fit(few, SCHEMA, **how)
    ch.CLAIRE(max_epochs=2, refine=1.0, n_mutual=2).fit(few, SCHEMA, **how)


@pytest.mark.parametrize("refine", [0.0, 0.25, 1.0])
def test_the_momentum_rises_once_over_both_stages(cells, monkeypatch, refine):
    seen, plain = [], moco.rising
    monkeypatch.setattr(moco, "rising", lambda *given: seen.append(plain(*given)) or seen[-1])
    how = {"max_epochs": 4, "batch_size": 128, "momentum": 0.9, "refine": refine}
    ch.CLAIRE(**how).fit(cells[:400].copy(), SCHEMA, progress=False)
    assert seen[0] == pytest.approx(0.9)
    assert seen[-1] > 0.99
    assert (np.diff(seen) >= 0).all()
    if refine == 0.25:  # it goes on from where the first epoch of four led
        assert min(seen, key=lambda m: abs(m - plain(0.9, 0.25))) == pytest.approx(plain(0.9, 0.25))


def test_memory_of_the_pairs_grows_with_the_neighbours_and_not_with_their_square():
    rng, most = np.random.default_rng(0), []
    z, batch = rng.normal(size=(800, 5)), rng.integers(4, size=800)
    for k in (10, 40):
        near = neighbours_by_group(z, batch, k)
        tracemalloc.start()
        claire.mutual_pairs(near, batch)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < 6 * most[0]  # 16 times with the square
