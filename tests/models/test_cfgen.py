"""CFGen: its two phases, its conditions, and whether what it makes is like what it saw."""

from __future__ import annotations

import copy
import dataclasses

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_multiome
from chreode.metrics.generation import concordance
from chreode.nn.attributes import AttributeEmbedding, attribute_names, sinusoid
from chreode.verbs.answering import open_cells

#: Fits long enough to show something; what every model must do is tried quickly in tests/conformance.
pytestmark = pytest.mark.slow
SMALL = {"hidden": (64, 32), "n_latent": 8, "flow_width": 64, "flow_blocks": 2, "lr": 3e-3}


@pytest.fixture(scope="module")
def roles():
    return ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")


@pytest.fixture(scope="module")
def trained(request, roles):
    cells = request.getfixturevalue("_simulated").copy()
    model = ch.CFGen(**SMALL, max_epochs=100, flow_epochs=300)
    return model.fit(cells, roles, seed=0, progress=False)


def means(x):
    return np.asarray(x.mean(0)).ravel()


def test_generated_cells_are_those_of_their_type(trained, cells):
    counts = cells.layers["counts"]
    types = cells.obs["cell_type"].astype(str).to_numpy()
    made = {t: trained.generate(300, given={"label": t}, progress=False) for t in np.unique(types)}
    for t, new in made.items():
        assert np.array_equal(new.X.data, np.rint(new.X.data))
        assert new.X.dtype == np.int64
        assert set(new.obs["cell_type"]) == {t}
        near = {
            u: concordance(np.log1p(means(counts[types == u])), np.log1p(means(new.X)))
            for u in made
        }
        assert max(near, key=near.get) == t, near
        assert near[t] > 0.9


def test_depth_is_that_of_the_combination(trained, cells):
    counts, obs = cells.layers["counts"], cells.obs
    told = {"label": obs["cell_type"].iloc[0], "batch": obs["batch"].iloc[0]}
    alike = ((obs["cell_type"] == told["label"]) & (obs["batch"] == told["batch"])).to_numpy()
    real = np.log(np.asarray(counts[alike].sum(1)).ravel())
    fake = np.log(np.asarray(trained.generate(500, given=told).X.sum(1)).ravel())
    assert fake.mean() == pytest.approx(real.mean(), abs=0.15)
    assert fake.std() == pytest.approx(real.std(), abs=0.15)


def test_order_of_attributes_and_one_value_per_cell(trained):
    a = trained.generate(40, given=first(trained))
    b = trained.generate(40, given=dict(reversed(first(trained).items())))
    assert (a.X != b.X).nnz == 0
    each = {k: [v] * 40 for k, v in first(trained).items()}
    c = trained.generate(40, given=each)
    assert (a.X != c.X).nnz == 0
    with pytest.raises(ch.ConfigError, match="39 values for 40 cells"):
        trained.generate(40, given={"label": each["label"][:39]})


def first(fitted):
    return {r: fitted.spec.categories[r][0] for r in ("label", "batch")}


def test_none_one_and_many(trained):
    assert trained.generate(0).shape == (0, 300)
    assert trained.generate(1).shape == (1, 300)
    assert trained.generate(3, given={"label": trained.spec.categories["label"][0]}).shape == (
        3,
        300,
    )
    with pytest.raises(ch.SchemaError, match="never seen"):
        trained.generate(3, given={"label": "no such type"})
    with pytest.raises(ch.DataError, match="into="):
        trained.generate(10_000_000)


def test_more_cells_than_memory_go_to_a_file(trained, tmp_path):
    path = trained.generate(700, into=tmp_path / "new.h5ad", seed=3)
    assert (ad.read_h5ad(path).X != trained.generate(700, seed=3).X).nnz == 0


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, {"label": -1}, {"batch": np.inf}])
def test_absurd_weights_are_refused(trained, weight):
    with pytest.raises(ch.ConfigError, match="at least 0"):
        trained.generate(3, guidance=weight)


def test_weights_of_unknown_attributes_are_refused(trained):
    with pytest.raises(ch.SchemaError, match="label"):
        trained.generate(3, guidance={"lable": 2.0})


