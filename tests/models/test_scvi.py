"""scVI: its bounds, its conditions, its query mapping, and whether it finds what is there."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score

import chreode as ch
from chreode.data.cells import Cells
from chreode.data.simulate import simulate_cells
from chreode.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial


@pytest.fixture(scope="module")
def trained(request):
    cells = request.getfixturevalue("_simulated").copy()
    roles = ch.Schema(counts="layers/counts", batch="obs/batch", label="obs/cell_type")
    return ch.SCVI(likelihood="zinb", max_epochs=60, n_hidden=64, lr=5e-3).fit(cells, roles)


@pytest.mark.slow
def test_latent_space_holds_the_types_and_not_the_batches(trained, cells):
    z = trained.embed(cells)
    linear = ch.PCA(n_latent=10).fit(cells, ch.Schema(counts="layers/counts")).embed(cells)

    def accuracy(z, target):
        halves = KFold(2, shuffle=True, random_state=0)
        return cross_val_score(LogisticRegression(max_iter=2000), z, target, cv=halves).mean()

    types = cells.obs["cell_type"].to_numpy()
    assert accuracy(z, types) > max(0.8, accuracy(linear, types) - 0.03)
    batch = cells.obs["batch"].to_numpy()
    blind = ch.SCVI(likelihood="zinb", max_epochs=60, n_hidden=64, lr=5e-3).fit(
        cells, ch.Schema(counts="layers/counts")
    )
    assert accuracy(z, batch) < accuracy(blind.embed(cells), batch) - 0.03


def test_a_fit_that_goes_on_from_another_keeps_its_decoder(cells, schema):
    first = ch.SCVI(likelihood="zinb", max_epochs=3).fit(cells, schema)
    again = ch.SCVI(likelihood="zinb", max_epochs=1, lr=0.0).fit(cells, schema, from_=first)
    for name in ("head.bias", "dropout_logits.bias", "log_theta.blocks.0"):
        assert torch.equal(again.module.state_dict()[name], first.module.state_dict()[name])


@pytest.mark.slow
def test_the_elbo_is_a_bound_that_importance_weighting_tightens(trained, cells):
    elbo = trained.score(cells, n_samples=20).mean()
    one = trained.score(cells, bound="importance", n_samples=1).mean()
    many = trained.score(cells, bound="importance", n_samples=100).mean()
    assert one == pytest.approx(elbo, rel=0.01)
    assert elbo < many
    assert many - elbo < 30


@pytest.mark.slow
def test_score_is_the_elbo_of_the_paper(trained, cells):
    """Recompute E log p(x|z) − KL from the formula, with the same draws."""
    few = cells[:20].copy()
    scored = trained.score(few, n_samples=1, seed=4)
    module, x = trained.module, torch.from_numpy(few.layers["counts"].toarray())
    from chreode.data.align import open_query
    from chreode.learn import Rng

    batch = open_query(Cells(few, trained.schema), trained.spec, ["counts", "batch"]).batch(
        np.arange(20)
    )
    with torch.no_grad():
        latent = module.encode(batch)
        with Rng(4).scope("noise", 0):
            z = latent.mean + latent.variance.sqrt() * torch.randn_like(latent.mean)
        h = module.trunk(z, batch.conditions())
        mu = x.sum(1, keepdim=True) * torch.softmax(module.head(h), -1)
        table = module.log_theta
        times = (module.head(h).log_softmax(-1) - table.centre).exp()  # of the usual frequency
        w = torch.sigmoid(3 * table.odds)
        theta = table.table().exp() * (1 - w + w * times)
        p = torch.sigmoid(3 * module.dropout_logits(h))
        nb = torch.distributions.NegativeBinomial(theta, logits=mu.log() - theta.log())
        likelihood = (1 - p) * nb.log_prob(x).exp() + p * (x == 0)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(latent.mean, latent.variance.sqrt()),
            torch.distributions.Normal(0.0, 1.0),
        )
        elbo = likelihood.double().log().sum(1) - kl.sum(1)
    np.testing.assert_allclose(scored, elbo, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_generated_cells_have_the_depth_and_the_means_of_real_ones(cells, likelihood):
    roles = ch.Schema(counts="layers/counts", batch="obs/batch")
    fitted = ch.SCVI(max_epochs=80, n_hidden=64, lr=5e-3, likelihood=likelihood).fit(cells, roles)
    new = fitted.generate(1500, seed=0)
    real, fake = cells.layers["counts"], new.X
    assert fake.sum(1).mean() == pytest.approx(real.sum(1).mean(), rel=0.15)
    gene = [np.log(np.asarray(v.mean(0)).ravel() + 0.02) for v in (real, fake)]
    assert np.corrcoef(*gene)[0, 1] > 0.95
    given = fitted.generate(40, given={"batch": "batch_1"})
    assert (given.obs["batch"] == "batch_1").all()


def test_posterior_predictive_counts_vary_as_counts_do(trained, cells):
    a, b = (trained.predict(cells, to={}, seed=s).X.toarray() for s in (0, 1))
    real = cells.layers["counts"].toarray()
    assert not np.array_equal(a, b)
    assert a.mean() == pytest.approx(real.mean(), rel=0.1)
    assert (a == 0).mean() == pytest.approx((real == 0).mean(), abs=0.03)


def test_expression_is_corrected_only_when_asked_and_to_what_is_asked(trained, cells):
    own = trained.reconstruct(cells)
    moved = trained.reconstruct(cells, to={"batch": "batch_0"})
    mine = (cells.obs["batch"] == "batch_0").to_numpy()
    np.testing.assert_allclose(own.X[mine], moved.X[mine], rtol=1e-5)
    assert np.abs(own.X[~mine] - moved.X[~mine]).max() > 0.1
    scaled = trained.reconstruct(cells, library=10_000)
    np.testing.assert_allclose(scaled.X.sum(1), 10_000, rtol=1e-4)
    flipped = trained.predict(cells, to={"batch": "batch_0"})
    assert (flipped.obs["batch"] == "batch_0").all()
    assert (cells.obs["batch"] != "batch_0").any()


def test_every_kind_of_covariate_reaches_the_decoder(cells, schema):
    fitted = ch.SCVI(max_epochs=3).fit(cells, schema)
    base = fitted.reconstruct(cells).X
    for to in ({"plate": "plate1"}, {"age": 49.0}, {"batch": "batch_2"}):
        assert not np.allclose(base, fitted.reconstruct(cells, to=to).X), to


@pytest.mark.parametrize("linear", [False, True])
def test_with_size_factors_too_it_starts_at_every_genes_mean(cells, linear):
    cells = cells.copy()
    counts = cells.layers["counts"]
    cells.obs["size"] = np.asarray(counts.sum(1)).ravel() / 7
    roles = ch.Schema(counts="layers/counts", size_factor="obs/size")
    model = ch.SCVI(max_epochs=1, lr=1e-9, linear_decoder=linear, likelihood="nb")
    fitted = model.fit(cells, roles, validation=0, progress=False)
    head = fitted.module.linear.linear if linear else fitted.module.head
    head.weight.data.zero_()
    found = fitted.reconstruct(cells, progress=False).X
    np.testing.assert_allclose(
        found.mean(0), np.asarray(counts.mean(0)).ravel(), rtol=0.05, atol=0.01
    )


@pytest.mark.slow
def test_size_factors_replace_the_observed_depth(cells):
    cells.obs["size"] = np.asarray(cells.layers["counts"].sum(1)).ravel() / 100
    roles = ch.Schema(counts="layers/counts", size_factor="obs/size")
    fitted = ch.SCVI(max_epochs=60, n_hidden=64, lr=5e-3).fit(cells, roles)
    expected = fitted.reconstruct(cells).X.sum(1)
    assert np.corrcoef(expected, cells.layers["counts"].sum(1).A1)[0, 1] > 0.95
    assert fitted.generate(10).n_obs == 10


@pytest.mark.slow
def test_a_latent_library_finds_the_depth(cells):
    roles = ch.Schema(counts="layers/counts", batch="obs/batch")
    fitted = ch.SCVI(max_epochs=80, latent_library=True, n_hidden=64, lr=5e-3).fit(cells, roles)
    depth = np.asarray(cells.layers["counts"].sum(1)).ravel()
    assert np.corrcoef(np.log(fitted.reconstruct(cells).X.sum(1)), np.log(depth))[0, 1] > 0.75
    prior = fitted.module.library_prior(torch.arange(3)).numpy()
    for i, name in enumerate(fitted.spec.categories["batch"]):
        used = np.log(depth[(cells.obs["batch"] == name).to_numpy()])
        assert prior[i, 0] == pytest.approx(used.mean(), abs=0.1)
    assert "validation_kl_library" in fitted.history


def test_a_linear_decoder_has_loadings_and_others_say_they_have_none(trained, cells, schema):
    with pytest.raises(ch.CapabilityError, match="has no loadings"):
        trained.loadings()
    linear = ch.SCVI(linear_decoder=True, max_epochs=3).fit(cells, schema)
    table = linear.loadings(cells)
    assert table.shape == (300, 10)
    np.testing.assert_array_equal(table.to_numpy(), linear.module.linear.linear.weight.T.detach())


@pytest.mark.parametrize(
    "options",
    [{}, {"dispersion": "gene-batch"}, {"latent_library": True}, {"encode_covariates": True}],
)
def test_query_mapping_learns_new_categories_and_moves_nothing_else(
    cells, schema, options, tmp_path
):
    known = cells[cells.obs["batch"] != "batch_2"].copy()
    query = cells[cells.obs["batch"] == "batch_2"].copy()
    model = ch.SCVI(max_epochs=5, **options)
    reference = model.fit(known, schema)
    mapped = model.fit(query, schema, from_=reference)
    assert mapped.spec.blocks["batch"] == (2, 1)
    old, new = reference.module.state_dict(), mapped.module.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert set(new) > set(old)
    np.testing.assert_array_equal(mapped.embed(known), reference.embed(known))
    a = mapped.reconstruct(query[:5].copy()).X
    b = mapped.reconstruct(query[:5].copy(), to={"batch": "batch_0"}).X
    assert not np.allclose(a, b)
    loaded = ch.load(mapped.save(tmp_path / "mapped"))
    np.testing.assert_array_equal(loaded.reconstruct(query).X, mapped.reconstruct(query).X)
    assert loaded.spec.categories["batch"] == ("batch_0", "batch_1", "batch_2")


@pytest.mark.slow
def test_query_mapping_improves_the_fit_of_the_new_batch():
    cells = simulate_cells(800, 200, n_types=3, n_batches=3, batch_strength=0.8, seed=1)
    roles = ch.Schema(counts="X", batch="obs/batch")
    known, query = (
        cells[(cells.obs["batch"] == "batch_2") == flag].copy() for flag in (False, True)
    )
    model = ch.SCVI(max_epochs=60, n_hidden=64, lr=5e-3)
    reference = model.fit(known, roles)
    mapped = model.fit(query, roles, from_=reference)
    disguised = query.copy()
    disguised.obs["batch"] = "batch_0"
    assert mapped.score(query).mean() > reference.score(disguised).mean() + 1


@pytest.mark.slow
def test_a_warm_start_goes_on_from_the_weights(cells, schema):
    first = ch.SCVI(max_epochs=10).fit(cells, schema)
    more = ch.SCVI(max_epochs=10).fit(cells, schema, from_=first)
    cold = first.history["train_elbo"]
    assert more.history["train_elbo"].iloc[0] > cold.iloc[5]
    with pytest.raises(ch.ConfigError, match="from_ is a fitted scvi"):
        ch.PCA().fit(cells, schema, from_=first)
    pca = ch.PCA().fit(cells, schema)
    with pytest.raises(ch.ConfigError, match="closed form"):
        ch.PCA().fit(cells, schema, from_=pca)


def test_the_kl_weight_reaches_its_end(cells, schema):
    fitted = ch.SCVI(max_epochs=10, kl_warmup=0.5).fit(cells, schema)
    late = fitted.history.iloc[-1]
    assert late["train_objective"] == pytest.approx(-late["train_elbo"], rel=1e-5)
    early = fitted.history.iloc[0]
    assert early["train_objective"] < -early["train_elbo"]


def test_poisson_is_the_limit_and_zinb_holds_nb():
    mu, x = torch.tensor([0.5, 3.0]), torch.tensor([0.0, 4.0])
    nb = NegativeBinomial(mu, torch.tensor(1e6)).log_prob(x)
    np.testing.assert_allclose(nb, torch.distributions.Poisson(mu).log_prob(x), rtol=1e-4)
    zinb = ZeroInflatedNegativeBinomial(mu, torch.tensor(2.0), torch.tensor(-50.0)).log_prob(x)
    np.testing.assert_allclose(zinb, NegativeBinomial(mu, torch.tensor(2.0)).log_prob(x), rtol=1e-5)


def test_default_epochs_show_eight_million_cells():
    from chreode.learn.sgd import default_epochs

    assert [default_epochs(n) for n in (100, 20_000, 200_000, 10**8)] == [400, 400, 40, 1]
    assert math.isclose(default_epochs(80_000) * 80_000, 8e6, rel_tol=0.01)


def test_generated_cells_can_be_learned_from(trained, tmp_path):
    new = trained.generate(60, seed=0, into=tmp_path / "new.h5ad")
    again = ch.SCVI(max_epochs=1).fit(ad.read_h5ad(new), ch.Schema(counts="X", batch="obs/batch"))
    assert again.spec.n_cells == 60


def test_cells_of_an_unseen_batch_can_be_decoded_as_those_of_a_known_one(trained, cells):
    known = trained.reconstruct(cells, to={"batch": "batch_0"}).X
    cells.obs["batch"] = "elsewhere"
    with pytest.raises(ch.DataError, match="never saw"):
        trained.reconstruct(cells)
    np.testing.assert_array_equal(trained.reconstruct(cells, to={"batch": "batch_0"}).X, known)
    assert trained.predict(cells, to={"batch": "batch_0"}).n_obs == 500
