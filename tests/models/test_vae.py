"""The Gaussian VAE against probabilistic PCA, its bounds, and what its options do."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import chreode as ch
from chreode.data.align import MissingFeatures
from chreode.data.simulate import simulate_linear_gaussian
from chreode.losses.evidence import evidence_bound, log_ratio_standard_normal
from chreode.losses.kl import kl_standard_normal

SCHEMA = ch.Schema(expression="X")
LINEAR = {
    "n_latent": 3, "n_layers": 0, "noise": "shared", "kl_warmup": 0.0, "lr": 0.03, "batch_size": 500,
}  # fmt: skip


@pytest.fixture(scope="module")
def gaussian() -> ad.AnnData:
    return simulate_linear_gaussian(500, 20, 3, noise=0.5, seed=0)


@pytest.fixture(scope="module")
def linear(gaussian):
    return ch.VAE(**LINEAR, max_epochs=400).fit(gaussian, SCHEMA, validation=0)


def bends() -> ad.AnnData:
    """1,200 cells about a parabola in 10 dimensions."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1200, 1))
    x = np.hstack([z, z**2]) @ rng.normal(size=(2, 10)) + 0.5 * rng.normal(size=(1200, 10))
    return ad.AnnData(x.astype(np.float32))


@pytest.mark.slow
def test_the_linear_vae_becomes_probabilistic_pca(linear, gaussian):
    """After 400 steps its ELBO is within 0.2 nats a cell of the best log-likelihood, −20.7."""
    exact = ch.PPCA(n_latent=3).fit(gaussian, SCHEMA)
    best = exact.score(gaussian).mean()
    elbo = linear.score(gaussian, n_samples=100, bound="elbo").mean()
    assert best - 0.2 < elbo < best + 0.01
    bound = linear.score(gaussian, n_samples=100, bound="importance").mean()
    assert best - 0.05 < bound < best + 0.02
    assert ch.PPCA(n_latent=2).fit(gaussian, SCHEMA).score(gaussian).mean() < best - 1
    noise = linear.module.decode(torch.zeros(1, 3)).variance.mean().item()
    assert noise == pytest.approx(float(exact.module.noise[0]), rel=0.05)
    # the same plane, whatever the axes in it
    basis = [np.linalg.qr(f.loadings().to_numpy())[0] for f in (linear, exact)]
    assert np.linalg.svd(basis[0].T @ basis[1])[1].min() > 0.999


@pytest.mark.slow
def test_bounds_lie_below_the_exact_density_and_rise_with_samples(linear, gaussian):
    """The decoder is linear, so the density that its bounds are bounds of is known."""
    module = linear.module
    weight = module.head.weight.T.detach().double()
    centre = (module.head.bias.detach() + module.centre).double()
    noise = module.decode(torch.zeros(1, 3)).variance.detach().double().squeeze()
    density = torch.distributions.MultivariateNormal(
        centre, weight @ weight.T + torch.diag(noise.expand(20))
    )
    exact = density.log_prob(torch.from_numpy(gaussian.X).double()).numpy()
    elbo = linear.score(gaussian, n_samples=200, bound="elbo")
    one, many = (linear.score(gaussian, n_samples=n, bound="importance") for n in (1, 500))
    assert elbo.mean() < exact.mean()
    assert one.mean() < many.mean() + 0.01
    np.testing.assert_allclose(many, exact, atol=0.2)
    assert np.abs(many - exact).mean() < np.abs(elbo - exact).mean()


def test_the_bound_is_the_evidence_where_the_posterior_is_exact():
    """x = z + noise, with q the true posterior: every draw then weighs p(x)."""
    x = torch.linspace(-2, 2, 5).repeat(20_000)
    mean, variance = x[:, None] / 2, torch.full((len(x), 1), 0.5)
    normal = torch.distributions.Normal

    def draw():
        z = mean + variance.sqrt() * torch.randn_like(mean)
        ll = normal(z, 1.0).log_prob(x[:, None]).sum(-1)
        return ll, log_ratio_standard_normal(z, mean, variance)

    def by_x(values):
        return values.double().reshape(-1, 5).mean(0)

    kl = kl_standard_normal(mean, variance)
    exact = normal(0.0, 2**0.5).log_prob(x).double()
    torch.manual_seed(0)
    weighted = evidence_bound(draw, kl, 2, importance=True)
    torch.testing.assert_close(weighted, exact, atol=1e-5, rtol=0)
    elbo = evidence_bound(draw, kl, 1, importance=False)
    torch.testing.assert_close(by_x(elbo), exact[:5], atol=0.03, rtol=0)
    torch.testing.assert_close(by_x(draw()[1]), -by_x(kl), atol=0.03, rtol=0)


