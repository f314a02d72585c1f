"""Augmentations: chances, distributions, and that what they are given stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from chreode.data.batch import SparseRows
from chreode.nn import augment
from chreode.nn.augment import Crossover, Mask, Mix, Noise, Programmes, Swap, Thin, coins, thinned


def cells(b=300, g=60, density=0.4, seed=0):
    """Return cells in which every stored value is another number."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(b, g, generator=generator) < density
    return torch.arange(1.0, b * g + 1).view(b, g) * x


def every(x, value=True):
    return torch.full((len(x),), value)


def within(heads, n, chance, sd=5.0):
    """Return whether a number of heads is as far from its mean as chance makes it."""
    return abs(heads - n * chance) <= sd * np.sqrt(n * chance * (1 - chance)) + 1e-9


def dense(x):
    return x.dense() if isinstance(x, SparseRows) else x


def swap_in_place(x, chosen):
    """Swap as published code did: on the cells themselves (a control, which must fail)."""
    del chosen
    x.values.copy_(x.values[torch.randperm(len(x.values))])
    return x


PROGRAMMES = Programmes(torch.arange(60) % 7, 7, 0.3)
ALL = {
    "mask": Mask(0.2),
    "programmes": PROGRAMMES,
    "swap": Swap(0.3),
    "crossover": Crossover(0.25),
    "mix": Mix(SparseRows.of(cells(seed=1)), 0.5),
    "noise": Noise(0.8, 0.2),
    "thin": Thin(0.1),
}


@pytest.fixture(params=ALL)
def augmentation(request):
    return ALL[request.param]


def untouched(augmentation):
    """Return whether two views differ from each other and neither changes what they are made of."""
    x = SparseRows.of(cells())
    before = [t.clone() for t in (x.indptr, x.columns, x.values)]
    torch.manual_seed(0)
    one = dense(augmentation(x, every(x))).clone()
    same = all(
        torch.equal(a, b) for a, b in zip(before, (x.indptr, x.columns, x.values), strict=True)
    )
    two = dense(augmentation(x, every(x)))
    return same and (isinstance(augmentation, Mix) or not torch.equal(one, two))


def test_what_it_is_given_stays_as_it_was(augmentation):
    assert untouched(augmentation)


def test_a_swap_in_place_is_found_out():
    assert not untouched(swap_in_place)


def test_cells_that_are_not_chosen_are_as_they_were(augmentation):
    torch.manual_seed(0)
    x = SparseRows.of(cells())
    chosen = torch.arange(len(x)) % 3 == 0
    found, before = dense(augmentation(x, chosen)), x.dense()
    assert torch.equal(found[~chosen], before[~chosen])
    assert (found[chosen] != before[chosen]).any(1).float().mean() > 0.8
    assert torch.equal(dense(augmentation(x, every(x, False))), before)


def test_the_global_generator_seeds_them(augmentation):
    x, found = SparseRows.of(cells()), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(dense(augmentation(x, every(x))))
    assert torch.equal(found[0], found[1])
    assert isinstance(augmentation, Mix) or not torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (4, 7), (0, 3)])
def test_few_cells_and_genes(shape):
    x = SparseRows.of(torch.rand(*shape) + 1)
    for augmentation in (
        Mask(0.5), Programmes(torch.zeros(shape[1], dtype=torch.int64), 1, 0.5), Swap(1.0),
        Crossover(0.5), Mix(x, 0.5), Noise(0.5, 1.0), Thin(0.5),
    ):  # fmt: skip
        assert dense(augmentation(x, every(x))).shape == shape
    if shape[0] == 1:  # a cell that is alone has no other to cross with
        assert torch.equal(Crossover(1.0)(x, every(x)).dense(), x.dense())


def test_cells_without_stored_values():
    x = SparseRows.of(torch.zeros(4, 10))
    for name, augmentation in ALL.items():
        if name not in ("mix", "programmes", "noise"):
            assert torch.equal(dense(augmentation(x, every(x))), x.dense())
    assert (Noise(1.0, 1.0)(x, every(x)) != 0).all()