def test_guidance_zero_forgets_the_type_and_more_exaggerates_it(trained, cells):
    counts = cells.layers["counts"]
    types = cells.obs["cell_type"].astype(str).to_numpy()
    t = np.unique(types)[0]
    shift = np.log1p(means(counts[types == t])) - np.log1p(means(counts))

    def along(weight):
        new = trained.generate(400, given={"label": t}, guidance=weight, seed=0)
        return float((np.log1p(means(new.X)) - np.log1p(means(counts))) @ shift / (shift @ shift))

    zero, one, two = (along(w) for w in (0.0, 1.0, 2.0))
    assert zero < 0.4
    assert one == pytest.approx(1, abs=0.3)
    assert two > one


def test_cells_are_carried_back_to_themselves(trained, cells):
    """Inversion and regeneration under a cell's own attributes is the identity, up to the solver."""
    z = trained.embed(cells)
    own = trained.embed(cells, to={}, key_added="own")
    np.testing.assert_allclose(own, z, atol=0.05 * z.std())


def test_batches_come_together_where_they_are_moved_to_one(trained, cells):
    batch = cells.obs["batch"].to_numpy()
    target = trained.spec.categories["batch"][0]
    z, moved = trained.embed(cells), trained.embed(cells, to={"batch": target})
    assert np.array_equal(cells.obsm["X_cfgen_to"], moved)

    def spread(z):
        centres = np.stack([z[batch == b].mean(0) for b in np.unique(batch)])
        return ((centres - centres.mean(0)) ** 2).sum() / z.var(0).sum()

    linear = ch.PCA(n_latent=8).fit(cells, ch.Schema(counts="layers/counts")).embed(cells)
    assert spread(moved) < spread(z)  # which the decoder's effects leave little of the batches in
    assert spread(moved) < 0.3 * spread(linear)
    counts = trained.predict(cells, to={"batch": target})
    assert counts.shape == cells.shape
    assert set(counts.obs["batch"]) == {target}
    depth = np.asarray(cells.layers["counts"].sum(1)).ravel()
    assert np.corrcoef(depth, np.asarray(counts.X.sum(1)).ravel())[0, 1] > 0.9


def test_probable_cells_score_higher_than_cells_of_another_type(trained, cells):
    own = trained.score(cells)
    other = cells.copy()
    kinds = trained.spec.categories["label"]
    other.obs["cell_type"] = [
        kinds[(kinds.index(t) + 1) % len(kinds)] for t in cells.obs["cell_type"]
    ]
    assert np.median(own - trained.score(other)) > 2


@torch.no_grad()
def rescale(module, factor):
    """Write the same model with latent states in other units."""
    coder, flow = module.autoencoder, module.flow
    for tensor in (coder.mean.weight, coder.mean.bias, flow.centre, flow.scale):
        tensor.mul_(factor)
    coder.log_variance.bias.add_(2 * np.log(factor))
    for modality in coder.modalities.values():
        modality.decoder.layers[0].linear.weight.div_(factor)


def test_the_score_knows_no_units_of_latent_states(trained, cells):
    some = cells[:20].copy()
    own = trained.score(some)
    other = dataclasses.replace(trained, module=copy.deepcopy(trained.module))
    rescale(other.module, 0.1)
    assert other.embed(some).std() < 0.2 * trained.embed(some).std()
    np.testing.assert_allclose(other.score(some), own, atol=0.05)


