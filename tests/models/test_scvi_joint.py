"""The term of scVI that keeps a cell in place when its counts are thinned (`joint`).

Run by torchrun, this file is what each process does: ``test_scvi_joint.py FOLDER KIND``.
"""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse, stats
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from two_processes import found_by, tell

import chreode as ch
from chreode.compute.processes import Group
from chreode.data.align import learn_spec, open_source
from chreode.data.batch import CellBatch, SparseRows
from chreode.data.cells import Cells
from chreode.data.sampler import Shuffled
from chreode.data.simulate import simulate_cells
from chreode.learn import Rng
from chreode.models import scvi
from chreode.module import Step
from chreode.nn.blocks import share_statistics

ROLES = ch.Schema(counts="layers/counts", batch="obs/batch")


def made(cells, rows=None, **options):
    """Return an untrained module, and a minibatch."""
    spec = learn_spec(Cells(cells, ROLES), ["counts", "batch"], np.arange(len(cells)))
    source = open_source(Cells(cells, ROLES), spec, ["counts", "batch"], {})
    with Rng(0).scope("init"):
        module = ch.SCVI(**options).build(spec)
    return module, source.batch(np.arange(50) if rows is None else rows)


def ended(fitted):
    """Return history and weights."""
    history = fitted.history.drop(columns=["seconds", "phase"])
    weights = {k: v.double().flatten().tolist() for k, v in fitted.module.state_dict().items()}
    return {"history": history.to_dict("list"), "weights": weights}


# the objective


@pytest.mark.parametrize("options", [{}, {"latent_library": True, "encode_covariates": True}])
def test_the_objective_is_that_of_plain_numbers(cells, options):
    """Recompute the term from the same draws; what is left of the objective is −ELBO of whole cells."""
    module, batch = made(cells, joint=100.0, likelihood="poisson", **options)
    if options:
        module.library_prior.fill(torch.randn(50) + 6, batch["batch"])
    module.eval()
    step = Step(Rng(0), 0, 1.0)
    with torch.no_grad(), Rng(3).scope("noise"):
        loss = module.loss(batch, step)
    with torch.no_grad(), Rng(3).scope("noise"):
        whole, thinned = module.encode_with_thinned(batch)
        z = whole.mean + whole.variance.sqrt() * torch.randn_like(whole.mean)
        log_library = module._draw_library(batch, whole)
        other = thinned.mean + thinned.variance.sqrt() * torch.randn_like(z)
        alone = module.encode(batch)
        likelihood = module.decode(z, log_library, batch).log_prob(batch["counts"]).sum(1)
    n = z.shape[1]
    correlation = np.corrcoef(z.T.double(), other.T.double())[:n, n:]
    own = np.diag(correlation)
    term = ((1 - own) ** 2).sum() + 0.01 * (np.square(correlation).sum() - np.square(own).sum())
    assert loss.terms["joint"].item() == pytest.approx(term, rel=1e-3)
    torch.testing.assert_close(whole.mean, alone.mean, rtol=1e-5, atol=1e-6)
    assert (thinned.mean - whole.mean).abs().mean() > 0.02
    kl = 0.5 * (whole.mean**2 + whole.variance - 1 - whole.variance.log()).sum(1)
    kl = kl.mean() + loss.terms.get("kl_library", 0)
    assert loss.terms["elbo"].item() == pytest.approx((likelihood.mean() - kl).item(), rel=1e-5)
    rest = loss.objectives["model"] - 100 * loss.terms["joint"]
    assert rest.item() == pytest.approx(-loss.terms["elbo"].item(), rel=1e-5)


def test_depths_are_log_uniform_from_ten_counts_to_all(cells, monkeypatch):
    """A cell of ten counts or fewer, or of none, keeps all."""
    totals = torch.tensor([1000.0] * 4000 + [10.0, 7.0, 1.0, 0.0])
    counts = torch.zeros(len(totals), 300)
    counts[:, 5], counts[:, 8] = totals.div(2).ceil(), totals.div(2).floor()
    seen = {}

    def watched(counts, kept, thinned=scvi.thinned):
        seen["kept"], seen["counts"] = kept, thinned(counts, kept)
        return seen["counts"]

    monkeypatch.setattr(scvi, "thinned", watched)
    module, _ = made(cells, joint=1.0)
    batch = CellBatch(torch.arange(len(counts)), {"counts": SparseRows.of(counts)})
    with torch.no_grad(), Rng(0).scope("noise"):
        module.encode_with_thinned(batch)
    depth = (seen["kept"] * totals)[:4000].numpy()
    assert depth.min() == pytest.approx(10, rel=0.05)
    assert depth.max() == pytest.approx(1000, rel=0.05)
    assert stats.kstest(np.log(depth / 10) / np.log(100), "uniform").pvalue > 0.01
    assert seen["kept"][4000:].tolist() == [1.0] * 4
    torch.testing.assert_close(seen["counts"].dense()[4000:], counts[4000:])
    left = seen["counts"].sum()[:4000].numpy()
    assert np.abs(left - depth).mean() == pytest.approx(  # of a binomial: 0.8 of its scale
        np.mean(np.sqrt(2 / np.pi * depth * (1 - depth / 1000))), rel=0.05
    )