def test_zeros_that_are_stored_are_zeros():
    """A value of 0 that is stored is moved and crossed as any other."""
    stored = cells(20, 10, density=1.0)
    stored[:, ::2] = 0
    explicit = SparseRows(
        torch.arange(0, 201, 10), torch.arange(10).repeat(20), stored.flatten(), 10
    )
    implicit = SparseRows.of(stored)
    for augmentation in (Swap(0.5), Crossover(0.5)):
        found = []
        for x in (explicit, implicit):
            torch.manual_seed(3)
            found.append(augmentation(x, every(x)).dense())
        assert torch.equal(*found)


@pytest.mark.parametrize("chance", [0.0, 1e-4, 0.2, 0.5, 0.9, 1.0])
def test_coins(chance):
    torch.manual_seed(1)
    n = 400_000
    assert within(int(coins(chance, n, torch.device("cpu")).sum()), n, chance)


# each augmentation


def independent(hits, chance):
    """Refuse hits (b, g) that are not independent between cells and genes, by their row and column sums.

    Sums of independent coins are binomial: their variances are known, and so is how these vary.
    """
    b, g = hits.shape
    hits = np.asarray(hits, float)
    assert within(hits.sum(), b * g, chance)
    for axis, n, of in ((0, g, b), (1, b, g)):
        variance = hits.sum(axis).var(ddof=1) / (of * chance * (1 - chance))
        assert abs(variance - 1) < 6 * np.sqrt(2 / n)
    # neighbours in a draw: 64 random bits make four coins
    for lag in (1, 2, 3, 4):
        for one, two in ((hits[:, lag:], hits[:, :-lag]), (hits[lag:], hits[:-lag])):
            both = (one - chance) * (two - chance)
            assert abs(both.mean()) < 6 * chance * (1 - chance) / np.sqrt(both.size)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_mask_hides_genes_each_by_itself(share):
    x = SparseRows.of(cells(400, 300, density=1.0))
    torch.manual_seed(0)
    found = Mask(share)(x, every(x)).dense()
    hidden = found == 0
    assert torch.equal(found[~hidden], x.dense()[~hidden])
    independent(hidden, share)


def test_programmes_are_hidden_whole():
    torch.manual_seed(0)
    of = torch.randint(20, (300,))
    x = SparseRows.of(cells(2000, 300, density=1.0))
    hidden = Programmes(of, 20, 0.3)(x, every(x)).dense() == 0
    whole = torch.stack([hidden[:, of == p].float().mean(1) for p in range(20)], 1)
    assert torch.equal(whole, whole.round())
    independent(whole, 0.3)


def test_a_swap_keeps_the_values_of_each_cell_and_pairs_genes():
    torch.manual_seed(0)
    before = cells(200, 41)  # one gene is left over
    after = Swap(0.4)(SparseRows.of(before), every(before)).dense()
    assert torch.equal(after.sort(1).values, before.sort(1).values)
    for cell in range(len(before)):
        at = {float(v): i for i, v in enumerate(before[cell]) if v}
        for gene, value in enumerate(after[cell]):
            if value and at[float(value)] != gene:  # the gene it came from has what was here
                assert after[cell, at[float(value)]] == before[cell, gene]


@pytest.mark.slow
def test_every_gene_swaps_with_every_other_alike():
    torch.manual_seed(0)
    b, g, share, rounds = 60, 10, 0.3, 1500
    before = cells(b, g, density=1.0)
    x, went = SparseRows.of(before), np.zeros((g, g))
    hits = np.zeros((rounds, b))
    start = before[:, :1]
    for i in range(rounds):
        after = Swap(share)(x, every(x)).dense()
        came = (after - start).long().numpy()
        np.add.at(went, (came, np.arange(g)[None].repeat(b, 0)), 1)
        hits[i] = came[:, 0] != 0
    independent(hits, share)  # of the cells, the partner of a gene being the same for all
    n, expected = rounds * b, share / (g - 1)
    # cells of a minibatch share the pairs of genes: 1,500 draws of these
    sd = n * share * np.sqrt(1 / (g - 1) * (1 - 1 / (g - 1)) / rounds)
    off = went[~np.eye(g, dtype=bool)]
    assert (np.abs(off - n * expected) < 5 * sd).all()