@pytest.mark.slow
def test_it_bends_where_probabilistic_pca_cannot():
    cells = bends()
    train, held_out = np.arange(1000), cells[1000:].copy()
    options = {"n_latent": 1, "n_hidden": 32, "max_epochs": 60, "lr": 0.01, "batch_size": 100}
    vae = ch.VAE(**options).fit(cells, SCHEMA, rows=train)
    ppca = ch.PPCA(n_latent=1).fit(cells, SCHEMA, rows=train)
    assert vae.score(held_out, n_samples=100).mean() > ppca.score(held_out).mean() + 1.5
    new = vae.generate(2000, seed=0).X
    np.testing.assert_allclose(new.mean(0), cells.X.mean(0), atol=0.3)
    np.testing.assert_allclose(new.std(0), cells.X.std(0), rtol=0.3)


@pytest.mark.slow
def test_features_that_a_query_lacks_count_as_average(linear, gaussian):
    query = gaussian[:, 4:].copy()
    filled = gaussian.copy()
    filled.X[:, :4] = gaussian.X.mean(0)[:4]
    with pytest.warns(MissingFeatures):
        np.testing.assert_allclose(linear.embed(query), linear.embed(filled), atol=1e-4)
    with pytest.warns(MissingFeatures):
        observed = linear.score(query, n_samples=50, bound="elbo").mean()
    assert observed > linear.score(filled, n_samples=50, bound="elbo").mean()  # 16 terms, not 20


@pytest.mark.slow
def test_silent_genes_do_not_blow_up(cells, schema):
    counts = cells.layers["counts"].toarray()
    counts[:, 5] = 0
    cells.layers["counts"] = counts
    fitted = ch.VAE(n_latent=3, max_epochs=20, lr=0.02).fit(cells, schema)
    assert np.isfinite(fitted.score(cells)).all()
    assert abs(fitted.reconstruct(cells).X[:, 5]).mean() < 0.1


def test_a_fit_that_goes_on_keeps_its_centre(linear, gaussian):
    shifted = gaussian.copy()
    shifted.X += 1
    on = ch.VAE(**LINEAR, max_epochs=1).fit(shifted, SCHEMA, from_=linear, validation=0)
    assert torch.equal(on.module.centre, linear.module.centre)


def test_loadings_need_a_linear_decoder(linear, gaussian):
    assert linear.loadings().shape == (20, 3)
    deep = ch.VAE(n_latent=3, max_epochs=1).fit(gaussian, SCHEMA)
    assert "loadings" not in deep.verbs
    with pytest.raises(ch.CapabilityError, match="has no loadings"):
        deep.loadings()


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        {"n_latent": 3}, {"n_hidden": 16}, {"n_layers": 0}, {"n_layers": 2}, {"noise": "shared"},
        {"kl_warmup": 0.0}, {"batch_size": 50}, {"max_epochs": 5}, {"lr": 0.01},
        {"patience": 1},
    ],
)  # fmt: skip
def test_every_option_tells(gaussian, option):
    usual = {"n_latent": 2, "n_hidden": 8, "max_epochs": 3}
    if "patience" in option:
        usual |= {"max_epochs": 25, "lr": 0.05, "kl_warmup": 0.0}
    a = ch.VAE(**usual).fit(gaussian, SCHEMA)
    b = ch.VAE(**{**usual, **option}).fit(gaussian, SCHEMA)
    if "patience" in option:  # both may keep the weights of the best epoch
        assert len(b.history) < len(a.history)
        return
    assert a.embed(gaussian).shape != b.embed(gaussian).shape or not np.allclose(
        a.embed(gaussian), b.embed(gaussian)
    )