def test_the_score_is_a_bound_of_the_probability_of_counts():
    """With one latent dimension that is an integral, which a grid gives exactly."""
    with mudata.set_options(pull_on_update=False):
        data = simulate_multiome(200, 12, 10, seed=0)
    roles = ch.Schema(counts="rna:X", accessibility="atac:X", label="obs/cell_type")
    model = ch.CFGen(
        n_latent=1, hidden=(16, 8), max_epochs=20, flow_epochs=40, flow_width=32, flow_blocks=1,
        lr=1e-2, flow_lr=5e-3, solver="rk4",
    )  # fmt: skip
    fitted = model.fit(data, roles, seed=0)
    some, module = data[:8], fitted.module
    source, rows = open_cells(fitted, "score", Cells(some, fitted.schema), ch.Run(progress=False))
    batch = source.batch(np.repeat(rows, 101))
    with torch.no_grad():
        grid = torch.linspace(-5, 5, 101) * module.flow.scale + module.flow.centre
        z = grid.repeat(8)[:, None]
        ll = torch.stack([*module.autoencoder.log_likelihood(batch, z).values()]).sum(0)
        prior = module.flow.log_density(z, batch, module.autoencoder.log_depth(batch))
    ll, prior = (t.double().reshape(8, 101) for t in (ll, prior))
    step = float(grid[1] - grid[0])
    np.testing.assert_allclose(prior.exp().sum(1) * step, 1, atol=0.03)
    exact = ((ll + prior).logsumexp(1) + np.log(step)).numpy()
    elbo = fitted.score(some, n_samples=30)
    assert (elbo < exact + 0.2).all()
    near = fitted.score(some, bound="importance", n_samples=30)
    np.testing.assert_allclose(near, exact, atol=0.5)
    assert (elbo < near).all()


def test_counts_are_never_more_probable_than_certain(trained, cells):
    silent = cells.copy()
    silent.layers["counts"] = sp.csr_matrix(
        np.eye(500, 300, dtype=np.float32) + np.eye(500, 300, -300)
    )
    for data in (cells, silent):
        assert (trained.score(data[:50].copy()) <= 0).all()


def test_without_a_posterior_there_is_no_score(cells, roles, quick):
    assert "score" not in quick(ch.CFGen, preset="paper", hidden=(8, 8)).fit(cells, roles).verbs
    fitted = quick(ch.CFGen, kl=0.0).fit(cells, roles)
    with pytest.raises(ch.CapabilityError, match="cannot score"):
        fitted.score(cells)


def test_the_paper_is_a_preset_of_arguments(roles):
    paper = ch.CFGen(preset="paper")
    assert (paper.kl, paper.sigma, paper.conditioning, paper.ema) == (0, 1e-4, "additive", None)
    assert ch.CFGen(preset="paper", ema=0.9).ema == 0.9
    assert ch.CFGen().conditioning == "both"


def test_the_paper_fits_and_generates(cells, roles):
    few = {**SMALL, "max_epochs": 3, "flow_epochs": 3}
    fitted = ch.CFGen(preset="paper", **few).fit(cells, roles, progress=False)
    assert fitted.generate(5, given={"label": fitted.spec.categories["label"][0]}).shape == (5, 300)
    assert fitted.module.autoencoder.log_variance is None


