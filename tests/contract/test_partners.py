"""Cells that come in pairs: an anchor with a neighbour, a perturbed cell with a control of its batch."""

from __future__ import annotations

from typing import ClassVar

import anndata
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

import chreode as ch
from chreode.config import config, param
from chreode.data.align import learn_spec, open_source
from chreode.data.cells import Cells
from chreode.data.sampler import Balanced, FullBatch, Paired, Sampler, Shuffled
from chreode.errors import DataError, SchemaError
from chreode.learn import SGD, Phase, Rng, Session, Split
from chreode.learn.components import components
from chreode.learn.partners import Controls, NearestNeighbours
from chreode.model import Model
from chreode.module import Loss, Module

SCREEN = ch.Schema(
    counts="X", batch="obs/bio_rep", perturbation="obs/perturbation", control="non-targeting"
)
#: Cells of each perturbation in two replicates: their shares differ, so that controls must be matched.
DESIGN = {"JAK2": (180, 20), "IFNGR2": (20, 180), "non-targeting": (130, 110)}


def screen(path):
    """Return 640 cells of a CRISPR screen of 299 genes (Papalexi et al. 2021)."""
    data = anndata.read_h5ad(path)
    sure, rng, kept = data.obs.grna_frac > 0.8, np.random.default_rng(0), []
    for target, numbers in DESIGN.items():
        for rep, n in zip(("rep_1", "rep_2"), numbers, strict=True):
            there = sure & (data.obs.perturbation == target) & (data.obs.bio_rep == rep)
            kept.extend(rng.permutation(np.flatnonzero(there))[:n])
    return data[np.sort(kept)].copy()


def blood(path, n_cells=600, n_genes=300):
    """Return some cells and their most variable genes."""
    data = anndata.read_h5ad(path)[:n_cells]
    variance = np.log1p(data.X.toarray()).var(0)
    return data[:, np.sort(np.argsort(-variance)[:n_genes])].copy()


def source_of(data, schema, *roles):
    cells = Cells.of(data, schema)
    spec = learn_spec(cells, roles, np.arange(len(cells)))
    return open_source(cells, spec, roles, {})


@pytest.fixture(scope="module")
def papalexi(real):
    return screen(real("papalexi_eccite_crispr/papalexi_20729x299.h5ad"))


@pytest.fixture(scope="module")
def pbmc(real):
    return blood(real("pbmc3k/pbmc3k_2700.h5ad"))


# A regressor from controls to perturbed cells: 20 lines.


class ResponseModule(Module):
    """A perturbed cell is a control of its batch, and what the perturbation adds to it."""

    def __init__(self, n_genes, n_perturbations):
        super().__init__()
        self.effect = nn.Parameter(torch.zeros(n_perturbations, n_genes))

    def loss(self, batch, step):
        cell, control = batch.aligned(2)
        guess = control.log_expression() + self.effect[cell["perturbation"]]
        return Loss({"model": F.mse_loss(guess, cell.log_expression())})


@config
class Response(Model):
    """What perturbations add."""

    needs: ClassVar = ("counts", "perturbation")
    uses: ClassVar = ("batch",)
    max_epochs: int = param(60, "Passes.")

    def build(self, spec):
        return ResponseModule(spec.n_features("counts"), len(spec.categories["perturbation"]))

    def phases(self):
        sgd = SGD(lr=0.05, max_epochs=self.max_epochs, schedule="cosine")
        return [Phase(sgd, data=Paired(80, Controls()))]