def test_batch_norm_learns_from_both_views_what_it_later_uses(cells):
    """With statistics of each view by itself, thinned cells would later be somewhere else."""
    rows = np.arange(400)
    module, batch = made(cells, rows, joint=1.0, dropout=0.0)

    def encoded(module, encode):
        found = []
        for training in (True, False):
            module.train(training)
            with torch.no_grad(), Rng(0).scope("noise"):
                found.append([latent.mean for latent in encode(batch)])
        return [
            ((a - b).norm() / (a - a.mean(0)).norm()).item() for a, b in zip(*found, strict=True)
        ]

    assert max(encoded(module, module.encode_with_thinned)) < 0.01

    def apart(batch):
        counts = batch.sparse("counts")
        lowest = (10 / counts.sum()).clamp(max=1)
        kept = (torch.rand_like(lowest) * lowest.log()).exp()
        fewer = replace(batch, views={"counts": scvi.thinned(counts, kept)}, _dense={})
        return module.encode(batch), module.encode(fewer)

    module, _ = made(cells, rows, joint=1.0, dropout=0.0)
    assert min(encoded(module, apart)) > 0.1


# fits


def test_without_weight_it_is_the_plain_model_bit_for_bit(cells):
    fits = {w: ch.SCVI(max_epochs=3, joint=w).fit(cells, ROLES) for w in (None, 0.0, 1e-9)}
    plain = ended(fits[None])
    assert ended(fits[0.0]) == plain
    assert "train_joint" not in plain["history"]
    # what compares cells sees those that are held out mixed, in minibatches of its own size
    samplers = [ch.SCVI(joint=w).phases()[0].data for w in (None, 0.0, 100.0)]
    assert samplers == [Shuffled(128), Shuffled(128), Shuffled(128, compares=True)]
    assert {"train_joint", "validation_joint"} <= set(fits[1e-9].history)
    assert ended(fits[1e-9])["weights"] != plain["weights"]


def test_validation_watches_the_term_too_and_its_elbo_stays_that_of_whole_cells(cells):
    fitted = ch.SCVI(max_epochs=4, joint=30.0, likelihood="poisson").fit(cells, ROLES)
    last = fitted.history.iloc[-1]
    expected = 30 * last["validation_joint"] - last["validation_elbo"]
    assert last["validation_objective"] == pytest.approx(expected, rel=1e-6)
    assert last["validation_joint"] > 0.1
    plain, batch = made(cells, likelihood="poisson")
    plain.load_state_dict(fitted.module.state_dict())
    scores = []
    for module in (plain.eval(), fitted.module):
        with torch.no_grad(), Rng(0).scope("noise"):
            scores.append(module.score(batch, 5, importance=False))
    assert torch.equal(*scores)