def paired(n=240, seed=0):
    """Return RNA, proteins and peaks of two types; the last 60 cells lack proteins, the first 60 peaks."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    rates = {"rna": rng.gamma(1, 1, (2, 80)), "adt": rng.gamma(2, 5, (2, 12))}
    mods = {}
    for name, rate in rates.items():
        mods[name] = ad.AnnData(sp.csr_matrix(rng.poisson(rate[kind]).astype(np.float32)))
    odds = rng.beta(0.5, 2, (2, 60))
    mods["atac"] = ad.AnnData(sp.csr_matrix((rng.random((n, 60)) < odds[kind]).astype(np.float32)))
    for name, part in mods.items():
        part.obs_names = [f"cell{i}" for i in range(n)]
        part.var_names = [f"{name}{j}" for j in range(part.n_vars)]
    mods["adt"] = mods["adt"][: n - 60].copy()
    mods["atac"] = mods["atac"][60:].copy()
    with mudata.set_options(pull_on_update=False):
        cells = mudata.MuData(mods)
    cells.obs["kind"] = pd.Categorical([f"kind {k}" for k in kind])[
        cells.obs_names.str.removeprefix("cell").astype(int)
    ]
    return cells


@pytest.fixture(scope="module")
def multi():
    cells = paired()
    roles = ch.Schema(counts="rna:X", protein="adt:X", accessibility="atac:X", label="obs/kind")
    model = ch.CFGen(**SMALL, max_epochs=60, flow_epochs=120, peaks="bernoulli")
    return model.fit(cells, roles, progress=False), cells


def test_modalities_are_generated_together(multi, tmp_path):
    fitted, cells = multi
    new = fitted.generate(300, given={"label": "kind 1"}, seed=1)
    assert {m: x.shape for m, x in new.mod.items()} == {
        "rna": (300, 80), "atac": (300, 60), "adt": (300, 12)
    }  # fmt: skip
    assert set(new["atac"].X.data) == {1}
    for name in ("rna", "adt", "atac"):
        part = cells[name]
        mine = cells.obs["kind"].reindex(part.obs_names) == "kind 1"
        real, fake = means(part.X[mine.to_numpy()]), means(new[name].X)
        assert concordance(np.log1p(real), np.log1p(fake)) > 0.85, name
    path = fitted.generate(30, given={"label": "kind 1"}, seed=1, into=tmp_path / "new.h5mu")
    with mudata.set_options(pull_on_update=False):
        back = mudata.read_h5mu(path)
    assert (
        back["adt"].X != fitted.generate(30, given={"label": "kind 1"}, seed=1)["adt"].X
    ).nnz == 0


def test_peaks_may_be_open_or_not(multi):
    cells = multi[1]
    roles = ch.Schema(counts="rna:X", accessibility="atac:X", label="obs/kind")
    options = {**SMALL, "max_epochs": 3, "flow_epochs": 3}
    with pytest.warns(UserWarning, match="All peaks are 0 or 1"):
        counted = ch.CFGen(**options).fit(cells, roles, progress=False).generate(200)["atac"].X
    told = ch.CFGen(**options, peaks="bernoulli").fit(cells, roles, progress=False).generate(200)
    assert set(counted.data) > {1}
    assert set(told["atac"].X.data) == {1}


def test_peaks_have_the_depth_of_cells():
    """Without a depth of its own (bernoulli) their spread is what the latent state says, a third less."""
    with mudata.set_options(pull_on_update=False):
        cells = simulate_multiome(600, 60, 400, seed=0)
    roles = ch.Schema(counts="rna:X", accessibility="atac:X", label="rna:obs/cell_type")
    fitted = ch.CFGen(**SMALL, max_epochs=60, flow_epochs=120).fit(cells, roles, progress=False)
    label = cells["rna"].obs["cell_type"]
    for kind in label.unique():
        new = fitted.generate(500, given={"label": kind}, seed=1)["atac"].X
        real, fake = (
            np.log1p(np.asarray((x > 0).sum(1)).ravel())
            for x in (cells["atac"].X[(label == kind).to_numpy()], new)
        )
        assert abs(np.median(real) - np.median(fake)) < 0.15, kind
        assert 0.85 < np.std(fake) / np.std(real) < 1.2, kind


def test_cells_that_lack_a_modality_are_embedded_and_completed(multi):
    fitted, cells = multi
    z = fitted.embed(cells)
    assert np.isfinite(z).all()
    assert fitted.predict(cells, to={})["adt"].shape == (240, 12)
    assert fitted.reconstruct(cells, role="protein").shape == (240, 12)


def test_embeddings_of_attributes_differ_as_said():
    spec = ch.Spec(
        ("counts", "label", "batch", "dose"), {"counts": ("a",)},
        {"label": ("x", "y"), "batch": ("p", "q")}, {"label": (2,), "batch": (2,)},
    )  # fmt: skip
    assert attribute_names(spec) == (["label", "batch"], ["dose"])
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    numbers, told = torch.zeros(4, 1), torch.ones(4, 3, dtype=torch.bool)

    def interaction(how):
        torch.manual_seed(0)
        e = AttributeEmbedding(spec, 16, how)(codes, numbers, told)
        return float((e[3] - e[2] - e[1] + e[0]).abs().max().detach())

    assert interaction("additive") < 1e-5
    assert interaction("joint") > 1e-3
    assert interaction("both") > 1e-3
    network = AttributeEmbedding(spec, 16, "both")
    silent = told.clone()
    silent[:, 0] = False
    same = network(codes, numbers, silent)
    torch.testing.assert_close(same[0], same[2])  # a label that is not told does not matter
    assert sinusoid(torch.rand(5), 7).shape == (5, 7)


def test_augmentation_fills_up_classes(trained, cells):
    sizes = cells.obs["cell_type"].value_counts()
    balanced = ch.augment(cells, trained, seed=0)
    assert set(balanced.obs["cell_type"].value_counts()) == {sizes.max()}
    assert (~balanced.obs["generated"]).sum() == 500
    assert (cells.layers["counts"] != balanced[:500].X).nnz == 0
    floor = int(sizes.min()) + 5
    topped = ch.augment(cells, trained, floor=floor)
    expected = sizes.clip(lower=floor)
    assert topped.obs["cell_type"].value_counts().to_dict() == expected.to_dict()
    assert ch.augment(cells, trained, floor=1).n_obs == 500
    with pytest.raises(
        ch.SchemaError, match=r"by='nothing': .*'nothing'. Available: .*label \(cell_type\)"
    ):
        ch.augment(cells, trained, by="nothing")
    with pytest.raises(ch.ConfigError, match="floor"):
        ch.augment(cells, trained, floor=0)


def test_augmentation_of_several_modalities_adds_counts(multi):
    fitted, cells = multi
    rows = np.flatnonzero(cells.obs["kind"] == "kind 0")[:30]
    rows = np.concatenate([rows, np.flatnonzero(cells.obs["kind"] == "kind 1")])
    both = ch.augment(cells, fitted, rows=rows, seed=0)
    assert both.obs["kind"].value_counts().nunique() == 1
    assert both.shape[1] == 80
    again = ch.augment(both, _of_counts(fitted), floor=200)
    assert again.obs_names.is_unique


def _of_counts(fitted):
    cells = paired()["rna"].copy()
    cells.obs["kind"] = paired().obs["kind"].reindex(cells.obs_names)
    model = ch.CFGen(**SMALL, max_epochs=2, flow_epochs=2)
    return model.fit(cells, ch.Schema(counts="X", label="obs/kind"), progress=False)


def test_expected_counts_are_those_of_the_batch_that_is_asked_for(trained, cells):
    """The first batch's own shift of the genes shows in cells carried to it, and not otherwise."""
    counts, batch = cells.layers["counts"], cells.obs["batch"].to_numpy()
    one, two = trained.spec.categories["batch"][:2]
    truth = np.log1p(means(counts[batch == two])) - np.log1p(means(counts[batch == one]))
    own = trained.reconstruct(cells, to={})
    moved = trained.reconstruct(cells, to={"batch": two})
    of_one = batch == one
    found = np.log1p(means(moved.X[of_one])) - np.log1p(means(own.X[of_one]))
    assert np.corrcoef(truth, found)[0, 1] > 0.5