def shift(data, target, within):
    """Return the mean of perturbed cells minus that of controls, of the same groups where they have any."""
    x = np.log1p(1e4 * (x := data.X.toarray().astype(float)) / x.sum(1, keepdims=True))
    control = (data.obs.perturbation == "non-targeting").to_numpy()
    group = data.obs[within].to_numpy() if within else np.zeros(len(x))
    mine = (data.obs.perturbation == target).to_numpy()
    base = {g: x[control & (group == g)].mean(0) for g in np.unique(group)}
    return np.mean([x[i] - base[group[i]] for i in np.flatnonzero(mine)], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("matched", [True, False])
def test_effects_are_those_within_batches(papalexi, matched):
    """Of unmatched controls the regressor learns what the replicates differ by, which is as much."""
    schema = SCREEN if matched else SCREEN.with_(batch=None)
    fitted = Response().fit(papalexi, schema, validation=0, progress=False)
    names = fitted.spec.categories["perturbation"]
    found = dict(zip(names, fitted.module.effect.detach().numpy(), strict=True))
    for target in ("JAK2", "IFNGR2"):
        within, pooled = (shift(papalexi, target, g) for g in ("bio_rep", None))
        right, wrong = (within, pooled) if matched else (pooled, within)
        apart = np.linalg.norm(within - pooled)
        assert apart > 0.2 * np.linalg.norm(within)
        assert np.linalg.norm(found[target] - right) < 0.35 * apart
        assert np.linalg.norm(found[target] - wrong) > 0.75 * apart
    if matched:  # controls beside other controls of their batch
        assert np.linalg.norm(found["non-targeting"]) < 0.1 * np.linalg.norm(found["JAK2"])


def test_partners_are_controls_of_the_anchors_batch_and_not_the_anchor(papalexi):
    source = source_of(papalexi, SCREEN, "counts", "batch", "perturbation")
    rows = np.random.default_rng(1).permutation(len(source))[:400]
    drawn = np.concatenate(
        [
            part
            for epoch in range(20)
            for part in Paired(64, Controls()).batches(
                source, rows, epoch, np.random.default_rng(epoch)
            )
        ]
    )
    anchors, partners = drawn.T
    assert sorted(anchors) == sorted(np.tile(rows, 20))
    control = (papalexi.obs.perturbation == "non-targeting").to_numpy()
    assert np.isin(partners, rows).all()
    assert control[partners].all()
    batch = papalexi.obs.bio_rep.to_numpy()
    assert (batch[anchors] == batch[partners]).all()
    assert (anchors != partners).all()
    # all of them, and about as often (8,000 draws)
    for name in ("rep_1", "rep_2"):
        pool = rows[control[rows] & (batch[rows] == name)]
        times = np.array([(partners == cell).sum() for cell in pool])
        expected = (batch[anchors] == name).sum() / len(pool)
        assert (np.abs(times - expected) < 6 * np.sqrt(expected)).all()


def test_a_batch_without_controls_has_those_of_others(papalexi):
    source = source_of(papalexi, SCREEN, "counts", "batch", "perturbation")
    control, first = source.control, papalexi.obs.bio_rep.to_numpy() == "rep_1"
    rows = np.flatnonzero(~(control & first))
    partners = Controls()(source, rows, rows, np.random.default_rng(0))
    assert control[partners].all()
    assert len(np.unique(partners[first[rows]])) > 50
    # a lone control is its own partner
    lone = np.append(np.flatnonzero(~control), np.flatnonzero(control)[0])
    assert set(Controls()(source, lone, lone, np.random.default_rng(0))) == {lone[-1]}


def test_without_controls_it_says_what_is_missing(papalexi):
    treated = papalexi[(papalexi.obs.perturbation != "non-targeting").to_numpy()]
    few = np.flatnonzero((papalexi.obs.perturbation != "non-targeting").to_numpy())[:40]
    with pytest.raises(SchemaError, match="name perturbation and control"):
        Response(max_epochs=1).fit(treated, SCREEN.with_(control=None))
    with pytest.raises(DataError, match="no control among"):
        Response(max_epochs=1).fit(papalexi, SCREEN, validation=few)


def test_a_checkpoint_knows_which_cells_are_controls(papalexi, tmp_path):
    Response(max_epochs=1).fit(papalexi, SCREEN, checkpoint=tmp_path)
    with pytest.raises(ch.StoreError, match="another fit, with other data"):
        Response(max_epochs=1).fit(papalexi, SCREEN.with_(control="JAK2"), checkpoint=tmp_path)


# Contrastive learning from neighbours: 25 lines.


class NeighboursModule(Module):
    """A linear code in which a cell is told from the others of a minibatch by its neighbour."""

    def __init__(self, n_genes):
        super().__init__()
        self.code = nn.Linear(n_genes, 8)
        self.seen = []

    def loss(self, batch, step):
        self.seen.append((self.training, batch.rows.numpy()))
        one, two = (F.normalize(self.code(b.log_expression())) for b in batch.aligned(2))
        return Loss({"model": F.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))})

    def embed(self, batch):
        return self.code(batch.log_expression())


