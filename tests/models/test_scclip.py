"""ScCLIP: the loss by hand, cells that lack a modality, and whether pairs are found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import chreode as ch
from chreode.compute.processes import Group
from chreode.compute.rng import Rng
from chreode.data.batch import CellBatch, SparseRows
from chreode.data.simulate import simulate_citeseq, simulate_multiome
from chreode.models.scclip import found
from chreode.module import Step

CITE = ch.Schema(counts="rna:layers/counts", protein="adt:layers/counts")
MULTIOME = ch.Schema(counts="rna:layers/counts", accessibility="atac:layers/counts")


@pytest.fixture(scope="module")
def stained():
    """Cells of three batches, of which one has no RNA and one no proteins."""
    absent = {"rna": ["batch_1"], "adt": ["batch_2"]}
    return simulate_citeseq(450, 120, 15, n_types=4, n_batches=3, absent=absent, seed=0)


@pytest.fixture(scope="module")
def fitted(stained):
    return ch.ScCLIP(max_epochs=4, n_latent=8, batch_size=64).fit(stained, CITE, progress=False)


def test_the_loss_is_that_of_the_known_cells_by_hand():
    torch.manual_seed(0)
    one, two = torch.randn(2, 9, 4, dtype=torch.float64)
    known = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1]).bool()
    values = found(one, two, known, Group())[known]
    a, b = one[known].numpy(), two[known].numpy()
    by_hand = [np.log(np.exp(b @ q).sum()) - q @ b[i] for i, q in enumerate(a)]
    np.testing.assert_allclose(values, by_hand, rtol=1e-12)


def random_batch(fitted, n=12, lacking=()):
    rng = np.random.default_rng(0)
    genes, proteins = (fitted.spec.n_features(role) for role in ("counts", "protein"))
    views = {
        "counts": torch.from_numpy(rng.poisson(1.0, (n, genes)).astype(np.float32)),
        "protein": torch.from_numpy(rng.poisson(9.0, (n, proteins)).astype(np.float32)),
    }
    present = torch.ones(n, dtype=torch.bool)
    present[list(lacking)] = False
    return CellBatch(torch.arange(n), views, {"protein": present, "counts": torch.ones(n).bool()})


def objective(module, batch):
    with Rng(0).scope("noise"), torch.no_grad():
        return float(module.loss(batch, Step(Rng(0), 0, 0.0)).objectives["model"])


def test_cells_of_one_modality_take_no_part_in_the_loss(fitted):
    plain = dataclasses.replace(fitted.module.options, augment=())
    module = plain.build(fitted.spec)
    module.load_state_dict(fitted.module.state_dict())
    module.eval()
    batch = random_batch(fitted, lacking=(2, 7))
    whole = objective(module, batch)
    other = {role: x.clone() for role, x in batch.views.items()}
    other["counts"][[2, 7]] += 5
    assert objective(module, dataclasses.replace(batch, views=other, _dense={})) == whole
    kept = [i for i in range(12) if i not in (2, 7)]
    fewer = CellBatch(torch.arange(10), {role: x[kept] for role, x in batch.views.items()})
    # a mean over the cells that have both: the share of the others is made up for
    assert objective(module, fewer) == pytest.approx(whole, rel=1e-6)
    other["counts"][0] += 5
    assert objective(module, dataclasses.replace(batch, views=other, _dense={})) != whole


def test_without_any_pair_a_minibatch_teaches_nothing(fitted):
    module = fitted.module
    module.zero_grad(set_to_none=True)
    loss = module.loss(random_batch(fitted, lacking=range(12)), Step(Rng(0), 0, 0.0))
    loss.objectives["model"].backward()
    assert float(loss.objectives["model"].detach()) == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in module.parameters())
    module.zero_grad(set_to_none=True)


def test_a_cell_is_at_the_mean_of_its_places_or_at_the_only_one(fitted):
    batch = random_batch(fitted, lacking=(3,))
    with torch.no_grad():
        view = fitted.module.views.plain(batch)
        places = fitted.module.network.encode(view)
        z = fitted.module.embed(batch)
    rna, protein = places["counts"], places["protein"]
    torch.testing.assert_close(rna.norm(dim=1), torch.ones(12))
    both = [i for i in range(12) if i != 3]
    torch.testing.assert_close(z[both], (rna[both] + protein[both]) / 2)
    torch.testing.assert_close(z[3], rna[3])


def test_cells_with_one_modality_are_embedded_beside_the_others(fitted, stained):
    z = fitted.embed(stained)
    assert z.shape == (450, 8)
    assert np.isfinite(z).all()
    lone = stained.obs["batch"] != "batch_0"
    np.testing.assert_allclose(np.linalg.norm(z[lone], axis=1), 1, atol=1e-5)
    assert np.linalg.norm(z[~lone], axis=1).max() < 1


def test_no_cell_with_both_is_refused_before_any_compute(monkeypatch):
    monkeypatch.setattr(ch.ScCLIP, "_learn", lambda *_: pytest.fail("compute began"))
    absent = {"rna": ["batch_1"], "adt": ["batch_0"]}
    apart = simulate_citeseq(60, 40, 8, n_batches=2, absent=absent, seed=0)
    with pytest.raises(ch.DataError, match="0 cells of 54 to learn from have both counts and prot"):
        ch.ScCLIP().fit(apart, CITE)


def test_held_out_cells_hold_pairs_that_can_be_told_apart(monkeypatch):
    """Without two pairs in one minibatch their objective is 0, and the best there can be."""
    absent = {"adt": ["batch_1"]}
    half = simulate_citeseq(120, 40, 8, n_batches=2, absent=absent, seed=0)
    both, rna = (np.flatnonzero(half.obs["batch"] == name) for name in ("batch_0", "batch_1"))
    model, how = ch.ScCLIP(max_epochs=1, batch_size=20), {"progress": False}
    told = model.fit(half, CITE, validation=both[:2], **how)
    assert told.history["validation_objective"].min() > 0
    # 30 cells make two minibatches, each of which may hold one of two pairs
    assert model.fit(half, CITE, validation=np.r_[rna[:27], both[:3]], **how)
    monkeypatch.setattr(ch.ScCLIP, "_learn", lambda *_: pytest.fail("compute began"))
    for named, match in (
        (rna[:30], "30 cells, of which 0 have both counts and protein.*Name 3"),
        (both[:1], "1 cell, of which 1 has both.*Name 2"),
        (np.r_[rna[:28], both[:2]], "30 cells, of which 2 have both.*Name 3"),
    ):
        with pytest.raises(ch.DataError, match=match):
            model.fit(half, CITE, validation=named)


@pytest.mark.slow
def test_cells_are_held_out_by_chance_only_if_they_hold_pairs():
    absent = {"adt": ["batch_1", "batch_2", "batch_3", "batch_4"]}
    few = simulate_citeseq(100, 40, 8, n_batches=5, absent=absent, seed=0)
    held_out = set()
    for seed in range(12):
        found = ch.ScCLIP(max_epochs=1).fit(few, CITE, seed=seed, validation=0.05, progress=False)
        n = found.provenance["validation_cells"]
        held_out.add(n)
        assert n + found.provenance["cells"] == 100
        if n:
            assert found.history["validation_objective"].min() > 0
    assert held_out == {0, 5}


@pytest.fixture(scope="module")
def multiome():
    return simulate_multiome(900, 200, 1500, n_types=6, seed=0)


@pytest.fixture(scope="module")
def of_peaks(multiome):
    return ch.ScCLIP(max_epochs=12, batch_size=90).fit(
        multiome, MULTIOME, validation=0.2, progress=False
    )


@pytest.mark.slow
def test_right_pairs_are_found_and_shuffled_ones_stay_at_chance(multiome, of_peaks):
    """Of 180 held-out cells in minibatches of 90: ln 90 is chance."""
    shuffled = simulate_multiome(900, 200, 1500, n_types=6, seed=0)
    atac = shuffled["atac"]
    atac.layers["counts"] = atac.layers["counts"][np.random.default_rng(0).permutation(900)]
    wrong = ch.ScCLIP(max_epochs=12, batch_size=90).fit(
        shuffled, MULTIOME, validation=0.2, progress=False
    )
    best = [f.history["validation_objective"].min() for f in (of_peaks, wrong)]
    assert best[0] < np.log(90) - 0.4
    assert best[1] > np.log(90) - 0.05


def test_the_temperature_is_learned_and_bounded(multiome, of_peaks):
    told = of_peaks.history["train_temperature"].dropna()
    assert abs(told.iloc[-1] - 0.37) > 0.005
    cold = ch.ScCLIP(max_epochs=2, temperature=0.01, lr=0.5).fit(multiome, MULTIOME, progress=False)
    assert cold.history["train_temperature"].min() >= 0.01 - 1e-6


def test_peaks_are_open_or_not_and_stay_sparse(multiome, of_peaks, monkeypatch):
    twice = simulate_multiome(900, 200, 1500, n_types=6, seed=0)
    twice["atac"].layers["counts"] = twice["atac"].layers["counts"] * 3
    np.testing.assert_array_equal(of_peaks.embed(twice), of_peaks.embed(multiome))
    plain = SparseRows.dense

    def dense(self):
        assert self.n_features != 1500, "peaks were made dense"
        return plain(self)

    monkeypatch.setattr(SparseRows, "dense", dense)
    ch.ScCLIP(max_epochs=1, batch_size=90).fit(multiome, MULTIOME, progress=False)