def test_the_same_seed_gives_the_same_bits(cells):
    first, again, other = (
        ended(ch.SCVI(max_epochs=2, joint=100.0).fit(cells, ROLES, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["history"]["train_joint"] != other["history"]["train_joint"]


@pytest.mark.parametrize(
    "options",
    [{}, {"encode_covariates": True}, {"latent_library": True}, {"dispersion": "gene-batch"}],
)
def test_query_mapping_moves_nothing_that_was_learned(cells, options):
    known = cells[cells.obs["batch"] != "batch_2"].copy()
    query = cells[cells.obs["batch"] == "batch_2"].copy()
    model = ch.SCVI(max_epochs=3, joint=100.0, **options)
    reference = model.fit(known, ROLES)
    mapped = model.fit(query, ROLES, from_=reference)
    old, new = reference.module.state_dict(), mapped.module.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert set(new) > set(old)
    np.testing.assert_array_equal(mapped.embed(known), reference.embed(known))
    assert np.isfinite(mapped.history["train_joint"]).all()


def test_with_size_factors_and_a_single_held_out_cell(cells):
    cells.obs["size"] = np.asarray(cells.layers["counts"].sum(1)).ravel() / 100
    roles = ch.Schema(counts="layers/counts", size_factor="obs/size")
    fitted = ch.SCVI(max_epochs=2, joint=100.0).fit(cells, roles, validation=1 / 500)
    assert np.isfinite(fitted.embed(cells)).all()
    # of one cell nothing correlates: all dimensions are lost
    assert fitted.history["validation_joint"].tolist() == pytest.approx([10, 10])


# what it is for


@pytest.mark.slow
def test_thinned_cells_stay_nearer_to_where_they_were(real):
    """On blood cells, of which a tenth of the counts is left; in units of the spread of all cells."""
    data = ad.read_h5ad(real("pbmc3k/pbmc3k_2700.h5ad"))[:1500]
    variance = np.log1p(data.X.toarray()).var(0)
    data = data[:, np.sort(np.argsort(-variance)[:500])].copy()
    few, draw = data.copy(), np.random.default_rng(0)
    few.X = sparse.csr_matrix(draw.binomial(data.X.toarray().astype(int), 0.1).astype(np.float32))
    kept = np.asarray(few.X.sum(1)).ravel() > 0
    moved, elbo = {}, {}
    for weight in (None, 100.0):
        fitted = ch.SCVI(max_epochs=40, joint=weight).fit(data, ch.Schema(counts="X"), seed=0)
        z, thinned = fitted.embed(data), fitted.embed(few[kept].copy())
        moved[weight] = np.sqrt(((thinned - z[kept]) ** 2).sum(1).mean() / z.var(0).sum())
        elbo[weight] = fitted.score(data).mean()
    assert moved[100.0] < 0.75 * moved[None]
    assert elbo[None] - 0.05 * abs(elbo[None]) < elbo[100.0] < elbo[None]


def types(**options):
    """Return how often the 15 nearest cells name the type of a cell, of a dozen simulated types."""
    cells = simulate_cells(800, 200, n_types=12, n_batches=2, batch_strength=0.3, seed=0)
    z = ch.SCVI(max_epochs=60, **options).fit(cells, ROLES, seed=0).embed(cells)
    return cross_val_score(KNeighborsClassifier(15), z, cells.obs["cell_type"], cv=4).mean()


@pytest.mark.slow
def test_without_reconstruction_types_are_lost(monkeypatch):
    """The control: the term is no objective of its own.

    The ELBO of few genes is small beside a weight of 100, with which types are lost too, unlike with 1.
    """
    plain, little, much = (types(joint=weight) for weight in (None, 1.0, 100.0))
    whole, likelihood = scvi.SCVIModule.loss, scvi.SCVIModule.log_likelihood

    def remembered(self, *args, **kwargs):
        self.__dict__["seen"] = likelihood(self, *args, **kwargs)
        return self.__dict__["seen"]

    def without(self, batch, step):
        found = whole(self, batch, step)
        objective = found.objectives["model"] + self.__dict__.pop("seen").mean()
        return replace(found, objectives={"model": objective})

    monkeypatch.setattr(scvi.SCVIModule, "log_likelihood", remembered)
    monkeypatch.setattr(scvi.SCVIModule, "loss", without)
    alone = types(joint=100.0)
    assert alone < much < plain
    assert plain - alone > 0.12
    assert little > plain - 0.04


# several processes


def gradient(group, *, gathered=True):
    """Return the term and the gradient in float64 of a minibatch of 67 cells, shared out unequally."""
    cells, rows = simulate_cells(200, 40, n_types=3, n_batches=2, seed=0), np.arange(0, 200, 3)
    torch.set_default_dtype(torch.float64)
    mine = group.share(rows)
    module, batch = made(cells, mine, dropout=0.0, n_hidden=16, joint=100.0)
    module = module.double()
    batch.views["counts"].__dict__["values"] = batch.views["counts"].values.double()
    share_statistics(module, among_processes=not group.alone)
    loss = module(batch, Step(Rng(0), 0, 1.0, group=group if gathered else Group()))
    weighted = loss.objectives["model"] * (len(mine) / len(rows))
    found = [weighted.detach(), *torch.autograd.grad(weighted, list(module.parameters()))]
    group.add(found)
    torch.set_default_dtype(torch.float32)
    names = ["loss", *(name for name, _ in module.named_parameters())]
    named = {n: t.flatten().tolist() for n, t in zip(names, found, strict=True)}
    return {**named, "term": loss.terms["joint"].item()}


def find(group):
    """Return what this process finds; without noise, as each process draws its own."""
    scvi.reparametrise = lambda mean, variance: mean + 0 * variance
    scvi.thinned = lambda counts, kept: counts.map((counts.values / 3).ceil() + 0 * kept.sum())
    cells = simulate_cells(200, 40, n_types=3, n_batches=2, seed=0)
    how = {"validation": 0.2, "distributed": not group.alone, "progress": False}
    model = ch.SCVI(max_epochs=6, batch_size=40, dropout=0.0, joint=100.0)
    return {
        "joint": gradient(group), "own": gradient(group, gathered=False),
        "fit": ended(model.fit(cells, ROLES, **how)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and what each of two found."""
    return found_by(__file__, tmp_path_factory)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_joint_minibatch(found):
    (alone,), both = found["alone"], found["distributed"]
    assert len(both) == 2
    largest = max(np.abs(v).max() for v in alone["joint"].values())
    for one in both:
        for name, expected in alone["joint"].items():
            np.testing.assert_allclose(
                one["joint"][name], expected, atol=1e-12 * largest, rtol=1e-9, err_msg=name
            )
        # the correlations of its own share are others
        assert abs(one["own"]["term"] - alone["joint"]["term"]) > 1e-3


@pytest.mark.slow
def test_whole_fits_of_two_processes_agree(found):
    (alone,), (first, second) = found["alone"], found["distributed"]
    assert first["fit"] == second["fit"]
    one, shared = alone["fit"]["history"], first["fit"]["history"]
    assert one.keys() == shared.keys()
    for name, values in one.items():
        np.testing.assert_allclose(shared[name], values, rtol=2e-3, err_msg=name)


if __name__ == "__main__":
    tell(find)