@config
class Neighbourly(Model):
    """Codes of cells from their neighbours."""

    needs: ClassVar = ("counts",)
    anyone: bool = param(False, "Draw any cell in place of a neighbour.")

    def build(self, spec):
        return NeighboursModule(spec.n_features("counts"))

    def phases(self):
        def anyone(source, rows, anchors, generator):
            return generator.choice(rows, len(anchors))

        partner = anyone if self.anyone else NearestNeighbours(5)
        sgd = SGD(lr=1e-2, max_epochs=20, keep="last")
        return [Phase(sgd, data=Paired(100, partner), view=components(10))]


@pytest.mark.slow
def test_neighbours_tell_cells_apart_and_any_cells_do_not(pbmc):
    chance = np.log(100)
    ended = {
        anyone: Neighbourly(anyone=anyone)
        .fit(pbmc, ch.Schema(counts="X"), validation=1 / 6, progress=False)
        .history["validation_objective"]
        for anyone in (False, True)
    }
    assert ended[False].min() < chance - 0.7
    assert ended[True].min() > chance - 0.05


@pytest.mark.slow
def test_held_out_cells_are_paired_with_each_other_and_alike_in_every_epoch(pbmc):
    fitted = Neighbourly().fit(pbmc, ch.Schema(counts="X"), validation=0.4, progress=False)
    learned, looked_at = (
        [rows for training, rows in fitted.module.seen if training is mode]
        for mode in (True, False)
    )
    train, held_out = np.unique(np.concatenate(learned)), np.unique(np.concatenate(looked_at))
    assert (len(train), len(held_out)) == (360, 240)
    assert not np.intersect1d(train, held_out).size
    assert len(looked_at) == 20 * 2
    for first, again in zip(looked_at[:2], looked_at[2:4], strict=True):
        np.testing.assert_array_equal(first, again)
    # in training they are drawn anew
    assert not np.array_equal(np.concatenate(learned[:4]), np.concatenate(learned[4:8]))
    anchors = np.concatenate([rows[: len(rows) // 2] for rows in looked_at[:2]])
    assert sorted(anchors) == held_out.tolist()
    assert not np.array_equal(anchors, held_out)  # minibatches are mixtures


def test_neighbours_are_those_in_components_of_the_training_rows(pbmc):
    source, split = source_of(pbmc, ch.Schema(counts="X"), "counts"), Split(*_halves(len(pbmc)))
    seen, same = components(10)(None, source, split, Session(Rng(0)))
    assert same is split
    x = source.batch(np.arange(len(source))).log_expression().double().numpy()
    z = PCA(10, svd_solver="full").fit(x[split.train]).transform(x)
    partner, drawn = NearestNeighbours(4), []
    for rows in (split.train, split.validation):
        _, near = NearestNeighbors(n_neighbors=4).fit(z[rows]).kneighbors()
        for seed in range(30):
            found = partner(seen, rows, rows, np.random.default_rng(seed))
            drawn.append((found[:, None] == rows[near]).argmax(1))
            assert (found[:, None] == rows[near]).any(1).all()
    assert (np.bincount(np.concatenate(drawn)) > 0.23 * 30 * len(pbmc)).all()
    with pytest.raises(SchemaError, match="no embedding 'components'"):
        NearestNeighbours(4)(source, split.train, split.train, np.random.default_rng(0))
    with pytest.raises(DataError, match="A single cell"):
        partner(seen, split.train[:1], split.train[:1], np.random.default_rng(0))


def _halves(n):
    order = np.random.default_rng(0).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


@pytest.mark.parametrize("stored", ["memory", "disk"])
def test_batches_are_taken_apart_in_order(pbmc, stored, tmp_path):
    if stored == "disk":
        pbmc.write_h5ad(tmp_path / "cells.h5ad")
    there = ch.open(tmp_path / "cells.h5ad") if stored == "disk" else pbmc
    source = source_of(there, ch.Schema(counts="X"), "counts")
    assert (source.block > 1) is (stored == "disk")
    drawn = np.array([[5, 1, 7], [2, 2, 9]])
    (batch,) = source.minibatches([drawn.T.ravel()])
    parts = batch.aligned(3)
    assert [part.rows.tolist() for part in parts] == drawn.T.tolist()
    for part, rows in zip(parts, drawn.T, strict=True):
        np.testing.assert_array_equal(part["counts"], pbmc.X[rows].toarray())
    with pytest.raises(DataError, match="6 cells does not hold 4 for each anchor"):
        batch.aligned(4)


def test_partners_keep_what_they_made_of_the_present_source_alone(pbmc):
    partner = NearestNeighbours(3)
    for seed in range(3):  # as members of an ensemble do, each with components of its own
        source, split = source_of(pbmc, ch.Schema(counts="X"), "counts"), Split(*_halves(len(pbmc)))
        seen, _ = components(5)(None, source, split, Session(Rng(seed)))
        for rows in (split.train, split.validation, split.train):
            partner(seen, rows, rows, np.random.default_rng(0))
    assert [source for source, *_ in partner._kept] == [seen, seen]


def test_a_pair_counts_as_one_cell(papalexi, monkeypatch):
    """The gradient is that of the mean over anchors, and not over all cells of a minibatch."""
    found = []

    def after_step(self, step):
        found.append(self.effect.grad.clone())

    def loss(self, batch, step):
        return Loss({"model": self.effect.sum() * len(batch.aligned(2)[0]) / 40})

    monkeypatch.setattr(ResponseModule, "after_step", after_step)
    monkeypatch.setattr(ResponseModule, "loss", loss)
    monkeypatch.setattr(
        Response,
        "phases",
        lambda self: [Phase(SGD(lr=0.0, max_epochs=1), data=Paired(40, Controls()))],
    )
    Response().fit(papalexi, SCREEN, validation=0, progress=False)
    for gradient in found:
        torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_a_function_may_draw_several_partners(pbmc):
    source, rows = source_of(pbmc, ch.Schema(counts="X"), "counts"), np.arange(100, 200)

    def others(source, rows, anchors, generator):
        return generator.choice(rows, (len(anchors), 3))

    first, second = Paired(50, others).batches(source, rows, 0, np.random.default_rng(0))
    assert first.shape == second.shape == (50, 4)
    assert sorted(np.concatenate([first, second])[:, 0]) == rows.tolist()


@pytest.mark.parametrize("sampler", [Shuffled(64), Balanced(64), FullBatch(3)])
def test_other_samplers_look_at_held_out_cells_in_order(pbmc, sampler):
    source, rows = source_of(pbmc, ch.Schema(counts="X"), "counts"), np.arange(100, 200)
    (looked_at,) = sampler.held_out(source, rows, np.random.default_rng(0))
    np.testing.assert_array_equal(looked_at, rows)
    assert isinstance(sampler, Sampler)
    assert isinstance(Paired(64, Controls()), Sampler)