def test_a_cell_is_embedded_alike_alone_and_among_others(multi):
    fitted, cells = multi
    z = fitted.embed(cells)
    lone = [int(np.flatnonzero(cells.obsmap["adt"].ravel() > 0)[0]), 239]
    with mudata.set_options(pull_on_update=False):
        few = cells[lone].copy()
    np.testing.assert_allclose(fitted.embed(few), z[lone], atol=1e-4)


def test_numbers_are_attributes_too(cells):
    cells.obs["hours"] = np.repeat([0.0, 4.0], 250)
    roles = ch.Schema(counts="layers/counts", time="obs/hours", continuous=("obs/age",))
    model = ch.CFGen(**SMALL, max_epochs=3, flow_epochs=3)
    fitted = model.fit(cells, roles, progress=False)
    new = fitted.generate(6, given={"time": [1, 2, 3, 1, 2, 3], "age": 30}, guidance={"time": 2})
    assert new.obs["hours"].tolist() == [1, 2, 3, 1, 2, 3]
    assert set(new.obs["age"]) == {30}
    assert fitted.predict(cells, to={"time": 4.0}).shape == cells.shape
    for wrong in (np.inf, np.nan, "soon"):
        with pytest.raises(ch.SchemaError, match="finite number"):
            fitted.generate(3, given={"time": wrong})