def test_a_crossover_takes_genes_of_one_other_cell():
    torch.manual_seed(0)
    b, g, share = 300, 200, 0.25
    before = cells(b, g, density=0.5)
    x, givers = SparseRows.of(before), []
    for _ in range(40):
        after = Crossover(share)(x, every(x)).dense()
        changed = after != before
        came = ((after - 1).long() // g)[changed & (after > 0)]
        cell = changed.nonzero()[:, 0][(after > 0)[changed]]
        assert (came != cell).all()
        giver = torch.full((b,), -1)
        giver[cell] = came
        assert (giver[cell] == came).all()  # one for each cell
        assert (giver >= 0).all()
        assert len(giver.unique()) == b  # and each gives to one
        taken = torch.where(changed, before[giver], before)
        assert torch.equal(after, taken)
        givers.append(giver)
        seen = (before != 0) | (before[giver] != 0)
        assert within(int(changed.sum()), int(seen.sum()), share)
    at = torch.stack(givers)
    assert stats.chisquare(np.bincount((at - torch.arange(b)).flatten() % b)[1:]).pvalue > 1e-4


@pytest.mark.parametrize("n_present", [0, 1, 2, 250])
def test_cells_cross_with_those_alone_that_have_genes(n_present):
    """One without any would give its taker zeros."""
    torch.manual_seed(0)
    present = torch.zeros(300, dtype=torch.bool)
    present[torch.randperm(300)[:n_present]] = True
    before = cells(density=1.0) * present[:, None]
    x = SparseRows.of(before)
    after = Crossover(1.0, present)(x, present).dense()
    assert (after[~present] == 0).all()
    at, giver = present.nonzero()[:, 0], (after[present] - 1).long() // 60
    assert (giver == giver[:, :1]).all()  # all genes of one cell
    assert torch.equal(giver[:, 0].sort().values, at)
    assert n_present == 1 or (giver[:, 0] != at).all()
    same = [
        Crossover(0.4, p)(SparseRows.of(cells()), every(cells())).dense()
        for p in (None, every(cells()))
        if torch.manual_seed(1)
    ]
    assert torch.equal(*same)


def test_a_host_does_not_wait_for_a_card_to_count():
    """Where values are not known, as on the meta device, nothing can be made of how many there are."""
    x, chosen = SparseRows.of(cells()), every(cells()).to("meta")
    x = x.to("meta")
    of = PROGRAMMES.of.to("meta")
    for augmentation in (Mask(0.2), Programmes(of, 7, 0.3), Swap(0.3), Noise(0.8, 0.2)):
        assert dense(augmentation(x, chosen)).shape == (300, 60)
    with pytest.raises(
        NotImplementedError, match="nonzero"
    ):  # a control: its comment says why it has to
        Crossover(0.2, chosen)(x, chosen)


def test_noise_of_a_card_is_that_of_the_chosen_cells(monkeypatch):
    """What is drawn there for all cells is added to the chosen ones alone."""
    x, chosen = SparseRows.of(cells(80, 50)), torch.arange(80) % 3 == 0
    noise = Noise(0.8, 0.2)
    monkeypatch.setattr(augment, "_waits", lambda _: True)
    torch.manual_seed(0)
    added = noise(x, chosen) - x.dense()
    assert (added[~chosen] == 0).all()
    assert within(int((added[chosen] != 0).sum()), int(chosen.sum()) * 50, 0.8)


def test_crossed_genes_are_independent():
    torch.manual_seed(0)
    before = cells(400, 300, density=1.0)
    x = SparseRows.of(before)
    independent(Crossover(0.25)(x, every(x)).dense() != before, 0.25)
    assert torch.equal(Crossover(0.0)(x, every(x)).dense(), before)
    assert (Crossover(1.0)(x, every(x)).dense() != before).all()


@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_noise_is_normal(share):
    torch.manual_seed(0)
    x, scale = SparseRows.of(cells(500, 400) / 1e5), 0.2
    added = (Noise(share, scale)(x, every(x)) - x.dense()).numpy()
    hit = np.abs(added) > 1e-6
    if share < 1:
        independent(hit, share)
    some = added[hit]
    assert abs(some.mean()) < 5 * scale / np.sqrt(len(some))
    assert abs(some.std() / scale - 1) < 5 / np.sqrt(2 * len(some))
    assert stats.kstest(some[:20_000] / scale, "norm").pvalue > 1e-3
    for lag in (1, 2, 3, 4):
        pairs = added[:, lag:] * added[:, :-lag]
        assert abs(pairs.mean()) < 6 * share * scale**2 / np.sqrt(pairs.size)


def test_the_chosen_cells_have_noise_of_their_own():
    x = SparseRows.of(torch.zeros(200, 300))
    chosen = torch.arange(200) % 2 == 1
    added = Noise(1.0, 1.0)(x, chosen)[chosen].double()
    between = added @ added.T / 300
    assert (between - torch.diag(between.diag())).abs().max() < 6 / np.sqrt(300)


def test_mixing_is_a_weighted_mean():
    one, two = cells(50, 30), cells(50, 30, seed=5)
    found = Mix(SparseRows.of(two), 0.3)(SparseRows.of(one), every(one)).dense()
    torch.testing.assert_close(found, 0.3 * one + 0.7 * two)


@pytest.mark.parametrize("count", [1, 3, 20, 400, 20_000])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_thinned_counts_are_binomial(count, share):
    torch.manual_seed(count)
    b, g = 50, 400
    # a gene of many molecules besides, so that no cell is left without any
    x = SparseRows.of(torch.full((b, g), float(count)))
    x.values[::g] = 1e4
    found = thinned(x, torch.full((b,), share)).dense()[:, 1:].double().numpy().ravel()
    law, n = stats.binom(count, share), b * (g - 1)
    assert abs(found.mean() - law.mean()) < 5 * law.std() / np.sqrt(n)
    kurtosis = float(law.stats("k"))
    assert abs(found.var() / law.var() - 1) < 5 * np.sqrt((kurtosis + 2.1) / n)
    if count <= 20:
        expected = n * law.pmf(np.arange(count + 1))
        seen = np.bincount(found.astype(int), minlength=count + 1)
        assert (np.abs(seen - expected) <= 5 * np.sqrt(expected) + 4).all()


def test_cells_are_thinned_to_shares_even_on_a_log_scale():
    torch.manual_seed(0)
    x = SparseRows.of(torch.full((2000, 3), 1e6))
    kept = Thin(0.01)(x, every(x)).dense().sum(1) / 3e6
    assert stats.kstest(kept.log().numpy() / np.log(0.01), "uniform").pvalue > 1e-3
    assert torch.equal(Thin(1.0)(x, every(x)).dense(), x.dense())


def test_molecules_are_whole_and_no_cell_is_left_without_any():
    torch.manual_seed(0)
    x = SparseRows.of(torch.full((3000, 2), 1.4))
    found = thinned(x, torch.full((3000,), 0.05)).dense()
    assert ((found >= 0) & (found <= 2) & (found == found.round())).all()
    assert (found.sum(1) > 0).all()
    # of 1.4 molecules there are 1 or 2; a cell of two such genes that loses all of its keeps one
    none = 0.6 * 0.95 + 0.4 * 0.95**2
    one = none**2 + 2 * none * (0.6 * 0.05 + 0.4 * 2 * 0.05 * 0.95)
    assert within(int((found.sum(1) == 1).sum()), 3000, one)


def test_the_molecule_that_an_emptied_cell_keeps_is_any_of_its_own():
    torch.manual_seed(0)
    counts = torch.tensor([1.0, 0.0, 3.0]).expand(4000, 3)
    found = thinned(SparseRows.of(counts), torch.full((4000,), 1e-7)).dense()
    assert (found.sum(1) == 1).all()
    assert found[:, 1].sum() == 0
    assert within(int(found[:, 2].sum()), 4000, 0.75)