def test_a_fit_goes_on_from_another_and_refuses_new_categories(cells, roles):
    model = ch.CFGen(**SMALL, max_epochs=2, flow_epochs=2)
    known = cells.obs["batch"] != cells.obs["batch"].iloc[0]
    first = model.fit(cells[known].copy(), roles, progress=False)
    with pytest.raises(ch.CapabilityError, match="together"):
        model.fit(cells, roles, from_=first, progress=False)
    still = ch.CFGen(**{**SMALL, "lr": 0.0}, max_epochs=1, flow_epochs=1, flow_lr=0.0)
    again = still.fit(cells[known].copy(), roles, from_=first, progress=False)
    before, after = (f.module.autoencoder.modalities["counts"] for f in (first, again))
    torch.testing.assert_close(after.head.bias, before.head.bias)
    torch.testing.assert_close(after.log_theta.table(), before.log_theta.table())
    few = still.fit(cells[known][:80].copy(), roles, from_=first, progress=False)
    for name in ("depth.span", "depth.mean", "centre", "scale"):
        kept = first.module.flow.state_dict()[name]
        assert torch.equal(few.module.flow.state_dict()[name], kept), name


def test_a_label_that_no_cell_has_is_refused(cells, roles):
    cells.obs["cell_type"] = pd.Categorical([None] * 500, categories=["a"])
    with pytest.raises(ch.DataError, match="label"):
        ch.CFGen(**SMALL, max_epochs=1, flow_epochs=1).fit(cells, roles, progress=False)


def met(seed):
    """Return cells of four types, treated or not; what the treatment does is the same in all of them."""
    rng = np.random.default_rng(seed)
    n, genes = 900, 200
    kind, treated = rng.integers(4, size=n), rng.integers(2, size=n)
    effect = np.where(rng.random(genes) < 0.2, rng.normal(0, 1.5, genes), 0)
    own = 0.3 * rng.normal(size=(n, 3)) @ rng.normal(size=(3, genes))
    rate = np.exp(rng.normal(size=(4, genes))[kind] + np.outer(treated, effect) + own)
    rate *= rng.lognormal(7, 0.3, (n, 1)) / rate.sum(1, keepdims=True)
    obs = {
        "kind": [f"kind {k}" for k in kind],
        "treatment": np.where(treated, "drug", "none"),
    }
    counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    return ad.AnnData(counts, obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]))


def test_cells_of_a_combination_never_seen_are_nearer_than_untreated_ones():
    cells = met(seed=0)
    of_kind, treated = cells.obs["kind"] == "kind 0", cells.obs["treatment"] == "drug"
    roles = ch.Schema(counts="X", label="obs/kind", perturbation="obs/treatment", control="none")
    model = ch.CFGen(**SMALL, max_epochs=60, flow_epochs=150)
    fitted = model.fit(cells[~(of_kind & treated)].copy(), roles, progress=False)
    before = cells[of_kind & ~treated].copy()
    made = fitted.generate(300, given={"label": "kind 0", "perturbation": "drug"})
    carried = fitted.predict(before, to={"perturbation": "drug"})

    def off(x):
        ends = [means(y) for y in (x, cells[of_kind & treated].X)]
        profiles = [np.log1p(1e4 * m / m.sum()) for m in ends]
        return np.sqrt(((profiles[0] - profiles[1]) ** 2).mean())

    assert off(made.X) < 0.5 * off(before.X)
    assert off(carried.X) < 0.5 * off(before.X)


def test_a_column_may_have_any_name(cells):
    cells.obs["plate.number"] = cells.obs["plate"]
    roles = ch.Schema(counts="layers/counts", categorical=("obs/plate.number",))
    fitted = ch.CFGen(**SMALL, max_epochs=1, flow_epochs=1).fit(cells, roles, progress=False)
    value = cells.obs["plate"].iloc[0]
    assert fitted.generate(3, given={"plate.number": value}).shape == (3, 300)


def test_the_decay_of_the_autoencoder_falls_with_the_cells_and_has_a_bound():
    autoencoder = ch.CFGen().phases()[0].learner
    assert autoencoder.weight_decay(8000) == 0.5
    assert autoencoder.weight_decay(10) == autoencoder.weight_decay(100) == 3.0
    assert ch.CFGen(weight_decay=0.2).phases()[0].learner.weight_decay == 0.2


def test_the_flow_of_few_cells_sees_enough_minibatches():
    flow = ch.CFGen(batch_size=100).phases()[-1].learner
    assert flow.max_epochs(1_000) == 1_500
    assert flow.max_epochs(1_000_000) == 8
    assert ch.CFGen(flow_epochs=3).phases()[-1].learner.max_epochs == 3
